"""Captions that other people wrote down: which columns hold them, what a cell means, and what its text becomes."""

from __future__ import annotations

import math
import re
from collections.abc import Collection

from bitgen.guards.printable import printable

LONGEST = 20_000
"""Characters of a caption; no model here reads as many, and a page that was scraped along has more."""

# Control characters, and the two separators that start a new line.
_BREAKS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_NUMBERED = re.compile(r"(caption|text|sentence|description)s?[_ -]?(\d{1,3})")
# A column of translations has a text a language: {"en": ..., "de": ...}, or "pt-BR".
_LANGUAGE = re.compile(r"[a-z]{2}([-_][A-Za-z]{2,4})?")


def numbered_columns(columns: Collection[str]) -> list[str]:
    """``caption_0``, ``caption_1`` ... among ``columns``, in the order of their numbers; none where only one is so."""
    found = {column: match for column in columns if (match := _NUMBERED.fullmatch(column))}
    if len(found) < 2 or len({match[1] for match in found.values()}) > 1:
        return []
    return sorted(found, key=lambda column: int(found[column][2]))


def is_languages(names: Collection[str]) -> bool:
    """Whether an object with these fields holds a text in each of several languages."""
    return len(names) > 0 and all(_LANGUAGE.fullmatch(name) for name in names)


def captions_of(cell: object, column: str, where: str) -> list[str]:
    """The captions of a cell: a text, a list of texts, or an object with a text in each language.

    What is missing (null, or NaN in a table that a program wrote) is an empty text, for the caller to count.

    Raises:
        ValueError: the cell holds something else; the message names ``where``, the column and the kind.
    """
    if isinstance(cell, dict) and is_languages(cell):
        cell = list(cell.values())
    texts = cell if isinstance(cell, list) else [cell]
    for text in texts:
        if not (text is None or isinstance(text, str) or (isinstance(text, float) and math.isnan(text))):
            kind = f"a list with {_kind(text)}" if cell is texts else _kind(text)
            raise ValueError(
                f"{where}: {printable(column, 40)} holds {kind}, {printable(repr(cell), 60)}, neither a string nor a "
                "list of strings; name another column, or mend that record"
            )
    return [text if isinstance(text, str) else "" for text in texts]


def _kind(value: object) -> str:
    names = {dict: "an object", int: "a number", float: "a number", list: "a list"}
    return names.get(type(value), type(value).__name__)


def valid_unicode(text: str) -> str:
    """``text`` with the halves of surrogate pairs joined; a half without the other becomes U+FFFD."""
    if not text.isascii():
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def tidy(text: str) -> str:
    """A caption as it is stored and trained on: one line of valid Unicode, of at most 20,000 characters, with one plain
    space between words, so that its tokens tell how many words it has."""
    if not text.isprintable():
        text = " ".join(_BREAKS.split(valid_unicode(text)))
    return " ".join(text.split())[:LONGEST].strip()
