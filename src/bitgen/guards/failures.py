"""What other libraries' errors mean for a person: one line, and what to do."""

from __future__ import annotations

import errno
import os
import re

from bitgen.guards.printable import printable

TRACEBACK = "BITGEN_TRACEBACK"  # an environment variable: set, errors are shown with where they happened
_FULL = (errno.ENOSPC, errno.EDQUOT)
# Errors of libraries that need not be loaded here, by name: of safetensors, pickle, zip files and Rust's own.
_DAMAGED = ("SafetensorError", "UnpicklingError", "BadZipFile", "EOFError")
_OF_RUST = ("Exception", "PanicException")
_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "cannot allocate memory")


def is_disk_full(error: BaseException) -> bool:
    """Whether a disk or a quota is full, by the error's number or by what it says."""
    return getattr(error, "errno", None) in _FULL or "No space left" in str(error) or "quota exceeded" in str(error)


def of_worker(text: str) -> str:
    """What an error says, without the traceback that torch puts before the message of a data worker's error."""
    if "Original Traceback" not in text and "Traceback (most recent call last)" not in text:
        return text
    # The last line that starts with an exception's name; the message itself may name others.
    return re.split(r"^[\w.]+: ", text, flags=re.MULTILINE)[-1].strip()


def explained(error: BaseException) -> str | None:
    """An error of a disk, of memory or of a damaged file as one line; None: it may be a mistake in the code."""
    told = of_worker(str(error))
    said = printable(next(iter(told.splitlines()), ""), 300)
    name, text = type(error).__name__, told.lower()
    if is_disk_full(error):
        return f"The disk is full ({said}). Free space on it, then start again."
    if isinstance(error, MemoryError) or any(words in text for words in _NO_MEMORY):
        return f"Memory ran out ({said or name}). Use smaller batches or a smaller model, or a machine with more."
    if isinstance(error, RecursionError):
        return f"A file is nested too deeply ({said}). Name another one."
    if name in _DAMAGED or "PytorchStream" in str(error) or "inline_container" in str(error):
        return f"A file is damaged or cannot be written ({name}: {said}). Restore it from a copy, or name another."
    if isinstance(error, OSError):
        file = f"{printable(os.fsdecode(error.filename), 200)}: " if isinstance(error.filename, (str, bytes)) else ""
        return f"{file}{error.strerror or said or name}. Remove the cause, then start again."
    if "DataLoader worker (pid" in str(error):  # torch's words for one that was killed
        return f"{said} Often memory ran out: lower num_workers, or give the machine or container more."
    if name in _OF_RUST and name == type(error).__qualname__:
        return f"{said or name}. Look at the file or setting that it speaks of."
    return None
