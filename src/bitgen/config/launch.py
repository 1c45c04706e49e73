"""A configuration against the launcher that started this process, and against the devices of this machine."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol

from bitgen.config.values import ConfigError, coerce


class Launched(Protocol):
    """The settings read here."""

    @property
    def batch_size(self) -> int: ...

    @property
    def num_gpus(self) -> int: ...

    @property
    def use_ddp(self) -> bool: ...

    @property
    def device(self) -> str: ...

    @property
    def precision(self) -> str: ...


def launcher_world_size() -> int:
    """Processes that the launcher says it started, over all machines; 1 without a launcher.

    Raises:
        ConfigError: the launcher's WORLD_SIZE is no number.
    """
    return coerce(int, os.environ.get("WORLD_SIZE", 1), "The launcher's environment variable WORLD_SIZE")


def launcher_rank(world_size: int) -> int:
    """Which of the launcher's processes this one is; 0 without a launcher.

    Raises:
        ConfigError: the launcher's RANK is missing, no number, or not below WORLD_SIZE.
    """
    if world_size > 1 and "RANK" not in os.environ:
        raise ConfigError(
            f"The launcher says that there are {world_size} processes (WORLD_SIZE), but not which of them this is. Set "
            "RANK to its number, from 0 on, or start with torchrun."
        )
    rank = coerce(int, os.environ.get("RANK", 0), "The launcher's environment variable RANK")
    if not 0 <= rank < world_size:
        raise ConfigError(
            f"The launcher's RANK is {rank}, but there are {world_size} processes (WORLD_SIZE): write numbers from 0 "
            f"to {world_size - 1}, or start with torchrun."
        )
    return rank


def launcher_local_rank() -> int:
    """Which of the processes on this machine this one is; 0 without a launcher.

    Raises:
        ConfigError: the launcher's LOCAL_RANK is no number from 0 on.
    """
    rank = coerce(int, os.environ.get("LOCAL_RANK", 0), "The launcher's environment variable LOCAL_RANK")
    if rank < 0:
        raise ConfigError(f"The launcher's LOCAL_RANK is {rank}: write a number from 0 on, or start with torchrun.")
    return rank


def check_launch(
    training: Launched,
    entry: str,
    world_size: int,
    launched: bool,
    check_batch: Callable[[int, str], None],
) -> None:
    """Check the settings against the launcher and the devices of this machine.

    Args:
        entry: the file that a launcher starts, for messages.
        world_size: processes over all machines.
        launched: whether a launcher such as torchrun started this process.
        check_batch: takes the batch of all processes, and how it comes about.

    Raises:
        ConfigError: with the command or the flag to write.
    """
    torchrun = f"torchrun --nproc_per_node={training.num_gpus} {entry} --use_ddp True --num_gpus {training.num_gpus}"
    if training.num_gpus != world_size:
        if not launched:
            raise ConfigError(
                f"num_gpus is {training.num_gpus}, but no launcher started this process, so it is alone. Write "
                f"{torchrun}, or --num_gpus 1."
            )
        raise ConfigError(
            f"num_gpus is {training.num_gpus}, but the launcher started {world_size} processes. Write "
            f"--num_gpus {world_size}, or {torchrun}."
        )
    if training.use_ddp and not launched:
        raise ConfigError(f"use_ddp needs a launcher. Write {torchrun}, or --use_ddp False.")
    if world_size > 1 and not training.use_ddp:
        raise ConfigError(
            f"The launcher started {world_size} processes, but use_ddp is off: each would train alone and overwrite "
            f"the others' files. Write --use_ddp True --num_gpus {world_size}."
        )
    global_batch = training.batch_size * world_size
    check_batch(global_batch, f"batch_size {training.batch_size} x {world_size} processes")
    _check_device(training)


def _check_device(training: Launched) -> None:
    import torch  # here, so that --help and reading a file answer at once

    if training.device == "cpu":
        has_gpu = False
    else:
        has_gpu = torch.cuda.is_available()
    if training.device == "cuda" and not has_gpu:
        raise ConfigError(
            "device is cuda, but PyTorch finds no CUDA device here. Write device auto or cpu; on a machine with a GPU, "
            "look whether nvidia-smi lists it and whether the installed torch is a CUDA build."
        )
    here = coerce(int, os.environ.get("LOCAL_WORLD_SIZE", 1), "The launcher's environment variable LOCAL_WORLD_SIZE")
    if has_gpu and here > torch.cuda.device_count():
        raise ConfigError(
            f"The launcher started {here} processes on this machine, which has {torch.cuda.device_count()} GPUs. "
            f"Write --nproc_per_node={torch.cuda.device_count()} (and num_gpus to match), or --device cpu."
        )
    if training.precision == "fp16" and not has_gpu:
        raise ConfigError("precision is fp16, which needs a GPU. Write precision auto.")
