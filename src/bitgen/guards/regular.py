"""Files whose names come from outside: regular ones of a bounded size, read in one go."""

from __future__ import annotations

import os
import stat
from pathlib import Path


class BadFile(ValueError):
    """No regular file, or one that is too large. The message does not name the file; the caller does."""


def read_regular(path: str | Path, most: int) -> bytes:
    """All bytes of a file, of the one version that was there when it was opened, whoever replaces it meanwhile.

    Raises:
        OSError: it cannot be read.
        BadFile: it is a folder, a pipe or a device, whose reading may never end, or has more than ``most`` bytes.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe without a writer would block
    except ValueError as error:  # NUL or half a surrogate pair in the name
        raise BadFile("its name is none that a file can have") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise BadFile("it is not a regular file")
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read(most + 1)
    finally:
        os.close(descriptor)
    if len(content) > most:
        raise BadFile(f"it has more than {most:,} bytes")
    return content
