"""Text from outside as a piece of a Markdown document, which it cannot change: no tags, links, pictures or cells."""

from __future__ import annotations

from bitgen.guards.printable import printable

# Underscores stay: inside words they mean nothing, and names of data sets and figures are full of them.
_WRITTEN = {"&": "&amp;", "<": "&lt;", ">": "&gt;"} | {character: f"\\{character}" for character in "\\`*[]|"}


def markdown(text: object, limit: int = 500) -> str:
    """:func:`printable` text, whose characters stand for themselves where Markdown is rendered."""
    return "".join(_WRITTEN.get(character, character) for character in printable(text, limit))
