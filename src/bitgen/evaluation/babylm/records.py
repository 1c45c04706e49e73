"""One question of a BabyLM set, and one line of a file as a record whose fields are checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bitgen.data.captions import valid_unicode
from bitgen.guards.json_files import BadJson, parse_json
from bitgen.guards.printable import printable


@dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
        origin: file and line, for messages.
        sentences: the candidates.
        completions: the end of each candidate that is scored.
        groups: the sets it is counted under: ``UID``, and what else the folder sorts by.
        ratio: the share of people who prefer the first candidate (WUG folders alone).
        label: which candidate is right.
        whole: the official predictions quote the sentence, not its completion.
        per_token: candidates compete by their mean log-probability a token, not by its sum.
    """

    origin: str
    sentences: tuple[str, ...]
    completions: tuple[str, ...]
    groups: dict[str, str] = field(default_factory=dict)
    ratio: float | None = None
    label: int = 0
    whole: bool = False
    per_token: bool = False

    @property
    def answers(self) -> tuple[str, ...]:
        """What the official predictions say of each candidate."""
        return self.sentences if self.whole else self.completions


class Record:
    """One JSON object of a file, whose fields are read by name and kind.

    Every method raises ``ValueError`` naming the line and the field.
    """

    def __init__(self, line: str, path: Path, number: int) -> None:
        self.path, self.origin = path, f"{path} line {number}"
        try:
            self.fields = parse_json(line, dict, nan_is_null=True)
        except BadJson as error:
            kind = "JSON" if error.__cause__ else "a JSON object"
            raise ValueError(f"{self.origin} is not {kind} ({error}); download the file again") from error

    def __contains__(self, name: str) -> bool:
        return name in self.fields

    def _get(self, name: str, kind: type | tuple[type, ...], wanted: str) -> Any:
        if name not in self.fields:
            raise ValueError(
                f"{self.origin} has no field {name!r}: the file is damaged, or of another year's form. Download the "
                "evaluation data of this year again"
            )
        value = self.fields[name]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"{self.origin}: {name!r} is {printable(repr(value), 80)}; it must be {wanted}")
        return value

    def text(self, name: str) -> str:
        """A string of valid Unicode."""
        return self._valid(self._get(name, str, "text"), name)

    def _valid(self, text: str, name: str) -> str:
        if valid_unicode(text) != text:
            raise ValueError(f"{self.origin}: {name!r} is no valid Unicode; download the file again")
        return text

    def integer(self, name: str) -> int:
        """A whole number."""
        return self._get(name, int, "a whole number")

    def name(self, name: str) -> str:
        """A string, or a whole number as one."""
        value = self._get(name, (str, int), "text or a whole number")
        return self._valid(str(value), name)

    def number(self, name: str) -> float:
        """A finite number: :func:`parse_json` takes no other."""
        return float(self._get(name, (int, float), "a number"))

    def texts(self, name: str) -> tuple[str, ...]:
        """Two strings or more."""
        values = self._get(name, list, "a list of texts")
        if len(values) < 2 or not all(isinstance(value, str) for value in values):
            shown = printable(repr(values), 80)
            raise ValueError(f"{self.origin}: {name!r} is {shown}; it must be a list of at least two texts")
        return tuple(self._valid(value, name) for value in values)
