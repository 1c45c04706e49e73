"""The files of the BabyLM evaluation as items: candidates, of which the model is to prefer the first."""

from __future__ import annotations

from collections.abc import Callable
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
        sentences: the candidates; the first is right.
        completions: the end of each candidate that is scored.
        groups: the sets it is counted under: ``UID``, and what else the folder sorts by.
        ratio: the share of people who prefer the first candidate (WUG folders alone).
    """

    origin: str
    sentences: tuple[str, ...]
    completions: tuple[str, ...]
    groups: dict[str, str] = field(default_factory=dict)
    ratio: float | None = None


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
            raise ValueError(f"{self.origin} has no field {name!r}: add it, or download the file again")
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


def _blimp(record: Record) -> Item:
    pair = (record.text("sentence_good"), record.text("sentence_bad"))
    if "field" in record:
        groups = {name: record.text(name) for name in ("field", "UID", "linguistics_term")}
        groups["field"] = groups["field"].replace("syntax_semantics", "syntax/semantics")
    else:  # the supplement: a file is a paradigm
        groups = {"field": "supplement", "UID": record.path.stem, "linguistics_term": "supplement"}
    return Item(record.origin, pair, pair, groups)


def _entity_tracking(record: Record) -> Item:
    prefix, options = record.text("input_prefix"), record.texts("options")
    groups = {"UID": f"{record.path.stem}_{record.integer('numops')}_ops"}
    return Item(record.origin, tuple(prefix + option for option in options), options, groups)


def _ewok(record: Record) -> Item:
    context, targets = record.text("Context1"), (record.text("Target1"), record.text("Target2"))
    groups = {
        "UID": record.text("Domain"),
        "context_type": record.text("ContextType"),
        "context_contrast": record.text("ContextDiff"),
        "target_contrast": record.text("TargetDiff"),
    }
    completions = tuple(" " + target for target in targets)
    return Item(record.origin, tuple(context + completion for completion in completions), completions, groups)


def _wug(record: Record) -> Item:
    sentences = tuple(record.text("sentences").split("\t"))
    if len(sentences) < 2:
        raise ValueError(f"{record.origin}: 'sentences' holds one sentence; it must be at least two, with tabs between")
    return Item(record.origin, sentences, sentences, {}, record.number("ratio"))


# By how a folder's name begins, as in the official `evaluation_data`.
_READERS: dict[str, Callable[[Record], Item]] = {
    "blimp": _blimp,
    "supplement": _blimp,
    "entity_tracking": _entity_tracking,
    "ewok": _ewok,
    "wug_adj": _wug,
    "wug_past": _wug,
}


def task_of(folder_name: str) -> str | None:
    """The kind of items that a folder of this name holds (a prefix of the name); None: not one that is read here."""
    return next((task for task in _READERS if folder_name.startswith(task)), None)


def read_items(folder: Path) -> list[Item]:
    """All items of a folder's ``.jsonl`` files, file by file in the order of their names.

    Raises:
        ValueError: no such file, no item, or a record that lacks a field; it names file, line and field.
    """
    task = task_of(folder.name)
    assert task is not None, folder
    items = []
    for path in sorted(folder.glob("*.jsonl")):
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} cannot be read ({error}); download it again") from error
        items += [
            _READERS[task](Record(line, path, number)) for number, line in enumerate(lines, start=1) if line.strip()
        ]
    if not items:
        raise ValueError(f"{folder} holds no .jsonl file with items; download it again, or remove the folder")
    return items
