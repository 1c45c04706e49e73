"""How the micro-batches of a step, on all ranks, count in its loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from bitgen.machine.ranks import Processes, sum_over_ranks
from bitgen.protocols import Counts


@dataclass(frozen=True)
class Share:
    """What a micro-batch's mean loss becomes before its backward: ``weight`` times it, or where no weight is known, the
    same part of it as of the others."""

    weight: float | None
    micro_batches: int

    def __call__(self, loss: Tensor) -> Tensor:
        return loss / self.micro_batches if self.weight is None else loss * self.weight


def loss_shares(counts: Sequence[Counts], ranks: Processes) -> list[Share]:
    """The share of each micro-batch; gradients are then summed over micro-batches and averaged over ranks. All ranks
    call it together.

    Alike where a batch does not say what its loss is a mean over; else by that number, so that the step's loss is the
    mean over all supervised positions, however they lie on micro-batches and ranks.
    """
    supervised = [count.supervised for count in counts]
    known = [own for own in supervised if own is not None]
    if len(known) < len(supervised):
        return [Share(None, len(counts))] * len(counts)
    total = max(sum_over_ranks(ranks, sum(known)), 1)
    return [Share(own * ranks.world_size / total, len(counts)) for own in known]
