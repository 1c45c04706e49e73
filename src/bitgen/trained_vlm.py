"""Opening a vision-language model of parts: from a stage's run, one of its checkpoints, or an exported folder."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from bitgen.checkpoint.format import checkpoint_folders, read_tensors, resolve_checkpoint, split_state
from bitgen.checkpoint.manifest import EMA_FILE, MANIFEST_FILE, MODEL_FILE, CheckpointError, CheckpointFiles
from bitgen.data.speech import Speech
from bitgen.data.tokenizer import load_tokenizer
from bitgen.guards.json_files import BadJson, parse_json, read_json
from bitgen.guards.printable import printable
from bitgen.trained import TOKENIZER_FOLDER
from bitgen.vlm.assembly import assemble
from bitgen.vlm.description import MODEL_TYPE, Description
from bitgen.vlm.modeling import VisionLanguageModel

CONFIG_FILE = "config.json"
# Of an exported folder: connector (and parts that are the model's own), and peft's adapter.
CONNECTOR_FILE, ADAPTER_FILE = "connector.safetensors", "adapter_model.safetensors"


class TrainedVlm(NamedTuple):
    """A trained model in eval mode, and all that goes with it; ``folder``: of the checkpoint or export itself."""

    model: VisionLanguageModel
    tokenizer: PreTrainedTokenizerBase
    speech: Speech
    description: Description
    folder: Path


def is_vlm(path: str | Path) -> bool:
    """Whether a path is a run, a checkpoint or an export of a vision-language model of parts."""
    try:
        folder = vlm_folder(path)
        return read_json(folder / CONFIG_FILE, dict).get("model_type") == MODEL_TYPE
    except (OSError, ValueError, BadJson):
        return False


def vlm_folder(path: str | Path) -> Path:
    """The folder that holds the model of a run (its best, else its newest checkpoint), a checkpoint or an export.

    Raises:
        ValueError: there is none.
    """
    path = Path(path)
    if (path / CONNECTOR_FILE).is_file() and not (path / MANIFEST_FILE).is_file():
        return path
    if not path.is_dir():
        raise CheckpointError(f"{path}: there is no such folder. Give a run's output_dir or an export.")
    stages = [inner for inner in path.iterdir() if inner.is_dir() and checkpoint_folders(inner)]
    if stages and not checkpoint_folders(path) and not (path / MANIFEST_FILE).is_file():
        names = ", ".join(sorted(inner.name for inner in stages))
        raise CheckpointError(f"{path} holds the stages of a recipe ({names}). Give the folder of one, as the last.")
    return resolve_checkpoint(path)


def read_description(folder: Path) -> Description:
    """What a checkpoint or export is made of.

    Raises:
        ValueError: it is damaged, or of another kind of model.
    """
    try:
        if (folder / MANIFEST_FILE).exists():
            content = parse_json(CheckpointFiles(folder).read(CONFIG_FILE), dict)
        else:
            content = read_json(folder / CONFIG_FILE, dict)
        return Description.from_dict(content)
    except (OSError, BadJson) as error:
        raise CheckpointError(f"{folder / CONFIG_FILE} cannot be read ({printable(error, 200)}).") from error


def own_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights that lie in a checkpoint, by their names in the model; averaged ones where there are some.

    Raises:
        CheckpointError: they are missing or damaged.
    """
    files = CheckpointFiles(folder)
    tensors: dict[str, torch.Tensor] = {}
    for name in (MODEL_FILE, EMA_FILE):
        if name in files:
            with read_tensors(files, name) as found:
                tensors |= {key: tensor.clone() for key, tensor in found.items()}
    return tensors


def open_vlm(path: str | Path, device: torch.device | str = "cpu") -> TrainedVlm:
    """The model of a stage's run, of one of its checkpoints or of an export.

    Raises:
        ValueError: there is none, it is damaged, or encoder or language model are not those that it was trained on.
    """
    folder = vlm_folder(path)
    description = read_description(folder)
    made = assemble(description)
    tensors = own_weights(folder)
    expected = set(split_state(made.model, ())[0])
    if missing := sorted(expected - set(tensors)):
        raise CheckpointError(f"{folder} lacks {len(missing)} weights, first {missing[0]}, which would be random.")
    if unknown := sorted(set(tensors) - expected):
        raise CheckpointError(f"{folder} has {len(unknown)} weights that its description does not know: {unknown[0]}.")
    made.model.load_own(tensors)
    tokenizer = made.tokenizer or load_tokenizer(folder.parent / TOKENIZER_FOLDER)
    said = description.speech
    speech = Speech(tokenizer, said.template, said.system_prompt)
    return TrainedVlm(made.model.eval().to(device), tokenizer, speech, description, folder)
