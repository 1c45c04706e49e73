"""How the micro-batches of a step, on all ranks, count in its loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from bitgen.machine.ranks import Processes, sum_over_ranks
from bitgen.protocols import Counts

Share = Callable[[Tensor], Tensor]


def loss_shares(counts: Sequence[Counts], ranks: Processes) -> list[Share]:
    """What each micro-batch's mean loss becomes before its backward; gradients are then summed over micro-batches and
    averaged over ranks. All ranks call it together.

    Alike where a batch does not say what its loss is a mean over; else by that number, so that the step's loss is the
    mean over all supervised positions, however they lie on micro-batches and ranks.
    """
    supervised = [count.supervised for count in counts]
    known = [own for own in supervised if own is not None]
    if len(known) < len(supervised):
        return [lambda loss: loss / len(counts)] * len(counts)
    total = max(sum_over_ranks(ranks, sum(known)), 1)
    return [_times(own * ranks.world_size / total) for own in known]


def _times(factor: float) -> Share:
    return lambda loss: loss * factor
