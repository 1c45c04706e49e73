"""Which folders may be written: those that are not there, empty, or of ours and to be replaced."""

from __future__ import annotations

import os
from pathlib import Path


def check_output(folder: str | Path, overwrite: bool, sidecar: str, what: str = "dataset") -> None:
    """Raises ``ValueError`` unless ``folder`` may be written: absent, empty, or to be overwritten and ours.

    ``sidecar`` is the file that tells a folder of ours, ``what`` is how messages call one.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output {folder} is a file; choose another --output")
    if os.path.ismount(folder):  # nothing that is written beside it can take its place
        raise ValueError(f"output {folder} is the top of a mounted disk; choose a folder inside it")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    # Even --overwrite replaces only what this module wrote: a mistyped folder must not cost somebody's photographs.
    if not (folder / sidecar).is_file():
        raise ValueError(f"output {folder} is not empty and not a BitGen {what}; choose another --output")
    if not overwrite:
        raise ValueError(f"output {folder} holds a {what} already; pass --overwrite True or choose another --output")
