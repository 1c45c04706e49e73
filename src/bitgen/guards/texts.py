"""Texts that a person gives: no empty ones, no endless ones, and none that is no Unicode."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from bitgen.guards.printable import printable

# How an instruction begins, which has no mark at its end.
_INSTRUCTS = frozenset(
    "answer count describe explain find give identify list locate mark name point say show tell write".split()
)
MOST_CHARACTERS = 10_000  # of a text; a model reads a few hundred tokens of it


def check_texts(texts: Iterable[str], longest: int | None = MOST_CHARACTERS) -> None:
    """Raise ValueError for a text that is empty, too long (None: of any length), or no text."""
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"text {position} is a {type(text).__name__}, not a string")
        if not text.strip():
            raise ValueError(f"text {position} is empty: write something")
        if longest is not None and len(text) > longest:
            raise ValueError(f"text {position} has {len(text):,} characters, at most {longest:,} are taken: shorten it")
        if not is_unicode(text):
            raise ValueError(f"text {position} is not valid Unicode ({printable(text, 60)}): write it anew")


def as_question(text: str, instructions: bool = False) -> str:
    """A question as models learn them: composed Unicode, one plain space between words, and a mark at the end, which
    people leave out.

    Args:
        instructions: models of stage 2 also learn these, such as "count the red things", which get no mark.
    """
    text = " ".join(unicodedata.normalize("NFC", text).split())
    if instructions and text.partition(" ")[0].lower() in _INSTRUCTS:
        return text
    last = text.rstrip("\"'\u201d\u2019\u00bb")[-1:]  # behind quotes
    is_word = last != "" and unicodedata.category(last)[0] in "LNM"  # letters, numbers, and signs on letters
    return f"{text}?" if is_word else text


def is_unicode(text: str) -> bool:
    """Whether a text can be written to a file: half a surrogate pair, or a command line's stray byte, cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
