"""Folders that appear whole or not at all, and replace only what was written in the same way."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bitgen.machine.files import fsync


def check_output(folder: str | Path, overwrite: bool, sidecar: str, what: str = "dataset") -> None:
    """Raises ``ValueError`` unless ``folder`` may be written: absent, empty, or to be overwritten and ours.

    ``sidecar`` is the file that tells a folder of ours, ``what`` is how messages call one.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output {folder} is a file; choose another --output")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    # Even --overwrite replaces only what this module wrote: a mistyped folder must not cost somebody's photographs.
    if not (folder / sidecar).is_file():
        raise ValueError(f"output {folder} is not empty and not a BitGen {what}; choose another --output")
    if not overwrite:
        raise ValueError(f"output {folder} holds a {what} already; pass --overwrite True or choose another --output")


@contextmanager
def whole_folder(folder: str | Path) -> Iterator[Path]:
    """Gives a folder to fill, which takes the name ``folder`` when the block ends without an exception.

    Until then, and for good when the block raises, whatever was there before stays. Files are synced to disk first.
    """
    folder = Path(os.path.abspath(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial-", dir=folder.parent))
    try:
        complete = partial / "complete"
        complete.mkdir()
        yield complete
        for path in (*complete.iterdir(), complete):
            fsync(path)
        _put_in_place(complete, folder, partial / "replaced")
        fsync(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _put_in_place(complete: Path, folder: Path, replaced: Path) -> None:
    if folder.exists():
        os.rename(folder, replaced)
    try:
        os.rename(complete, folder)
    except OSError:
        if replaced.exists():
            os.rename(replaced, folder)
        raise
