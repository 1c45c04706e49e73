"""A vision-language model of parts as a folder: what is its own lies in it, and its base is not copied."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from bitgen.export.folder import AUTO_MAP, carry_code
from bitgen.export.vlm_card import vlm_card
from bitgen.machine.files import apply_umask, file_hash
from bitgen.machine.hub import hub_folder
from bitgen.model.causal_lm_bitgen import CHECKSUMS
from bitgen.trained_vlm import TrainedVlm
from bitgen.vlm.adapter_folder import Base, base_of
from bitgen.vlm.adapters import remove, save_adapter
from bitgen.vlm.description import Description
from bitgen.vlm.folder import (
    CARD,
    CONFIG_FILE,
    CONNECTOR_FILE,
    CONNECTOR_PREFIX,
    LANGUAGE_FOLDER,
    VISION_FILE,
    VISION_PREFIX,
)
from bitgen.vlm.modeling import LANGUAGE
from bitgen.vlm.pretrained import BITGEN, FILES


def write_vlm_folder(trained: TrainedVlm, folder: Path, metrics: dict[str, Any]) -> None:
    """Write everything into ``folder``, which is empty. The model's language model loses its adapters by it.

    Raises:
        ValueError: a part cannot be written.
    """
    model, description = trained.model, trained.description
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    card = vlm_card(trained, metrics)
    if description.adapter is not None:
        save_adapter(model.language, folder, _base(description))
    _save(_of(weights, CONNECTOR_PREFIX), folder / CONNECTOR_FILE)
    if tower := _of(weights, VISION_PREFIX):
        _save(tower, folder / VISION_FILE)
    if LANGUAGE in description.own_parts:
        remove(model.language)
        if model.language.config.model_type == BITGEN:
            model.language.config.auto_map = dict(AUTO_MAP)
            (folder / LANGUAGE_FOLDER).mkdir()
            carry_code(folder / LANGUAGE_FOLDER)
        model.language.save_pretrained(folder / LANGUAGE_FOLDER)
        trained.tokenizer.save_pretrained(folder / LANGUAGE_FOLDER)
    trained.tokenizer.save_pretrained(folder)
    content = json.dumps(description.to_dict(), indent=2, sort_keys=True)
    (folder / CONFIG_FILE).write_text(content + "\n", encoding="utf-8")
    for path in folder.rglob("*.safetensors"):
        apply_umask(path)
    checked = sorted(path for path in folder.rglob("*") if path.is_file())
    sums = {path.relative_to(folder).as_posix(): file_hash(path) for path in checked}
    (folder / CHECKSUMS).write_text(json.dumps(sums, indent=2) + "\n", encoding="utf-8")
    (folder / CARD).write_text(card, encoding="utf-8")


def _base(description: Description) -> Base:
    """What the adapter belongs to: the language model under its name, or the one that lies beside it."""
    language = description.language
    if LANGUAGE in description.own_parts:
        return Base(LANGUAGE_FOLDER)
    found = hub_folder(language.name, language.revision, "language model", FILES)
    return base_of(found, language.name)._replace(revision=language.revision)


def _of(weights: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def _save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    save_file(tensors, path, {"format": "pt"})
