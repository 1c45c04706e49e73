"""Opening a vision-language model of parts: from a stage's run, one of its checkpoints, or an exported folder."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from bitgen.checkpoint.format import checkpoint_folders, other_release, read_tensors, resolve_checkpoint, split_state
from bitgen.checkpoint.manifest import (
    EMA_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    STATE_FILE,
    CheckpointError,
    CheckpointFiles,
)
from bitgen.data.conversations.speech import Speech
from bitgen.data.tokenizer import load_tokenizer
from bitgen.guards.json_files import BadJson, parse_json, read_json
from bitgen.guards.printable import printable
from bitgen.trained import TOKENIZER_FOLDER
from bitgen.vlm.assembly import assemble
from bitgen.vlm.description import MODEL_TYPE, Description
from bitgen.vlm.folder import CONFIG_FILE, check_files, exported_weights, fit, parts_of
from bitgen.vlm.modeling import VisionLanguageModel
from bitgen.vlm.pretrained import BITGEN, tokenizer_of

# What a description of values that fit nothing may end in, somewhere among the parts.
_NO_MODEL = (
    TypeError,
    KeyError,
    AttributeError,
    AssertionError,
    IndexError,
    RuntimeError,
    ImportError,
    ArithmeticError,
)


class TrainedVlm(NamedTuple):
    """A trained model in eval mode, and all that goes with it; ``folder``: of the checkpoint or export itself."""

    model: VisionLanguageModel
    tokenizer: PreTrainedTokenizerBase
    speech: Speech
    description: Description
    folder: Path


def is_vlm(path: str | Path) -> bool:
    """Whether a path is a run, a recipe, a checkpoint or an export of a vision-language model of parts."""
    path = Path(path)
    try:
        folder = vlm_folder(next(iter(_stages(path)), path))
        return read_json(folder / CONFIG_FILE, dict).get("model_type") == MODEL_TYPE
    except (OSError, ValueError, BadJson):
        return False


def is_exported_vlm(path: str | Path) -> bool:
    """Whether a path is an exported folder of a vision-language model of parts, whole or not."""
    return (Path(path) / CONFIG_FILE).is_file() and not (Path(path) / MANIFEST_FILE).is_file() and is_vlm(path)


def vlm_folder(path: str | Path) -> Path:
    """The folder that holds the model of a run (its best, else its newest checkpoint), a checkpoint or an export.

    Raises:
        ValueError: there is none.
    """
    path = Path(path)
    if (path / CONFIG_FILE).is_file() and not any((path / name).is_file() for name in (MANIFEST_FILE, STATE_FILE)):
        return path
    if not path.is_dir():
        raise CheckpointError(f"{path}: there is no such folder. Give a run's output_dir or an export.")
    if stages := _stages(path):
        names = ", ".join(sorted(inner.name for inner in stages))
        raise CheckpointError(f"{path} holds the stages of a recipe ({names}). Give the folder of one, as the last.")
    return resolve_checkpoint(path)


def _stages(path: Path) -> list[Path]:
    """The runs of a recipe's folder; empty: it is something else."""
    if not path.is_dir() or checkpoint_folders(path) or (path / MANIFEST_FILE).is_file():
        return []
    return sorted(inner for inner in path.iterdir() if inner.is_dir() and checkpoint_folders(inner))


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
    except _NO_MODEL as error:
        raise CheckpointError(_no_model(folder, error)) from error
    except (OSError, BadJson) as error:
        raise CheckpointError(f"{folder / CONFIG_FILE} cannot be read ({printable(error, 200)}).") from error


def _no_model(folder: Path, error: Exception) -> str:
    reason = printable(next(iter(str(error).splitlines()), ""), 200)
    return f"{folder / CONFIG_FILE} describes no model that can be built ({type(error).__name__}: {reason})."


def own_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights that lie in a checkpoint, by their names in the model, or in an export, by those without adapters
    around them; averaged ones where there are some.

    Raises:
        ValueError: they are missing or damaged.
    """
    if is_exported_vlm(folder):
        check_files(folder)
        return exported_weights(folder, read_description(folder))
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
    description, is_export = read_description(folder), is_exported_vlm(folder)
    tensors = own_weights(folder)
    try:
        made = assemble(parts_of(folder, description) if is_export else description, device=device)
    except _NO_MODEL as error:
        raise CheckpointError(_no_model(folder, error)) from error
    own = split_state(made.model, ())[0]
    try:
        fitted = fit(tensors, own, folder)
    except ValueError as error:
        raise CheckpointError(f"{error}{'' if is_export else other_release(CheckpointFiles(folder))}") from error
    made.model.load_own(fitted)
    if is_export:
        tokenizer = tokenizer_of(folder, BITGEN)  # by its tokenizer.json alone
    else:
        tokenizer = made.tokenizer or load_tokenizer(folder.parent / TOKENIZER_FOLDER)
    said = description.speech
    speech = Speech(tokenizer, said.template, said.system_prompt)
    try:
        assert isinstance(said.prompt, str) and isinstance(said.num_frames, int), "its speech has damaged values"
        assert speech.ends  # the template can write a conversation
    except _NO_MODEL as error:
        raise CheckpointError(_no_model(folder, error)) from error
    return TrainedVlm(made.model.eval().to(device), tokenizer, speech, description, folder)
