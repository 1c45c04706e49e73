"""A file or folder that one process at a time works on."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

logger = logging.getLogger(__name__)
_held: set[BinaryIO] = set()


def _let_go_in_child() -> None:
    """A forked process, as a data worker is, would hold its parent's locks for as long as it outlives a killed one."""
    for file in _held:
        file.close()
    _held.clear()


os.register_at_fork(after_in_child=_let_go_in_child)


class InUse(ValueError):
    """Another process holds the lock, or this one does already."""


@contextlib.contextmanager
def exclusive(lock: str | Path, what: str, remedy: str) -> Iterator[None]:
    """Hold the file ``lock`` until the block ends; the system lets it go when the process dies.

    Args:
        what: what is locked, as a message's subject: "checkpoints/run is in use by ...".
        remedy: what to do about it.

    Raises:
        InUse: another process has it, named by its number and host, or this process has it already.
        ValueError: the lock cannot be written.
    """
    lock = Path(lock)
    try:
        file = open(lock, "a+b")  # noqa: SIM115 (closed below, which also lets the lock go)
    except OSError as error:
        raise ValueError(f"{what}: cannot write there ({error.strerror or error})") from error
    with file, _of_this_process(file):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read(200).decode("utf-8", "replace").strip()
            by = f"another process ({holder})" if holder.isprintable() and holder else "another process"
            if any(os.path.samestat(os.fstat(file.fileno()), os.fstat(other.fileno())) for other in _held - {file}):
                by = "this process already"
            raise InUse(f"{what} is in use by {by}. {remedy}") from error
        except OSError as error:  # some network file systems have no locks, and work must go on there
            logger.warning("%s cannot be locked (%s): let no other process work on it", what, error.strerror or error)
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        file.flush()
        yield


@contextlib.contextmanager
def _of_this_process(file: BinaryIO) -> Iterator[None]:
    _held.add(file)
    try:
        yield
    finally:
        _held.discard(file)
