"""What ``train_data`` names: one dataset, or several that are joined or mixed by weight.

Several are written as ``DIR_A:2,DIR_B:1`` (in YAML also as a list or a mapping). Without weights they are joined:
an epoch shows every sample of each. With weights, an epoch has as many samples as all of them together, and each source
gives its share of it, exactly: from where the epoch before left off in its own endless sequence of shuffled passes. So
a small source with a large weight comes round several times an epoch, and a large one with a small weight takes several
epochs to be seen whole; no sample comes a second time before all others of its source had their turn.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

_WEIGHT = re.compile(r"(?P<path>.*[^:/]):(?P<weight>[0-9]*\.?[0-9]+)")


class Source(NamedTuple):
    """A dataset's folder, glob or URL, and its weight; None where sources are joined."""

    path: str
    weight: float | None = None


def parse_sources(text: str) -> list[Source]:
    """``"A:2,B:1"`` to its sources; ``"A,B"`` has no weights, ``"A"`` is one source.

    Raises ``ValueError`` for an empty entry, a weight of 0, a source named twice, or weights for some sources only.
    """
    sources = []
    for entry in text.split(","):
        if not entry.strip():
            raise ValueError(f"train_data {text!r} has an empty entry; write DIR_A:2,DIR_B:1")
        match = _WEIGHT.fullmatch(entry.strip())
        sources.append(Source(match["path"], float(match["weight"])) if match else Source(entry.strip()))
    weights = [source.weight for source in sources]
    if None in weights and any(weight is not None for weight in weights):
        without = next(source.path for source in sources if source.weight is None)
        raise ValueError(f"train_data {text!r}: {without} has no weight; give all sources one (DIR:2), or none")
    if 0.0 in weights:
        raise ValueError(f"train_data {text!r} has a weight of 0; write a positive number or leave that source out")
    paths = [source.path for source in sources]
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise ValueError(f"train_data {text!r} names {twice} twice; name it once, with a weight")
    return sources if len(sources) > 1 else [Source(sources[0].path)]


def quotas(sizes: Sequence[int], weights: Sequence[float | None]) -> np.ndarray:
    """Samples that each source gives to an epoch, int64, ``sum(sizes)`` together, by the largest remainders."""
    if weights[0] is None:
        return np.array(sizes, dtype=np.int64)
    total = sum(sizes)
    shares = np.array(weights, dtype=np.float64) / sum(weights) * total
    counts = np.floor(shares).astype(np.int64)
    # Stable: of equal remainders the first named source's wins, on every machine.
    largest = np.argsort(-(shares - counts), kind="stable")[: total - int(counts.sum())]
    counts[largest] += 1
    return counts


def source_passes(size: int, quota: int, epoch: int) -> Iterator[tuple[int, int, int]]:
    """(number, start, stop) of the passes through a source of ``size`` that make up its ``quota`` in ``epoch``."""
    first, last = epoch * quota, (epoch + 1) * quota
    while first < last:
        number, start = divmod(first, size)
        stop = min(size, start + last - first)
        yield number, start, stop
        first += stop - start
