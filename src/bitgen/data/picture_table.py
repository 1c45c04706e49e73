"""Folders of two tables: rows that name pictures, and the pictures, each stored once however many rows show it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitgen.data.arrow_folder import ArrowWriter, arrow_folder, open_table
from bitgen.data.captions import valid_unicode
from bitgen.data.sidecar import SIDECAR
from bitgen.guards.printable import printable

if TYPE_CHECKING:
    import pyarrow as pa


PICTURES = "pictures"
"""The folder of the table of pictures, in that of the rows."""


def picture_schema() -> pa.Schema:
    """Columns of the table of pictures."""
    import pyarrow as pa

    return pa.schema([("name", pa.string()), ("image", pa.binary())])


class PictureTable:
    """Adds pictures to a table, told apart by their bytes; constant memory but for 16 bytes a picture."""

    def __init__(self, table: ArrowWriter) -> None:
        self._table = table
        self._rows: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, name: str, payload: bytes) -> int:
        """The row of an encoded picture, which is stored unless one with the same bytes is there already."""
        digest = blake2b(payload, digest_size=16).digest()
        if digest not in self._rows:
            self._rows[digest] = len(self._rows)
            self._table.add((valid_unicode(name), payload), len(payload))
        return self._rows[digest]


@contextlib.contextmanager
def two_tables(folder: Path, schema: pa.Schema) -> Iterator[tuple[ArrowWriter, PictureTable]]:
    """Writers of a folder's rows and of its pictures; both tables are complete when the block is left."""
    (folder / PICTURES).mkdir()
    with arrow_folder(folder, schema) as rows, arrow_folder(folder / PICTURES, picture_schema()) as pictures:
        yield rows, PictureTable(pictures)


def write_sidecar(folder: Path, info: Any) -> None:
    """Writes a dataclass as the sidecar of a folder."""
    text = json.dumps(asdict(info), indent=2, ensure_ascii=False)
    (folder / SIDECAR).write_text(text + "\n", encoding="utf-8")


def open_rows(folder: Path, schema: pa.Schema, declared: int, remedy: str) -> Any:
    """The memory-mapped table of a folder, with exactly these columns and ``declared`` rows.

    Raises:
        ValueError: it cannot be read, is damaged, or is another table; the message ends in ``remedy``.
    """
    table = open_table(folder, schema.names, remedy)
    for field in schema:
        found = table.data.schema.field(field.name).type
        if found != field.type:
            raise ValueError(
                f"dataset {folder}: its column {field.name} holds {printable(found, 80)}, not {field.type}: {remedy}"
            )
    if len(table) != declared:
        raise ValueError(f"dataset {folder} holds {len(table)} rows but {SIDECAR} declares {declared}: {remedy}")
    return table
