"""Columns of tables that other people made: which ones hold the captions."""

from __future__ import annotations

from collections.abc import Collection

from bitgen.data.captions import captions_of, numbered_columns
from bitgen.guards.printable import printable

_CAPTION_COLUMNS = (
    *("caption", "captions", "text", "texts", "sentence", "sentences"),
    *("description", "descriptions", "prompt", "alt_text"),
)


def caption_columns(columns: Collection[str], asked: str | None, where: str) -> list[str]:
    """The columns of captions: those asked for (with commas between), the only one with a usual name, or caption_0 ...

    Raises ``ValueError`` naming ``where`` and the columns when one is not there, or there are none or several.
    """
    present = printable(", ".join(sorted(columns)))
    if asked is not None:
        names = [asked] if asked in columns else [name.strip() for name in asked.split(",")]
        missing = [name for name in names if name not in columns]
        if missing:
            raise ValueError(f"{where} has no column {', '.join(missing)}; it has {present}")
        return names
    usual = [column for column in _CAPTION_COLUMNS if column in columns]
    found = usual or numbered_columns(columns)
    if not found or len(usual) > 1:
        what = f"several columns that may hold captions ({', '.join(usual)})" if usual else "no column of captions"
        raise ValueError(f"{where} has {what}; name one with --caption_column. It has {present}")
    return found


def texts_of(row: dict, columns: list[str], where: str) -> list[str]:
    """The captions of a row, what is missing as an empty text; ``ValueError`` for a cell that is no text."""
    return [text for column in columns for text in captions_of(row.get(column), column, where)]
