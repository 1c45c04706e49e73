"""Devices and number formats: which of each this process computes with, and joining the other processes."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from bitgen.config.values import ConfigError
from bitgen.machine.ranks import Processes

# Rank 0 validates and writes checkpoints while the others wait; the default of 10 minutes (NCCL) would end such a run.
COLLECTIVE_TIMEOUT = timedelta(hours=2)


def start_processes(device: str, use_ddp: bool) -> Processes:
    """Choose the device and join the other processes that ``torchrun`` started, if any.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``.
        use_ddp: whether there are other processes; ``Config.validate`` has asked the launcher.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    chosen = choose_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
    if use_ddp and not dist.is_initialized():
        if chosen.type == "cuda":
            dist.init_process_group("nccl", timeout=COLLECTIVE_TIMEOUT, device_id=chosen)
        else:
            dist.init_process_group("gloo", timeout=COLLECTIVE_TIMEOUT)
    return Processes(rank, world_size, chosen)


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


def resolve_precision(name: str, device: torch.device) -> Precision:
    """``auto`` becomes bf16 where the device has it in hardware and float32 elsewhere; the rest is taken at its word.

    Raises:
        ConfigError: bf16 on a GPU without it.
    """
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else cpu_has_bf16()
    if name == "auto":
        name = "bf16" if has_bf16 else "fp32"
    elif name == "bf16" and device.type == "cuda" and not has_bf16:
        raise ConfigError("precision=bf16: this GPU has no bfloat16. Use --precision fp16 or fp32.")
    return Precision(name, device.type)
