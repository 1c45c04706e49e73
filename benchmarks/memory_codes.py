"""Codes of a held-out split, and who recalls what of them, for memory_recall.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from bitgen.data.dataset import PairDataset
from bitgen.evaluation.encode import Runner
from bitgen.memory.address_space import AddressSpace
from bitgen.memory.associative import AssociativeMemory
from bitgen.memory.whitening import Whitening
from bitgen.trained import Trained

# Cues of a figure, at least: small memories are drawn anew until there are as many.
CUES = 512


class Codes(NamedTuple):
    """Images ``[N, D]``, one caption of each, and another caption of each, float64; and their rows in the dataset."""

    images: Tensor
    texts: Tensor
    others: Tensor
    rows: Tensor


def report(name: str, episodes: int, slots: int | None, value: float | None, **more: object) -> None:
    """One line; figures to four digits."""
    line = {"name": name, "episodes": episodes, "slots": slots, "value": value, **more}
    print(json.dumps({key: _rounded(entry) for key, entry in line.items()}), flush=True)


def _rounded(value: object) -> object:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def codes_of(loaded: Trained, dataset: PairDataset) -> Codes:
    """The split's codes, in an order of their own."""
    encoded = Runner(loaded.model, 128).encode(dataset)
    first = torch.searchsorted(encoded.caption_image, torch.arange(encoded.num_images))
    texts = encoded.text_features.double()
    order = torch.randperm(encoded.num_images, generator=torch.Generator().manual_seed(0))
    return Codes(encoded.image_features.double()[order], texts[first][order], texts[first + 1][order], order)


def episodes_of(codes: Codes, count: int) -> Iterator[tuple[Codes, Codes]]:
    """Episodes, and as many or at most 64 that are none, drawn anew for enough cues."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(-(-CUES // count)):
        rows = torch.randperm(len(codes.images), generator=generator)
        written, unwritten = rows[:count], rows[count : count + 64]
        yield Codes(*(part[written] for part in codes)), Codes(*(part[unwritten] for part in codes))


@cache
def space_of(half: int, slots: int, widen: bool, whitening: Whitening | None = None) -> AddressSpace:
    return AddressSpace(half, slots, widen, whitening=whitening)


def memory_of(
    codes: Codes, slots: int, widen: bool, cue_noise: float = 0.1, whitening: Whitening | None = None
) -> AssociativeMemory:
    """A memory that holds these."""
    space = space_of(codes.images.shape[1], slots, widen, whitening)
    return AssociativeMemory.empty(space, cue_noise).written(torch.cat([codes.images, codes.texts], dim=1))


def hits(cosines: Tensor, stored: Tensor) -> Tensor:
    """Which rows of ``[B, E]`` are largest in their own column, or in one that holds the same as it."""
    found = stored[cosines.argmax(dim=1)]
    return (found - stored[: len(found)]).norm(dim=1) <= 1e-6


def recalled(memory: AssociativeMemory, cues: Tensor, part: int) -> Tensor:
    """Which of the first episodes their cues ``[B, D]`` recall."""
    stored = memory.seen(1 - part)
    return hits(F.normalize(memory.read(cues, part).halves, dim=1) @ stored.mT, stored)


def nearest_neighbour(cues: Tensor, stored: Tensor, room: int) -> Tensor:
    """The same of a store of codes with room for so many, the newest."""
    forgotten = torch.arange(len(stored)) < len(stored) - room
    return hits((F.normalize(cues, dim=1) @ stored.mT).masked_fill(forgotten, -2), stored)


def share(which: Tensor) -> float:
    return which.double().mean().item()
