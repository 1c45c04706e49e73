"""The processes of a run: which one this is, and what they tell one another."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from bitgen.config.values import ConfigError
from bitgen.machine.locks import exclusive

_LOST = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Socket Timeout", "wait timeout")


@dataclass(frozen=True)
class Processes:
    """This process's place among all of them."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is the process that logs and writes."""
        return self.rank == 0

    @property
    def is_distributed(self) -> bool:
        """Whether there is anybody to talk to."""
        return self.world_size > 1


def writes_here() -> bool:
    """Whether this process is the one that writes, of those that it is in a group with."""
    return not dist.is_initialized() or dist.get_rank() == 0


def stop_processes() -> None:
    """Leave the process group, if this process is in one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def lost_peer(error: BaseException, processes: Processes) -> str | None:
    """What to say where ``error`` means that another process is gone or does not answer; None: it means no such thing.

    Gloo and NCCL raise plain ``RuntimeError``s too, so that it goes by their words.
    """
    said = str(error)
    is_of_peers = isinstance(error, (dist.DistBackendError, dist.DistNetworkError)) or any(w in said for w in _LOST)
    if not processes.is_distributed or not isinstance(error, RuntimeError) or not is_of_peers:
        return None
    return (
        f"Process {processes.rank} of {processes.world_size} lost another process of this run: it ended, or no longer "
        "answers. What the others said before says which and why (if nothing, look for a machine that is down, or "
        "memory that ran out)."
    )


# ---- what the ranks tell one another ----


class StepReport(NamedTuple):
    """What all ranks agree on after the backward of a step: sums over ranks."""

    stop: bool
    nonfinite: bool
    words: int
    samples: int
    skipped: int


def agree(processes: Processes, stop: bool, nonfinite: bool, words: int, samples: int, skipped: int) -> StepReport:
    """One all-reduce a step, so that no rank skips or stops alone (and leaves the others in a collective)."""
    if not processes.is_distributed:
        return StepReport(stop, nonfinite, words, samples, skipped)
    values = torch.tensor([stop, nonfinite, words, samples, skipped], dtype=torch.float64, device=processes.device)
    dist.all_reduce(values)
    stop_sum, nonfinite_sum, *sums = values.tolist()
    return StepReport(stop_sum > 0, nonfinite_sum > 0, *map(int, sums))


def sum_over_ranks(processes: Processes, value: int) -> int:
    """Sum of a whole number over the ranks."""
    if not processes.is_distributed:
        return value
    total = torch.tensor([value], dtype=torch.int64, device=processes.device)
    dist.all_reduce(total)
    return int(total)


def mean_over_ranks(
    processes: Processes, scalars: Mapping[str, float], weights: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Mean of each scalar over the ranks that give it: one whose batches held nothing to learn from may give none.

    Args:
        weights: what this rank's scalars weigh, 1 where there is none; of scalars that weigh nothing anywhere, the
            plain mean.
    """
    if not processes.is_distributed:
        return dict(scalars)
    own = {name: (value, (weights or {}).get(name, 1.0)) for name, value in scalars.items()}
    found: dict[str, list[tuple[float, float]]] = {}
    for given in gather_objects(own, processes):
        for name, pair in given.items():
            found.setdefault(name, []).append(pair)
    return {name: _weighted_mean(pairs) for name, pairs in found.items()}


def _weighted_mean(pairs: list[tuple[float, float]]) -> float:
    total = sum(weight for _, weight in pairs)
    if not total:
        return sum(value for value, _ in pairs) / len(pairs)
    return sum(value * weight for value, weight in pairs if weight) / total


def gather_objects(value: Any, processes: Processes) -> list[Any]:
    """Every rank's value, in the order of the ranks."""
    if not processes.is_distributed:
        return [value]
    values: list[Any] = [None] * processes.world_size
    dist.all_gather_object(values, value)
    return values


def from_main(value: Any, processes: Processes) -> Any:
    """Rank 0's value, on every rank."""
    if not processes.is_distributed:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


@contextlib.contextmanager
def main_first(processes: Processes) -> Iterator[None]:
    """Rank 0 runs the block before the others do: it writes what they then read. If it raises, they raise too."""
    if processes.is_main:
        error = None
        try:
            yield
        except BaseException as caught:
            error = caught
            raise
        finally:
            from_main(str(error) if error is not None else None, processes)
        return
    message = from_main(None, processes)
    if message is not None:
        raise ConfigError(f"Rank 0 stopped: {message}")
    yield


@contextlib.contextmanager
def exclusive_for_all(processes: Processes, lock: Path, what: str, remedy: str) -> Iterator[None]:
    """Rank 0 holds :func:`~bitgen.machine.locks.exclusive` for all of them while the block runs.

    Raises:
        ValueError: as ``exclusive``; on every rank.
    """
    with contextlib.ExitStack() as held:
        with main_first(processes):
            if processes.is_main:
                held.enter_context(exclusive(lock, what, remedy))
        yield


def check_equal_on_ranks(processes: Processes, parts: dict[str, str]) -> None:
    """Compare each part's hash over the ranks.

    Raises:
        RuntimeError: naming the parts that differ, on every rank.
    """
    everyones = gather_objects(parts, processes)
    differing = [name for name in parts if len({other[name] for other in everyones}) > 1]
    if differing:
        raise RuntimeError(
            f"The ranks do not agree on: {', '.join(differing)}. They were trained apart, so nothing was saved; "
            "resume from the last checkpoint with --resume auto, and report this as a bug."
        )
