"""Folders as the cache of the Hugging Face Hub holds them: every file is a link to a blob of its repository. Blobs of
files that are no text are links themselves, to blobs of the whole cache."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

COMMIT = "a" * 40


def as_in_the_cache(folder: Path, cache: Path) -> Path:
    """A snapshot in ``cache`` of what ``folder`` holds, which stays."""
    blobs = cache / f"models--x--{folder.name}" / "blobs"
    snapshot = blobs.parent / "snapshots" / COMMIT
    blobs.mkdir(parents=True)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = hashlib.sha256(path.read_bytes()).hexdigest()
            blob, link = blobs / name, snapshot / path.relative_to(folder)
            if path.suffix in (".json", ".md", ".py", ".txt"):
                shutil.copy(path, blob)
            elif not blob.is_symlink():
                shared = cache / "blobs" / name[:2] / name
                shared.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, shared)
                blob.symlink_to(os.path.relpath(shared, blob.parent))
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot
