"""Small tables of text: aligned for a terminal or a log file, and as Markdown for a document."""

from __future__ import annotations

from collections.abc import Sequence

from bitgen.guards.markdown import markdown
from bitgen.guards.printable import printable

Row = Sequence[str]
_LONGEST = 4096  # characters of a cell


def _check(columns: Row, rows: Sequence[Row]) -> None:
    for row in rows:
        assert len(row) == len(columns), f"row {list(row)} has {len(row)} cells, the table {len(columns)} columns"


def format_table(columns: Row, rows: Sequence[Row], title: str | None = None) -> str:
    """A table as plain text: the first column flush left, the others flush right, a rule under the header.

    `columns` of empty strings only (a list of names and values) leaves header and rule out. Cells may hold text from
    data: it stays on its line.
    """
    _check(columns, rows)
    has_header = any(columns)
    cells = ([tuple(columns)] if has_header else []) + [
        tuple(printable(cell, _LONGEST) for cell in row) for row in rows
    ]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))] if cells else []
    lines = [title] if title else []
    for number, row in enumerate(cells):
        aligned = [row[0].ljust(widths[0])]
        # A list of names and values reads better with its values flush left.
        aligned += [(c.rjust(w) if has_header else c.ljust(w)) for c, w in zip(row[1:], widths[1:], strict=True)]
        lines.append(("  " + "  ".join(aligned)).rstrip())
        if number == 0 and has_header:
            lines.append("  " + "  ".join("-" * w for w in widths))
    return "\n".join(lines)


def format_markdown(columns: Row, rows: Sequence[Row]) -> str:
    """The same table in Markdown, numbers flush right. What cells hold is text, and no Markdown of its own."""
    _check(columns, rows)

    def line(row: Row) -> str:
        return "| " + " | ".join(markdown(cell, _LONGEST) for cell in row) + " |"

    rule = "|---|" + "---:|" * (len(columns) - 1)
    return "\n".join([line(columns), rule, *(line(row) for row in rows)])


def print_table(columns: Row, rows: Sequence[Row]) -> bool:
    """Print the table in colour through rich on stderr; False, with nothing printed, where rich is not installed."""
    try:
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return False
    _check(columns, rows)
    table = Table(box=box.SIMPLE_HEAD, show_header=any(columns), pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i and any(columns) else "left", overflow="fold")
    for row in rows:
        # Text, not str: square brackets in a path or a caption are no markup.
        table.add_row(*(Text(printable(cell, _LONGEST)) for cell in row))
    Console(stderr=True).print(table)
    return True
