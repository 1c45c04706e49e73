"""The file that says what a dataset's folder holds: read, and refused with the remedy where it is another kind's."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from bitgen.guards.json_files import BadJson, check_keys, read_json
from bitgen.guards.printable import printable

SIDECAR = "bitgen_dataset.json"
FORMAT_VERSION = 1
KINDS = {
    "images": "images with captions",
    "features": "stored features with captions",
    "conversations": "conversations",
    "questions": "questions",
}
"""What the folders hold, by the sidecar's ``kind``."""

Fields = Mapping[str, type | tuple[type, ...]]


def read_sidecar(
    folder: str | Path, kinds: Collection[str], fields: Fields, required: Collection[str], remedy: str
) -> dict[str, Any]:
    """The sidecar of a dataset's folder, with values of the right types.

    Args:
        kinds: those that the caller reads.
        fields: the types of all fields that there are; those ``required`` must be there.
        remedy: how to make such a folder, for messages.

    Raises:
        ValueError: what is missing or wrong in it.
    """
    folder = Path(folder)
    if not folder.exists():
        raise ValueError(f"data folder {folder} does not exist: {remedy}")
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file, not a data folder: {remedy}")
    path = folder / SIDECAR
    if not path.is_file():
        raise ValueError(f"{folder} is not a BitGen dataset (it has no {SIDECAR}): {remedy}")
    try:
        raw = read_json(path, dict)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}; check its permissions") from error
    except BadJson as error:
        raise ValueError(f"{path} is not valid JSON of a JSON object ({error}): {remedy}") from error
    kind = raw.get("kind")
    if isinstance(kind, str) and kind in KINDS and kind not in kinds:
        wanted = " or ".join(KINDS[each] for each in kinds)
        raise ValueError(f"{folder} holds {KINDS[kind]}, and {wanted} are needed here: {remedy}")
    if raw.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format_version {raw.get('format_version')!r}; this BitGen reads {FORMAT_VERSION}: {remedy}"
        )
    unknown = sorted(set(raw) - set(fields))
    if unknown:
        raise ValueError(f"{path} has unknown fields: {printable(', '.join(unknown), 200)}; remove them, or {remedy}")
    try:
        check_keys(raw, {name: fields[name] for name in {*required, *raw}})
    except BadJson as error:
        raise ValueError(f"{path}: {error}; {remedy}") from error
    return raw
