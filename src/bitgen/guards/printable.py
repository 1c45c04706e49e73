"""Text from outside as one line that cannot steer a terminal."""

from __future__ import annotations

import unicodedata

# Control characters, invisible format characters (they turn the direction of a line), surrogates, unassigned code
# points, and the two separators that start a new line.
_UNSAFE = {"Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp"}
_JOINERS = "\u200c\u200d"  # parts of words in Persian and Hindi, and of emoji


def printable(text: object, limit: int = 500) -> str:
    """``str(text)`` on one line: what a terminal would obey is written as an escape, as in ``\\x1b``.

    Args:
        limit: characters at most; what is longer ends in "...".
    """
    whole = str(text)
    shown = "".join(_escaped(character) for character in whole[:limit])
    return shown if len(whole) <= limit else f"{shown}..."


def _escaped(character: str) -> str:
    if unicodedata.category(character) not in _UNSAFE or character in _JOINERS:
        return character
    return character.encode("unicode_escape").decode("ascii")


def printable_lines(text: object) -> str:
    """A message of several lines, each made :func:`printable`."""
    return "\n".join(printable(line, 10_000) for line in str(text).split("\n"))
