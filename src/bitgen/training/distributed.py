"""Processes, devices and precision: which of each this process has, and what the ranks tell one another."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from bitgen.config import Config, ConfigError
from bitgen.objectives.feature_queue import QueueEntries

# Rank 0 validates and writes checkpoints while the others wait; the default of 10 minutes (NCCL) would end such a run.
COLLECTIVE_TIMEOUT = timedelta(hours=2)


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


def start_processes(config: Config) -> Processes:
    """Choose the device and join the other processes that ``torchrun`` started, if any.

    ``Config.validate`` has compared ``use_ddp`` and ``num_gpus`` with the launcher before.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    device = choose_device(config.training.device, int(os.environ.get("LOCAL_RANK", "0")))
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
    if config.training.use_ddp and not dist.is_initialized():
        if device.type == "cuda":
            dist.init_process_group("nccl", timeout=COLLECTIVE_TIMEOUT, device_id=device)
        else:
            dist.init_process_group("gloo", timeout=COLLECTIVE_TIMEOUT)
    return Processes(rank, world_size, device)


def stop_processes() -> None:
    """Leave the process group, if this process is in one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def choose_device(device: str, local_rank: int = 0) -> torch.device:
    """The device of this process: its own GPU, or the CPU."""
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    return torch.device("cuda", local_rank)


@dataclass(frozen=True)
class Precision:
    """The number format of a run. ``autocast()`` surrounds every forward; losses and the memory step out of it."""

    name: str
    device_type: str

    @property
    def dtype(self) -> torch.dtype | None:
        """What autocast computes in; None for float32 throughout."""
        return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}[self.name]

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The context of a forward pass."""
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device_type, dtype=self.dtype)


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware; elsewhere it is emulated, and slower than float32."""
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, probe, lambda: False)()) for probe in probes)


def resolve_precision(config: Config, device: torch.device) -> Precision:
    """``auto`` becomes bf16 where the device has it in hardware and float32 elsewhere; the rest is taken at its word.

    Raises:
        ConfigError: bf16 on a GPU without it.
    """
    name = config.training.precision
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else cpu_has_bf16()
    if name == "auto":
        name = "bf16" if has_bf16 else "fp32"
    elif name == "bf16" and device.type == "cuda" and not has_bf16:
        raise ConfigError("precision=bf16: this GPU has no bfloat16. Use --precision fp16 or fp32.")
    return Precision(name, device.type)


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


def mean_over_ranks(processes: Processes, scalars: dict[str, float]) -> dict[str, float]:
    """Mean of each scalar over the ranks, which must all give the same names in the same order."""
    if not processes.is_distributed or not scalars:
        return scalars
    values = torch.tensor(list(scalars.values()), dtype=torch.float64, device=processes.device)
    dist.all_reduce(values)
    return dict(zip(scalars, (values / processes.world_size).tolist(), strict=True))


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


def digest(named_tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """SHA-256 over names, types, shapes and bytes of tensors."""
    sha = hashlib.sha256()
    for name, tensor in named_tensors:
        tensor = tensor.detach().cpu().contiguous()
        sha.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


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
