"""Why an answer is right, in short clauses: written from what the operators of a question gave, and read back.

A clause stands for an operator that gives an object, or for a group that is counted or looked for. It says each object
by its box and its name, the box first: where to look decides what is seen. Clauses are parted by semicolons::

    <b3><b8><b7><b12> small red star; next left <b1><b20><b6><b25> large blue ring

Of a group that two others have in common, these are named first, without boxes; and before two things are compared,
their values stand side by side::

    left small red star, large blue ring; above large blue ring; both <b1><b20><b6><b25> large blue ring makes 1
    <b3><b8><b7><b12> small red star; <b1><b20><b6><b25> large blue ring; colours red, blue

Whether a clause *holds* is decided by the scene alone: the same objects, by name and, where they have them, with boxes
that agree, the same number, the same values. The words before them do not matter.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from bitgen.data.questions.boxes import Box, box_text, intersection_over_union, read_boxes, without_boxes
from bitgen.data.scenes.programs import ATTRIBUTES, Program, Step, attribute
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
_COMPARED = ("{}s", "compare {}", "as {}")
_ITEM = re.compile(r"((?:<b\d{1,2}>\s*){4})([^<,;]*)")
_NUMBER = re.compile(r"\b(\d{1,2})\b")
_VALUES = [value for values in ATTRIBUTES.values() for value in values]
_NAME = re.compile(
    rf"\b({'|'.join(ATTRIBUTES['size'])}) ({'|'.join(ATTRIBUTES['colour'])}) ({'|'.join(ATTRIBUTES['shape'])})$"
)
_VALUE = re.compile(rf"\b(\d{{1,2}}|{'|'.join(_VALUES)})\b")


class Item(NamedTuple):
    """An object as a clause says it; ``box`` None: its marks are no box."""

    box: Box | None
    name: str


class Clause(NamedTuple):
    """What a clause says: objects, and how many there are where it says that; or objects by their names alone; or
    values that are compared. ``number`` 0 alone: that there is none."""

    items: tuple[Item, ...]
    number: int | None = None
    names: tuple[str, ...] = ()
    values: tuple[str, ...] = ()


class _Expected(NamedTuple):
    words: tuple[str, str, str]
    objects: tuple[int, ...]
    counts: bool = False
    by_name: bool = False
    values: tuple[str, ...] = ()


def write_rationale(scene: TableScene, steps: Sequence[Step], style: int) -> str:
    """The clauses of a question's steps, in one of STYLES wordings."""
    return f"{_SEPARATOR} ".join(_written(scene, one, style) for one in _expected(scene, steps))


def object_text(scene: TableScene, index: int) -> str:
    """An object with its box: ``<b3><b8><b7><b12> small red star``."""
    return f"{box_text(scene.box(index))} {scene.name(index)}"


def _written(scene: TableScene, clause: _Expected, style: int) -> str:
    if clause.values:
        return f"{clause.words[style]} {', '.join(clause.values)}"
    if clause.by_name:
        names = ", ".join(scene.name(index) for index in clause.objects) or _NONE
        return f"{clause.words[style]} {names}"
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
            found.append(_Expected(_words(source, _BEGIN), (result,)))
        elif one.name == "and":
            found += [_Expected(_words(part, _THOSE), _group(scene, steps, part), by_name=True) for part in one.inputs]
        elif one.name in ("count", "exist"):
            group = _group(scene, steps, one.inputs[0])
            found.append(_Expected(_words(one.inputs[0], _THOSE), group, one.name == "count"))
        elif one.name == "compare":
            of_objects = one.words[0] in ATTRIBUTES
            given = [_result(steps, part) for part in one.inputs]
            values = tuple(attribute(scene, at, one.words[0]) if of_objects else str(at) for at in map(int, given))
            found.append(_Expected(_compared(one.words[0] if of_objects else "number"), (), values=values))
    return found


def _compared(what: str) -> tuple[str, str, str]:
    first, second, third = (form.format(what) for form in _COMPARED)
    return first, second, third


def _result(steps: Sequence[Step], operator: Program) -> Any:
    return next(step.result for step in steps if step.operator is operator)


def _group(scene: TableScene, steps: Sequence[Step], operator: Program) -> tuple[int, ...]:
    """The objects that an operator gave, from the left to the right."""
    return tuple(sorted(_result(steps, operator), key=lambda index: scene.objects[index].x))


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
    return [_read(part) for part in _clauses_of(text)]


def _clauses_of(text: str) -> list[str]:
    return [part.strip() for part in text.split(_SEPARATOR) if part.strip()]


def _read(text: str) -> Clause:
    items, after = [], text
    for match in _ITEM.finditer(text):
        (box,) = read_boxes(match[1])
        name, so, _ = match[2].partition(next((f" {word} " for word in _SO if f" {word} " in match[2]), "\n"))
        items.append(Item(box, " ".join(name.split())))
        after = match[2] if so else ""
    if not items:
        return _without_boxes(text)
    number = _NUMBER.search(without_boxes(after))
    return Clause(tuple(items), int(number[1]) if number else None)


def _without_boxes(text: str) -> Clause:
    if text.split()[-1:] == [_NONE]:
        return Clause((), 0)
    parts = [" ".join(part.split()) for part in text.split(",")]
    said = [_NAME.search(part) for part in parts]
    if all(said):
        return Clause((), names=tuple(match[0] for match in said if match))
    return Clause((), values=tuple(_VALUE.findall(text)))


def clauses_that_hold(scene: TableScene, steps: Sequence[Step], text: str) -> tuple[int, int]:
    """How many clauses of a rationale hold, and of how many: those that it says, or should say if that is more."""
    said, expected = checked_clauses(scene, steps, text), _expected(scene, steps)
    return sum(holds for _, holds in said), max(len(said), len(expected))


def checked_clauses(scene: TableScene, steps: Sequence[Step], text: str) -> list[tuple[str, bool]]:
    """Each clause that a rationale says, and whether it holds; those that should not be there do not."""
    said, expected = _clauses_of(text), _expected(scene, steps)
    held = [_holds(scene, _read(part), wanted) for part, wanted in zip(said, expected, strict=False)]
    return list(zip(said, [*held, *[False] * (len(said) - len(held))], strict=True))


def things_named(scene: TableScene, text: str) -> tuple[int, int]:
    """How many things a description names with the right name and box, each thing once, and how many it names."""
    items = [item for clause in read_rationale(text) for item in clause.items]
    left = list(range(len(scene.objects)))
    for item in items:
        found = next((index for index in left if _is(scene, index, item)), None)
        if found is not None:
            left.remove(found)
    return len(scene.objects) - len(left), len(items)


def is_there(scene: TableScene, clause: Clause) -> bool | None:
    """Whether every thing that a clause names is where it says, and their number is the one that it gives: as far as a
    clause can be checked without knowing what was asked; None: it names no thing."""
    if not clause.items and not clause.names:
        return None
    every = range(len(scene.objects))
    there = all(any(_is(scene, index, item) for index in every) for item in clause.items)
    there = there and all(any(scene.name(index) == name for index in every) for name in clause.names)
    return there and (clause.number is None or clause.number == len(clause.items))


def _holds(scene: TableScene, clause: Clause, wanted: _Expected) -> bool:
    if wanted.values:
        return clause == Clause((), values=wanted.values)
    if wanted.by_name and wanted.objects:
        return clause == Clause((), names=clause.names) and sorted(clause.names) == sorted(
            map(scene.name, wanted.objects)
        )
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
