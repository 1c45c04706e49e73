"""An exported vision-language model on disk: what lies where, whether it is whole, and its weights.

A folder::

    config.json                 the description: parts with their names, revisions and hashes
    connector.safetensors       every weight of the connector, whether it was trained or not
    adapter_model.safetensors   with adapters: peft's two files, and a record of the base
    vision.safetensors          what the encoder has of its own: all of it, or its adapters
    language/                   a language model of the model's own, as a Hugging Face folder
    tokenizer.json ...          the tokenizer as training used it
    checksums.json              SHA-256 of all files but README.md

Encoder and language model that no run changed are not copied: they come under their names, and by their hashes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from bitgen.guards.json_files import BadJson, read_json
from bitgen.guards.names import inside
from bitgen.guards.printable import printable
from bitgen.machine.files import file_hash
from bitgen.model.causal_lm_bitgen import CHECKSUMS
from bitgen.vlm.adapter_folder import WEIGHTS as ADAPTER_FILE
from bitgen.vlm.adapter_folder import read_adapter, stored_weights
from bitgen.vlm.description import Description
from bitgen.vlm.modeling import LANGUAGE, VISION
from bitgen.vlm.vision import OURS

CONFIG_FILE, CARD = "config.json", "README.md"
CONNECTOR_FILE, VISION_FILE, LANGUAGE_FOLDER = "connector.safetensors", "vision.safetensors", "language"
# Where the weights of a part's file stand in the model.
CONNECTOR_PREFIX, VISION_PREFIX, LANGUAGE_PREFIX = "connector.", "tower.", "language."


def without_adapter(name: str) -> str:
    """The name that a weight has where no adapter lies around it."""
    return name.replace(".base_layer.", ".")


def check_files(folder: Path) -> None:
    """Compare every file with what was exported.

    Raises:
        ValueError: naming the first that is missing or differs.
    """
    try:
        for name, expected in read_json(folder / CHECKSUMS, dict).items():
            if file_hash(inside(folder, name)) != expected:
                raise ValueError(f"{folder}: {printable(name, 100)} is not what was exported; export the model again")
    except BadJson as error:
        raise ValueError(f"{folder / CHECKSUMS}: {error}; export the model again") from error
    except OSError as error:
        raise ValueError(f"{folder} is not whole ({printable(error, 300)}); export the model again") from error


def exported_weights(folder: Path, description: Description) -> dict[str, torch.Tensor]:
    """The weights that lie in a folder, by their names in the model without adapters around them.

    Raises:
        ValueError: a file is missing or damaged.
    """
    try:
        found = {CONNECTOR_PREFIX + name: tensor for name, tensor in load_file(folder / CONNECTOR_FILE).items()}
        if (folder / VISION_FILE).exists():
            found |= {VISION_PREFIX + name: tensor for name, tensor in load_file(folder / VISION_FILE).items()}
    except OSError as error:
        raise ValueError(f"{folder} is not whole ({printable(error, 300)}); export the model again") from error
    except SafetensorError as error:
        raise ValueError(f"{folder} is damaged ({printable(error, 300)}); export the model again") from error
    if LANGUAGE in description.own_parts:
        found |= {LANGUAGE_PREFIX + name: tensor for name, tensor in stored_weights(folder / LANGUAGE_FOLDER)}
    if (folder / ADAPTER_FILE).exists():
        for layer, parts in read_adapter(folder).by_layer().items():
            for part, tensor in parts.items():
                found[f"{LANGUAGE_PREFIX}{layer}.{part}.default.weight"] = tensor
    return {without_adapter(name): tensor for name, tensor in found.items()}


def parts_of(folder: Path, description: Description) -> Description:
    """The description with the model's own parts where they lie now, so that they need nothing of elsewhere."""
    language, vision = description.language, description.vision
    if LANGUAGE in description.own_parts:
        language = dataclasses.replace(language, name=str(folder / LANGUAGE_FOLDER), revision=None, config=None)
    if vision is not None and VISION in description.own_parts:
        ours = {**(vision.config.get(OURS) or {}), "source": None}
        vision = dataclasses.replace(vision, config={**vision.config, OURS: ours})
    return dataclasses.replace(description, language=language, vision=vision)


def fit(
    given: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], folder: Path
) -> dict[str, torch.Tensor]:
    """The weights under the names that they have in the model: exactly those that it expects, with their shapes.

    Raises:
        ValueError: a weight is missing, unknown or of another shape; it names the first.
    """
    places = {without_adapter(name): name for name in expected}
    found = {without_adapter(name): tensor for name, tensor in given.items()}
    if missing := sorted(set(places) - set(found)):
        raise ValueError(f"{folder} lacks {len(missing)} weights, first {missing[0]}, which would be random.")
    if unknown := sorted(set(found) - set(places)):
        name = printable(unknown[0], 200)
        raise ValueError(f"{folder} has {len(unknown)} weights that its description does not know: {name}.")
    for name, tensor in found.items():
        if tensor.shape != (wanted := expected[places[name]].shape):
            raise ValueError(f"{folder}: {name} is {list(tensor.shape)} there and {list(wanted)} in its description.")
    return {places[name]: tensor for name, tensor in found.items()}
