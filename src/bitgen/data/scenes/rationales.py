"""Why an answer is right, in short clauses: written from what the operators of a question gave, and read back.

A clause stands for an operator that gives an object, or for a group that is counted or looked for. It says each object
by its box and its name, the box first: where to look decides what is seen. Clauses are parted by semicolons::

    <b3><b8><b7><b12> small red star; next left <b1><b20><b6><b25> large blue ring

Whether a clause *holds* is decided by the scene alone: the same objects, by name and with boxes that agree, and the
same number. The words before them do not matter.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from bitgen.data.questions.boxes import Box, box_text, intersection_over_union, read_boxes, without_boxes
from bitgen.data.scenes.programs import Program, Step
from bitgen.data.scenes.tables import TableScene

STYLES = 3
AGREE = 0.5  # of two boxes, intersection over union
_SEPARATOR, _NONE = ";", "none"
_BEGIN = ("", "find", "first")
_RELATE = {
    "left": ("left", "to its left", "left of it"), "right": ("right", "to its right", "right of it"),
    "above": ("above", "above it", "higher"), "below": ("below", "below it", "lower"),
}  # fmt: skip
_NEAREST = ("next {}", "just {}", "the next {}")
_SAME = ("same {}", "of its {}", "alike in {}")
_BOTH, _EITHER, _THOSE = ("both", "in both", "common"), ("either", "one or the other", "any"), ("those", "they", "all")
_SO = ("makes", "so", "that is")
_ITEM = re.compile(r"((?:<b\d{1,2}>\s*){4})([^<,;]*)")
_NUMBER = re.compile(r"\b(\d{1,2})\b")


class Item(NamedTuple):
    """An object as a clause says it; ``box`` None: its marks are no box."""

    box: Box | None
    name: str


class Clause(NamedTuple):
    """What a clause says: objects, and how many there are where it says that."""

    items: tuple[Item, ...]
    number: int | None = None


class _Expected(NamedTuple):
    words: tuple[str, str, str]
    objects: tuple[int, ...]
    counts: bool


def write_rationale(scene: TableScene, steps: Sequence[Step], style: int) -> str:
    """The clauses of a question's steps, in one of STYLES wordings."""
    return f"{_SEPARATOR} ".join(_written(scene, one, style) for one in _expected(scene, steps))


def object_text(scene: TableScene, index: int) -> str:
    """An object with its box: ``<b3><b8><b7><b12> small red star``."""
    return f"{box_text(scene.box(index))} {scene.name(index)}"


def _written(scene: TableScene, clause: _Expected, style: int) -> str:
    items = ", ".join(object_text(scene, index) for index in clause.objects) or _NONE
    so = f" {_SO[style]} {len(clause.objects)}" if clause.counts and clause.objects else ""
    return f"{clause.words[style]} {items}{so}".strip()


def _expected(scene: TableScene, steps: Sequence[Step]) -> list[_Expected]:
    """What the clauses of a question must say, from the left to the right of the picture where there are several."""
    found: list[_Expected] = []
    for step in steps:
        one, result = step
        if one.gives == "object":
            assert isinstance(result, int)
            source = one.inputs[0] if one.name == "unique" else one
            found.append(_Expected(_words(source, _BEGIN), (result,), False))
        elif one.name in ("count", "exist"):
            group = next(given.result for given in steps if given.operator is one.inputs[0])
            assert isinstance(group, tuple)
            ordered = tuple(sorted(group, key=lambda index: scene.objects[index].x))
            found.append(_Expected(_words(one.inputs[0], _THOSE), ordered, one.name == "count"))
    return found


def _words(source: Program, begin: tuple[str, str, str]) -> tuple[str, str, str]:
    """How a clause about a set, or the next object, begins, in each style."""
    while source.name == "filter":
        source = source.inputs[0]
    if source.name == "relate":
        return _RELATE[source.words[0]]
    if source.name in ("nearest", "same"):
        forms = _NEAREST if source.name == "nearest" else _SAME
        first, second, third = (form.format(source.words[0]) for form in forms)
        return first, second, third
    return {"and": _BOTH, "or": _EITHER}.get(source.name, begin)


def read_rationale(text: str) -> list[Clause]:
    """The clauses of a text, whatever else it says."""
    return [_read(part) for part in text.split(_SEPARATOR) if part.strip()]


def _read(text: str) -> Clause:
    items, after = [], text
    for match in _ITEM.finditer(text):
        (box,) = read_boxes(match[1])
        name, so, _ = match[2].partition(next((f" {word} " for word in _SO if f" {word} " in match[2]), "\n"))
        items.append(Item(box, " ".join(name.split())))
        after = match[2] if so else ""
    if not items:
        return Clause((), 0 if text.split()[-1:] == [_NONE] else None)
    number = _NUMBER.search(without_boxes(after))
    return Clause(tuple(items), int(number[1]) if number else None)


def clauses_that_hold(scene: TableScene, steps: Sequence[Step], text: str) -> tuple[int, int]:
    """How many clauses of a rationale hold, and of how many: those that it says, or should say if that is more."""
    said, expected = read_rationale(text), _expected(scene, steps)
    held = sum(_holds(scene, clause, wanted) for clause, wanted in zip(said, expected, strict=False))
    return held, max(len(said), len(expected))


def is_there(scene: TableScene, clause: Clause) -> bool:
    """Whether every thing that a clause names is where it says, and their number is the one that it gives: as far as a
    clause can be checked without knowing what was asked."""
    there = all(any(_is(scene, index, item) for index in range(len(scene.objects))) for item in clause.items)
    return there and (clause.number is None or clause.number == len(clause.items))


def _holds(scene: TableScene, clause: Clause, wanted: _Expected) -> bool:
    left = list(wanted.objects)
    for item in clause.items:
        found = next((index for index in left if _is(scene, index, item)), None)
        if found is None:
            return False
        left.remove(found)
    says_how_many = wanted.counts or not wanted.objects  # and that there is none
    return not left and (not says_how_many or clause.number == len(wanted.objects))


def _is(scene: TableScene, index: int, item: Item) -> bool:
    if item.box is None or item.name != scene.name(index):
        return False
    return intersection_over_union(item.box, scene.box(index)) >= AGREE
