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

    In the cache of the Hugging Face Hub each file of a snapshot is a link to the ``blobs`` of its repository. There the
    path keeps the name, which tells what kind of file it is.

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
    if any(above.name == _SNAPSHOTS and path.parent == above.parent / _BLOBS for above in root.parents):
        return root / name
    if root not in (path, *path.parents):
        raise Outside(f"{shown} leads out of the folder it belongs to, through a link")
    return path
