"""CSV files with a header: rows of as many cells, or one error that names the line."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from bitgen.guards.printable import printable

_LONGEST_CELL = 1 << 24  # characters; the standard library's own limit, 131,072, is less than a page that was scraped


class BadCsv(ValueError):
    """A file that is no CSV with a header. The message names the line, not the file; the caller does."""


def read_csv(path: str | Path) -> Iterator[tuple[int, dict[str, str]]]:
    """``(line, row)`` of each row of a UTF-8 file: the number of the line it ends on, and its cells by column.

    Raises:
        OSError: it cannot be read.
        UnicodeDecodeError: it is not UTF-8.
        BadCsv: a quote is not closed, a row has not the cells of the header, or two columns have one name.
    """
    csv.field_size_limit(_LONGEST_CELL)
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file, strict=True)
        try:
            header = next(rows, [])
            twice = next((name for name in header if header.count(name) > 1), None)
            if twice is not None:
                raise BadCsv(f"line {rows.line_num} names two columns {printable(twice, 40)!r}")
            for cells in rows:
                if not cells:
                    continue
                if len(cells) != len(header):
                    raise BadCsv(
                        f"line {rows.line_num} does not have the {len(header)} cells of the header (a cell with "
                        f"commas needs quotes): {printable(cells, 200)}"
                    )
                yield rows.line_num, dict(zip(header, cells, strict=True))
        except csv.Error as error:
            raise BadCsv(
                f"line {rows.line_num} is not CSV ({error}); a quote within quotes is written twice"
            ) from error
