"""Devices and number formats: which of each this process computes with, and joining the other processes."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from bitgen.config.launch import launcher_local_rank, launcher_rank, launcher_world_size
from bitgen.config.values import ConfigError
from bitgen.guards.printable import printable
from bitgen.machine.ranks import Processes

logger = logging.getLogger(__name__)

# Rank 0 validates and writes checkpoints while the others wait; the default of 10 minutes (NCCL) would end such a run.
COLLECTIVE_TIMEOUT = timedelta(hours=2)
# To start, they need less: whoever is not there by then has ended, or was never started.
JOINING_TIMEOUT = timedelta(minutes=5)


def start_processes(device: str, use_ddp: bool) -> Processes:
    """Choose the device and join the other processes that ``torchrun`` started, if any.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``.
        use_ddp: whether there are other processes; ``Config.validate`` has asked the launcher.

    Raises:
        ConfigError: the launcher's environment is not whole, or the others do not come.
    """
    world_size = launcher_world_size()
    rank = launcher_rank(world_size)
    chosen = choose_device(device, launcher_local_rank())
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
        _allow_tf32(True)
    if use_ddp and not dist.is_initialized():
        on_gpus = chosen.type == "cuda"
        dist.init_process_group(
            "nccl" if on_gpus else "gloo",
            store=_meet(rank, world_size),
            rank=rank,
            world_size=world_size,
            timeout=COLLECTIVE_TIMEOUT,
            device_id=chosen if on_gpus else None,
        )
    return Processes(rank, world_size, chosen)


def forbid_tf32() -> None:
    """Products of float32 in float32, from now on; on a GPU :func:`start_processes` allows TF32."""
    _allow_tf32(False)


def _allow_tf32(is_allowed: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = is_allowed


def _meet(rank: int, world_size: int) -> dist.Store:
    """Where the processes of this run leave word for one another, once all of them are there.

    Raises:
        ConfigError: some are not there in time, or there is no word of where to meet.
    """
    where = f"{os.environ.get('MASTER_ADDR', 'no MASTER_ADDR')}:{os.environ.get('MASTER_PORT', 'no MASTER_PORT')}"
    problem = f"process {rank} of {world_size} could not meet the others at {where}"
    remedy = "Look whether all of them were started and say why they end, and whether this address can be reached."
    try:
        store, _, _ = next(dist.rendezvous("env://", rank, world_size, timeout=JOINING_TIMEOUT))
        store.set(f"here/{rank}", "yes")
        store.wait([f"here/{other}" for other in range(world_size)], JOINING_TIMEOUT)
    except (ValueError, RuntimeError, OSError) as error:  # DistError is a RuntimeError
        reason = printable(next(iter(str(error).splitlines()), type(error).__name__), 200)
        raise ConfigError(f"{problem} ({reason}). {remedy}") from error
    return store


def choose_device(device: str, local_rank: int = 0) -> torch.device:
    """The device of this process: its own GPU, or the CPU.

    Args:
        device: ``auto`` (a GPU where there is one), ``cpu`` or ``cuda``.

    Raises:
        ConfigError: another word, or ``cuda`` where there is no GPU.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(
            f"device is {printable(repr(device), 40)}. Write auto, cpu or cuda; of several GPUs CUDA_VISIBLE_DEVICES "
            "chooses."
        )
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError("device is cuda, but PyTorch finds no CUDA device here. Write device auto or cpu.")
    return torch.device("cuda", local_rank)


@dataclass(frozen=True)
class Precision:
    """The number format of a run. ``autocast()`` surrounds every forward; losses and the memory step out of it."""

    name: str
    device_type: str

    @property
    def dtype(self) -> torch.dtype | None:
        """What autocast computes in; None for float32 throughout, whose products GPUs that have TF32 compute in it."""
        return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}[self.name]

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The context of a forward pass."""
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device_type, dtype=self.dtype)


def has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware; elsewhere it is emulated, and slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    if any(bool(getattr(torch.cpu, probe, lambda: False)()) for probe in probes):
        return True
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(known.get("bf16") or known.get("sve_bf16"))  # of ARM's CPUs


@functools.cache  # once a run, though more than one part of it asks
def warn_of_emulation(setting: str, remedy: str, device: torch.device) -> None:
    """Say that what ``setting`` asks for is slow, where the device only emulates bfloat16."""
    if not has_bf16(device):
        logger.warning("%s: this device emulates bfloat16, many times slower than float32. Use %s.", setting, remedy)


def resolve_precision(name: str, device: torch.device) -> Precision:
    """``auto`` becomes bf16 where the device has it in hardware and float32 elsewhere; the rest is taken at its word.

    Raises:
        ConfigError: bf16 on a GPU without it.
    """
    in_hardware = has_bf16(device)
    if name == "auto":
        name = "bf16" if in_hardware else "fp32"
    elif name == "bf16" and device.type == "cuda" and not in_hardware:
        raise ConfigError("precision=bf16: this GPU has no bfloat16. Use --precision fp16 or fp32.")
    elif name == "bf16":
        warn_of_emulation("precision=bf16", "--precision auto", device)
    return Precision(name, device.type)
