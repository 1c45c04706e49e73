"""A model's own memory changed in five ways, and what that changes, for memory_helps.py.

``on``: as trained. ``off``: nothing that is read is added. ``prior``: emptied. ``support``: emptied, and then the other
captions of the same image written first. ``support_of_others``: the same with another image's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from memory_codes import report
from torch import Tensor

from bitgen.model.episodic_memory import MemoryLayer, MemoryReader

ALONE = ("on", "off", "prior")
WAYS = (*ALONE, "support", "support_of_others")


class Supports(NamedTuple):
    """A memory for each caption, written with the others of its image: ``means [M, K, C]``, ``inverses [M, C, K]``;
    ``first [N]`` and ``count [N]`` captions of an image."""

    means: Tensor
    inverses: Tensor
    first: Tensor
    count: Tensor

    def left_out(self, texts: Tensor, images: Tensor) -> Tensor:
        """The memory of each pair of rows: the image's captions but the one in question, or else but any."""
        return self.first[images] + texts % self.count[images]

    def reader(self, rows: Tensor) -> MemoryReader:
        """Memories of a batch, one a sequence."""
        return MemoryReader(self.means[rows], self.inverses[rows])


@torch.no_grad()
def write_supports(memory: MemoryLayer, codes: Tensor, owner: Tensor) -> Supports:
    """Of captions' codes ``[M, C]``, numbered image by image (``owner [M]``)."""
    count = torch.bincount(owner)
    first = count.cumsum(0) - count
    readers: list[MemoryReader] = [None] * len(codes)
    for caption, image in enumerate(owner.tolist()):
        rows = torch.arange(first[image], first[image] + count[image])
        posterior, _ = memory.gpm.write(codes[rows[rows != caption]])
        # `left_out` of (caption, its image) finds it whatever the first caption's row is.
        readers[first[image] + caption % count[image]] = memory.reader(posterior.mean)
    means, inverses = (torch.stack(parts) for parts in zip(*readers, strict=True))
    return Supports(means, inverses, first, count)


@contextmanager
def gate_closed(memory: MemoryLayer, closed: bool) -> Iterator[None]:
    """Nothing that is read is added while the block runs."""
    gate = memory.gate.detach().clone()
    with torch.no_grad():
        memory.gate.mul_(0.0 if closed else 1.0)
        try:
            yield
        finally:
            memory.gate.copy_(gate)


@contextmanager
def reading_from(memory: MemoryLayer, reader: MemoryReader) -> Iterator[None]:
    """Whatever reads the running state reads this instead while the block runs."""
    memory.reader = lambda state=None: reader
    try:
        yield
    finally:
        del memory.reader


def reader_of(memory: MemoryLayer, way: str, supports: Supports | None) -> Callable[[Tensor, Tensor], MemoryReader]:
    """What the pairs (texts, images) of a batch read from."""
    if way in ALONE:
        reader = memory.reader(memory.gpm.prior_mean if way == "prior" else None)
        return lambda texts, images: reader
    others = 0 if way == "support" else len(supports.first) // 2
    return lambda texts, images: supports.reader(supports.left_out(texts, (images + others) % len(supports.first)))


def clustered_error(differences: Tensor, weights: Tensor, cluster: Tensor) -> float:
    """Standard error of the ratio ``sum(differences) / sum(weights)`` over independent clusters, all ``[S]``."""
    total = torch.zeros(int(cluster.max()) + 1, dtype=torch.float64)
    ratio = differences.double().sum() / weights.double().sum()
    total.index_add_(0, cluster, differences.double() - ratio * weights.double())
    used = len(cluster.unique())
    return ((total.square().sum() * used / max(used - 1, 1)).sqrt() / weights.double().sum()).item()


class Compared:
    """Reports ``sum(values) / sum(weights)`` of each way, and its paired change against the first way reported."""

    def __init__(self, name: str, slots: int, support: int, scale: float = 1.0) -> None:
        self.name, self.slots, self.support, self.scale = name, slots, support, scale
        self.first: tuple[Tensor, float] | None = None

    def add(self, way: str, values: Tensor, weights: Tensor, cluster: Tensor, **more: object) -> None:
        value = self.scale * (values.double().sum() / weights.double().sum()).item()
        if self.first is None:
            self.first = (values, value)
        else:
            error = self.scale * clustered_error(values.double() - self.first[0].double(), weights, cluster)
            more = {"change": value - self.first[1], "standard_error": error, **more}
        report(self.name, self.support if "support" in way else 0, self.slots, value, memory=way, **more)
