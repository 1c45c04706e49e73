"""Columns of tables that other people made: which one holds the captions, and what a cell of it means."""

from __future__ import annotations

from collections.abc import Collection

_CAPTION_COLUMNS = (
    *("caption", "captions", "text", "texts", "sentence", "sentences"),
    *("description", "descriptions", "prompt", "alt_text"),
)


def caption_column(columns: Collection[str], asked: str | None, where: str) -> str:
    """The column of captions: the one asked for, or the only one with a usual name.

    Raises ``ValueError`` naming ``where`` and the columns when it is not there, or there are none or several.
    """
    present = ", ".join(sorted(columns))
    if asked is not None:
        if asked not in columns:
            raise ValueError(f"{where} has no column {asked}; it has {present}")
        return asked
    usual = [column for column in _CAPTION_COLUMNS if column in columns]
    if len(usual) != 1:
        what = f"several columns that may hold captions ({', '.join(usual)})" if usual else "no column of captions"
        raise ValueError(f"{where} has {what}; name one with --caption_column. It has {present}")
    return usual[0]


def texts_of(cell: object, column: str, where: str) -> list[str]:
    """The captions of a cell: a string, a list of strings, or nothing."""
    if cell is None:
        return []
    if isinstance(cell, str):
        return [cell]
    if isinstance(cell, list) and all(isinstance(text, str) for text in cell):
        return cell
    raise ValueError(
        f"{where}: {column} holds {str(cell)[:60]!r}, neither a string nor a list of strings; "
        "name another column with --caption_column"
    )
