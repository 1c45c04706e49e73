"""Files whose names come from outside, read whole: regular ones only, and no larger than expected."""

from __future__ import annotations

import os
import stat
from pathlib import Path

# An image of 50 million pixels, the most that is read by default, has 400 MB at 16 bits a channel and without
# compression.
MOST_BYTES = 500_000_000


class BadFile(ValueError):
    """A file that is not read. The message does not name it; the caller does."""


def read_regular_file(path: str | Path, most: int = MOST_BYTES) -> bytes:
    """All bytes of a regular file, of the one version that was there when it was opened, whoever replaces it meanwhile.
    A pipe or a device would give no end, or none at all.

    Raises:
        OSError: it cannot be read.
        BadFile: it is no regular file, or has more than ``most`` bytes.
    """
    try:
        # Opened without waiting, for a pipe that nobody writes to would never open.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as error:  # NUL or half a surrogate pair in the name
        raise BadFile("its name is none that a file can have") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise BadFile("it is not a regular file")
        if status.st_size > most:
            raise BadFile(f"it has {status.st_size:,} bytes, more than {most:,}")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(status.st_size)
    finally:
        os.close(descriptor)
