"""Names that data gives to files, as paths that stay inside the folder they belong to."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

from bitgen.guards.printable import printable

_SNAPSHOTS, _BLOBS = "snapshots", "blobs"
_LONGEST = 255  # bytes in a part of a path, on every common file system


class BadName(ValueError):
    """A name from data that is not that of a file inside its folder."""


class Outside(BadName):
    """A name that leads out of its folder."""


def inside(folder: str | Path, name: str) -> Path:
    """The path of ``name`` in ``folder``, after links are followed. Whether there is a file is not asked.

    In the cache of the Hugging Face Hub each file of a snapshot is a link to the ``blobs`` of its repository, and these
    may be links to blobs of the whole cache. There the path keeps the name, which tells what kind of file it is.

    Raises:
        BadName: the name is empty, holds a control character, or has a part of more than 255 bytes.
        Outside: it is absolute, holds ``..``, or leads out of the folder through a link.
    """
    shown = printable(name, 80)
    if not name or any(unicodedata.category(character) == "Cc" for character in name):
        raise BadName(f"{shown!r} is not the name of a file")
    parts = Path(name.replace("\\", "/")).parts if os.sep == "/" else Path(name).parts
    if Path(name).is_absolute() or ".." in parts:
        raise Outside(f"{shown} leads out of the folder it belongs to")
    try:
        too_long = any(len(os.fsencode(part)) > _LONGEST for part in parts)
    except UnicodeEncodeError as error:
        raise BadName(f"{shown} is not valid Unicode") from error
    if too_long:
        raise BadName(f"{shown} is longer than a file's name can be")
    root = Path(os.path.realpath(folder))
    path = Path(os.path.realpath(root / name))
    if _is_blob(root / name, path, root):
        return root / name
    if root not in (path, *path.parents):
        raise Outside(f"{shown} leads out of the folder it belongs to, through a link")
    return path


def _is_blob(link: Path, path: Path, root: Path) -> bool:
    """Whether a file in a snapshot of the Hub's cache is a link to a blob of its repository, which ``path`` is."""
    if not link.is_symlink() or root not in (folder := Path(os.path.realpath(link.parent)), *folder.parents):
        return False
    first = Path(os.path.normpath(folder / os.readlink(link)))
    for repository in (above.parent for above in root.parents if above.name == _SNAPSHOTS):
        own, shared = repository / _BLOBS, repository.parent / _BLOBS
        if first.parent == own and (path.parent == own or shared in path.parents):
            return True
    return False
