"""What stands where a file should: each kind must be refused at once, and not read without end."""

from __future__ import annotations

import os
from pathlib import Path

KINDS = ("folder", "pipe", "device", "dangling link", "name too long")


def make(kind: str, path: Path) -> Path:
    """Puts one of :data:`KINDS` at ``path``, which is returned, or another path where the name is what is wrong."""
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "dangling link":
        path.symlink_to("nowhere")
    else:
        return path.with_name("p" * 300)
    return path
