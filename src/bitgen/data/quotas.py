"""How many samples each of several datasets gives to an epoch, joined or mixed by weight.

Several are written as ``DIR_A:2,DIR_B:1`` (in YAML also as a list or a mapping). Without weights they are joined:
an epoch shows every sample of each. With weights, an epoch has as many samples as all of them together, and each source
gives its share of it, exactly: from where the epoch before left off in its own endless sequence of shuffled passes. So
a small source with a large weight comes round several times an epoch, and a large one with a small weight takes several
epochs to be seen whole. In mapped data no sample comes a second time before all others of its source had their turn,
but for those of the last incomplete step of an epoch, which are left out; in a streamed epoch, whose workers read
several stretches of it side by side, this holds from epoch to epoch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np


def quotas(sizes: Sequence[int], weights: Sequence[float | None]) -> np.ndarray:
    """Samples that each source gives to an epoch, int64, ``sum(sizes)`` together, by the largest remainders."""
    if weights[0] is None:
        return np.array(sizes, dtype=np.int64)
    total, given = sum(sizes), cast(Sequence[float], weights)  # all sources have a weight, or none
    shares = np.array(given, dtype=np.float64) / sum(given) * total
    counts = np.floor(shares).astype(np.int64)
    # Stable: of equal remainders the first named source's wins, on every machine.
    largest = np.argsort(-(shares - counts), kind="stable")[: total - int(counts.sum())]
    counts[largest] += 1
    return counts


def most_passes(quota_of: np.ndarray, sizes: Sequence[int]) -> float:
    """Passes an epoch through the source that comes round most often."""
    return max(quota / size for quota, size in zip(quota_of.tolist(), sizes, strict=True))


def source_passes(size: int, quota: int, epoch: int) -> Iterator[tuple[int, int, int]]:
    """(number, start, stop) of the passes through a source of ``size`` that make up its ``quota`` in ``epoch``."""
    first, last = epoch * quota, (epoch + 1) * quota
    while first < last:
        number, start = divmod(first, size)
        stop = min(size, start + last - first)
        yield number, start, stop
        first += stop - start
