"""The file of results: a JSON object of tasks, each an object of figures, or of objects of figures."""

import contextlib
import errno
import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

Results = dict[str, dict[str, Any]]


def check_writable(path: str) -> None:
    """Find out before the work, not after it, that results cannot be written: then ValueError. Makes the folder."""
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise ValueError(f"{path}: cannot write there ({error.strerror or error}); name another file") from error


def write_results(results: Results, path: str) -> None:
    """Write as JSON, atomically. NaN becomes null. Errors as in :func:`write_whole`."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(part) for name, part in value.items()}
        if isinstance(value, list):
            return [plain(part) for part in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    write_whole(path, (json.dumps(plain(results), indent=2, allow_nan=False) + "\n").encode())


def write_whole(path: str | Path, content: bytes) -> None:
    """Write atomically: whoever reads the file sees the old content or the new one.

    Raises ValueError when it cannot be written; a file that was there is then untouched.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise ValueError(f"{path}: cannot write it ({error.strerror or error})") from error
