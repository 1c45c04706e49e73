"""Collecting every rank's rows, with or without gradient."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from bitgen.machine.ranks import Processes
from bitgen.objectives.feature_queue import QueueEntries


class _GatherRows(torch.autograd.Function):
    """All-gather along dimension 0 whose backward sums every rank's gradient of this rank's rows.

    DistributedDataParallel then averages over ranks, so that a loss which is the mean of the ranks' losses gets the
    very gradient that one process with the whole batch would compute.
    """

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor) -> torch.Tensor:
        ctx.rows = rows.shape[0]
        return _all_gather(rows)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        # A copy: other branches of the graph may hold the same tensor, and all_reduce writes in place.
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        start = dist.get_rank() * ctx.rows
        return gradient[start : start + ctx.rows]


def _all_gather(rows: torch.Tensor) -> torch.Tensor:
    rows = rows.contiguous()
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows)
    return torch.cat(parts)


def is_distributed() -> bool:
    """Whether more than one process trains together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """``[B, ...]`` of every rank, in rank order: ``[world * B, ...]``. Ranks must have equal shapes.

    Differentiable in the sense of :class:`_GatherRows`; the identity in a single process.
    """
    if not is_distributed():
        return rows
    return _GatherRows.apply(rows) if rows.requires_grad else _all_gather(rows)


def gather_entries(entries: QueueEntries, processes: Processes) -> QueueEntries:
    """Every rank's queue entries, in the order of the ranks, whose token tensors the objective padded to one width."""
    if not processes.is_distributed:
        return entries
    gathered = []
    for tensor in entries:
        parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(processes.world_size)]
        dist.all_gather(parts, tensor.contiguous())
        gathered.append(torch.cat(parts))
    return QueueEntries(*gathered)
