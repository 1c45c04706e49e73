"""What files written by others still need: to be on the disk, and to be readable."""

from __future__ import annotations

import os
from pathlib import Path


def fsync(path: str | Path) -> None:
    """Wait until a file's content, or a folder's list of names, has reached the disk.

    Raises:
        OSError: the disk says no.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def apply_umask(path: str | Path) -> None:
    """Give a file the rights that a plain ``open`` would have: safetensors makes it readable by its owner alone."""
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(path, 0o666 & ~umask)
