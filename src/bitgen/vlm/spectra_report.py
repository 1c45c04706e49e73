"""Singular values of a model's weights and of an adapter, by the last name of their layers, and what they say."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from bitgen.guards.json_files import read_json
from bitgen.vlm.adapter_folder import AdapterFolder, stored_names, stored_weights
from bitgen.vlm.spectra import effective_rank, energy_kept, gaussian_values, product_singular_values, singular_values

logger = logging.getLogger(__name__)


class Spectrum(NamedTuple):
    """Singular values of one matrix, falling; ``full`` is the full name of its layer, ``shape`` is ``(out, in)``."""

    full: str
    shape: tuple[int, int]
    values: Tensor

    @property
    def name(self) -> str:
        """The last name."""
        return self.full.rsplit(".", 1)[-1]


class Summary(NamedTuple):
    """Means over the matrices of one last name. ``most`` is the rank that their shape, or an adapter's r, allows."""

    name: str
    layers: int
    most: int
    effective_rank: float
    kept: dict[int, float]


def base_spectra(folder: str | Path, names: Sequence[str], device: torch.device) -> list[Spectrum]:
    """Of the weights of these layers in a model's folder, whose language model they are of where it has several parts.

    Raises:
        ValueError: weights that are quantised, missing or damaged.
    """
    if read_json(Path(folder) / "config.json", dict).get("quantization_config"):
        raise ValueError(f"{folder}: its weights are quantised, and their packed values have no spectrum")
    known = stored_names(folder)
    places = {next((key for key in _keys(name) if key in known), f"{name}.weight"): name for name in names}
    found = []
    for number, (key, weight) in enumerate(stored_weights(folder, places)):
        if number % 50 == 0:
            logger.info("singular values of weight %d of %d", number + 1, len(names))
        values = singular_values(weight.to(device)).cpu()
        found.append(Spectrum(places[key], (weight.shape[0], weight.shape[1]), values))
    return found


def _keys(name: str) -> list[str]:
    """Where the weight of a language model's layer may be stored: in its own folder, and in one of LLaVA's of either
    layout of transformers."""
    return [
        f"{name}.weight",
        f"language_model.{name}.weight",
        f"model.language_model.{name.removeprefix('model.')}.weight",
    ]


def adapter_spectra(adapter: AdapterFolder) -> list[Spectrum]:
    """Of what LoRA adds, ``s B A``; of a DoRA of the same part of it, without the magnitude."""
    return [
        Spectrum(
            name,
            (parts["lora_B"].shape[0], parts["lora_A"].shape[1]),
            product_singular_values(parts["lora_B"], parts["lora_A"], adapter.config.scale),
        )
        for name, parts in sorted(adapter.by_layer().items())
    ]


def by_name(spectra: Iterable[Spectrum]) -> dict[str, list[Spectrum]]:
    """Spectra of a last name and shape together, in order; further shapes of a name carry theirs in the key."""
    groups: dict[str, list[Spectrum]] = {}
    for each in spectra:
        key = each.name
        if key in groups and groups[key][0].shape != each.shape:
            key = f"{key} {each.shape[0]}x{each.shape[1]}"
        groups.setdefault(key, []).append(each)
    return groups


def summaries(groups: dict[str, list[Spectrum]], ranks: Sequence[int]) -> list[Summary]:
    """What each group's values say, at these ranks."""
    return [
        Summary(
            name,
            len(spectra),
            min(*spectra[0].shape, len(spectra[0].values)),
            _mean(effective_rank(each.values) for each in spectra),
            {rank: _mean(energy_kept(each.values, rank) for each in spectra) for rank in ranks},
        )
        for name, spectra in groups.items()
    ]


def references(groups: dict[str, list[Spectrum]]) -> dict[str, Tensor]:
    """Singular values of Gaussian matrices of the groups' shapes."""
    of_shape: dict[tuple[int, int], Tensor] = {}
    for spectra in groups.values():
        if spectra[0].shape not in of_shape:
            of_shape[spectra[0].shape] = gaussian_values(*spectra[0].shape)
    return {name: of_shape[spectra[0].shape] for name, spectra in groups.items()}


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)
