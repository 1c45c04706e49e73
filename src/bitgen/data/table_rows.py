"""Rows of Arrow tables as records."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from bitgen.data.bad_records import BadRecord
from bitgen.data.captions import captions_of, tidy
from bitgen.data.records import Record

NOT_UTF8 = "text that is not UTF-8"

Columns = tuple[str | None, str, tuple[str, ...]]
"""Names of the id's column, the payload's, and the captions'."""


class TableRows(Sequence[Record]):
    """Rows of an Arrow table as records, converted when asked for: a chunk's bytes exist once.

    Raises ``BadRecord`` for a row whose text is not UTF-8: neither Arrow nor Parquet sees to it.

    Args:
        where: how messages call a row.
        prefix: with the row's number, the id of a row without one.
    """

    def __init__(self, table: Any, columns: Columns, where: Callable[[int], str], prefix: str) -> None:
        ids, payloads, captions = columns
        self._ids = table.column(ids) if ids else None
        self._payloads, self._captions = table.column(payloads), [table.column(name) for name in captions]
        self._rows, self._names, self._where, self._prefix = table.num_rows, captions, where, prefix

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, row: int) -> Record:  # type: ignore[override]  # nobody slices it
        payload = self._payloads[row].as_py()
        try:
            name = self._ids[row].as_py() if self._ids is not None else None
            if isinstance(payload, dict):
                name = name or payload.get("path")
                payload = payload.get("bytes")
            captions = row_captions(self._captions, self._names, row, self._where(row))
        except UnicodeDecodeError as error:
            raise BadRecord(f"{self._where(row)} holds {NOT_UTF8} ({error})", NOT_UTF8) from error
        return Record(str(name) if name is not None else f"{self._prefix}{row}", payload or b"", captions)


def row_captions(values: Sequence[Any], names: Sequence[str], row: int, where: str) -> list[str]:
    """The captions of a row of Arrow columns, as they are trained on; missing and empty ones are left out."""
    cells = zip(names, (column[row].as_py() for column in values), strict=True)
    texts = (text for name, cell in cells for text in captions_of(cell, name, where))
    return [text for text in map(tidy, texts) if text]


def iter_captions(batch: Any, names: Sequence[str], where: str) -> Iterator[str]:
    """The captions of a record batch, row by row; the images are not looked at."""
    columns = [batch.column(name) for name in names]
    for row in range(batch.num_rows):
        with suppress(UnicodeDecodeError):  # named when the row itself is asked for
            yield from row_captions(columns, names, row, where)
