"""Faults on purpose: a file system that fails, or a process that dies, at its n-th operation; flipped bits.

    with failing(folder, at=3, action=raising(errno.ENOSPC)) as operations:
        write(folder)  # its third operation on a file in `folder` raises OSError
    operations.fired  # False where there were fewer: all have then been tried

What C++ and Rust write by themselves (Arrow, safetensors) is not seen; opening, syncing, renaming and removing are.
"""

from __future__ import annotations

import builtins
import contextlib
import io
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

Action = Callable[[str], None]

# Of `os`: each takes a path, or two, or an open file's number (fsync).
_CALLS = ("open", "fsync", "replace", "rename", "link", "symlink", "mkdir", "rmdir", "unlink", "chmod")


class Operations:
    """Counts operations on the files of a folder; ``log`` has their names, ``fired`` says whether one was ours."""

    def __init__(self, folder: Path, at: int, action: Action) -> None:
        self.folder, self.at, self.action = os.path.realpath(folder), at, action
        self.log: list[str] = []

    @property
    def fired(self) -> bool:
        return 0 < self.at <= len(self.log)

    def concerns(self, path: object) -> bool:
        if isinstance(path, int):
            path = os.path.realpath(f"/proc/self/fd/{path}")
        if not isinstance(path, (str, os.PathLike)):
            return False
        return os.path.abspath(os.fsdecode(path)).startswith(self.folder)

    def happen(self, name: str) -> None:
        self.log.append(name)
        if len(self.log) == self.at:
            self.action(name)


class _File(io.FileIO):
    """A file whose writes are operations too."""

    operations: Operations

    def write(self, content: Any) -> int | None:
        self.operations.happen("write")
        return super().write(content)


@contextlib.contextmanager
def failing(folder: Path, at: int = 0, action: Action = lambda name: None) -> Iterator[Operations]:
    """In the block the ``at``-th operation on a file in ``folder`` does ``action`` first; 0: none does."""
    operations = Operations(folder, at, action)
    real_open = builtins.open

    def counted(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(*arguments: Any, **named: Any) -> Any:
            if any(operations.concerns(argument) for argument in arguments[:2]):
                operations.happen(name)
            return real(*arguments, **named)

        return call

    def opened(file: Any, mode: str = "r", buffering: int = -1, *text: Any, **named: Any) -> Any:
        if isinstance(file, int) or not set(mode) & set("wax+") or not operations.concerns(file):
            return real_open(file, mode, buffering, *text, **named)
        operations.happen("open")
        raw = _File(file, mode.replace("b", "").replace("t", ""))
        raw.operations = operations
        if buffering == 0:
            return raw
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        if "b" in mode:
            return buffered
        return io.TextIOWrapper(buffered, *text, **{key: value for key, value in named.items() if key != "opener"})

    with contextlib.ExitStack() as patches:
        for name in _CALLS:
            patches.enter_context(mock.patch.object(os, name, counted(name)))
        for module in (builtins, io):
            patches.enter_context(mock.patch.object(module, "open", opened))
        yield operations


def raising(number: int) -> Action:
    """The operation fails with this ``errno``."""

    def action(name: str) -> None:
        raise OSError(number, os.strerror(number))

    return action


def dying(name: str) -> None:
    """The process is gone before the operation, as by ``kill -9`` or a power cut."""
    os.kill(os.getpid(), signal.SIGKILL)


def in_a_fork(work: Callable[[], object], seconds: float = 60) -> int:
    """Do ``work`` in a copy of this process; its exit status, negative for the signal that ended it.

    Raises:
        TimeoutError: it was not done in time; it is then gone.
    """
    sys.stdout.flush()
    process = os.fork()
    if process == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    raise TimeoutError(f"it took more than {seconds} seconds")


def flip(path: Path, bit: int) -> None:
    """Turn one bit of a file."""
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def spread_bits(path: Path, count: int) -> list[int]:
    """So many bits of a file, spread over all of its ranges of bytes, each at another place in its byte."""
    size = path.stat().st_size
    return [8 * (number * size // count) + number % 8 for number in range(count)]


def names(folder: Path) -> list[str]:
    """What a folder holds, and all below it, but locks, which stay."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.name.endswith(".lock"))
