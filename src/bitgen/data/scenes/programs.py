"""What a question asks, as a program, and the executor that answers it from the description of a scene.

A program is a tree of operators, written as ``query(colour, nearest(left, unique(filter(shape, star, scene))))``:

=========  =======================  ============================================================
operator   takes                    gives
=========  =======================  ============================================================
scene                               all objects
filter     attribute, value, set    those of the set with that colour, shape or size
unique     set                      its only object
relate     direction, object        the objects on that side of it
nearest    direction, object        the next object on that side: the one whose centre is nearest along that axis
same       attribute, object        the other objects that agree with it
and, or    set, set                 what both have; what either has
count      set                      how many
exist      set                      whether there is one
query      attribute, object        its colour, shape or size
compare    attribute, two objects   whether they agree
compare    more, fewer or equal,    whether the first number is that, beside the second
           two numbers
=========  =======================  ============================================================

The operators are those of CLEVR (arXiv 1612.06890, section 3.3), with ``nearest`` in addition.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from bitgen.data.scenes.descriptions import COLOURS, SHAPES
from bitgen.data.scenes.tables import SIZES, TableScene

ATTRIBUTES: dict[str, tuple[str, ...]] = {"colour": COLOURS, "shape": SHAPES, "size": SIZES}
DIRECTIONS = ("left", "right", "above", "below")
COMPARISONS = ("more", "fewer", "equal")
SET, OBJECT, NUMBER, TRUTH, VALUE = "set", "object", "number", "truth", "value"
_SET_OF, _OBJECT_OF = (SET,), (OBJECT,)
# Of each operator: its words, what it takes and what it gives. `compare` takes objects or numbers by its word.
_SIGNATURES: dict[str, tuple[tuple[tuple[str, ...] | None, ...], tuple[str, ...], str]] = {
    "scene": ((), (), SET),
    "filter": ((tuple(ATTRIBUTES), None), _SET_OF, SET),
    "unique": ((), _SET_OF, OBJECT),
    "relate": ((DIRECTIONS,), _OBJECT_OF, SET),
    "nearest": ((DIRECTIONS,), _OBJECT_OF, OBJECT),
    "same": ((tuple(ATTRIBUTES),), _OBJECT_OF, SET),
    "and": ((), (SET, SET), SET),
    "or": ((), (SET, SET), SET),
    "count": ((), _SET_OF, NUMBER),
    "exist": ((), _SET_OF, TRUTH),
    "query": ((tuple(ATTRIBUTES),), _OBJECT_OF, VALUE),
    "compare": (((*ATTRIBUTES, *COMPARISONS),), (), TRUTH),
}
_MOST_OPERATORS = 64
_TOKENS = re.compile(r"[a-z]+|[(),]|\S")

Result = tuple[int, ...] | int | bool | str
"""Of a set its objects in ascending order; of an object its index; a number, a truth or a value."""


class ProgramError(ValueError):
    """A program that is none, or that a scene gives no answer to."""


@dataclass(frozen=True)
class Program:
    """An operator with its words and the operators that it takes."""

    name: str
    words: tuple[str, ...] = ()
    inputs: tuple[Program, ...] = ()

    def __str__(self) -> str:
        parts = [*self.words, *map(str, self.inputs)]
        return f"{self.name}({', '.join(parts)})" if parts else self.name

    def operators(self) -> Iterator[Program]:
        """All operators, each after those that it takes."""
        for one in self.inputs:
            yield from one.operators()
        yield self

    @property
    def gives(self) -> str:
        """The kind of its result: set, object, number, truth or value."""
        return _SIGNATURES[self.name][2]

    @property
    def hops(self) -> int:
        """How many times it goes from an object to others, on its longest path."""
        own = self.name in ("relate", "nearest", "same")
        return own + max((one.hops for one in self.inputs), default=0)


class Step(NamedTuple):
    """An operator and what it gave."""

    operator: Program
    result: Result


def parse_program(text: str) -> Program:
    """A program as it is written.

    Raises:
        ProgramError: it does not parse, or an operator is unknown or takes something else.
    """
    tokens = _TOKENS.findall(text)
    if sum(token in _SIGNATURES for token in tokens) > _MOST_OPERATORS:
        raise ProgramError(f"the program has more than {_MOST_OPERATORS} operators")
    program, rest = _parsed(tokens, 0)
    if rest != len(tokens):
        raise ProgramError(f"the program goes on after its end, at {tokens[rest]!r}")
    return program


def _parsed(tokens: list[str], at: int, depth: int = 0) -> tuple[Program, int]:
    name = tokens[at] if at < len(tokens) else "its end"
    if name not in _SIGNATURES:
        raise ProgramError(f"{name[:40]!r} is no operator; use one of {', '.join(_SIGNATURES)}")
    if depth > _MOST_OPERATORS:
        raise ProgramError(f"the program is nested more than {_MOST_OPERATORS} deep")
    words: list[str] = []
    inputs: list[Program] = []
    at += 1
    if at < len(tokens) and tokens[at] == "(":
        while True:
            at += 1
            follows = tokens[at + 1] if at + 1 < len(tokens) else ""
            if at < len(tokens) and tokens[at] in _SIGNATURES and (follows == "(" or tokens[at] == "scene"):
                found, at = _parsed(tokens, at, depth + 1)
                inputs.append(found)
            elif at < len(tokens) and tokens[at].isalpha():
                words.append(tokens[at])
                at += 1
            else:
                raise ProgramError(f"{name} takes no {tokens[at]!r}" if at < len(tokens) else f"{name} is not closed")
            if at >= len(tokens) or tokens[at] not in ",)":
                raise ProgramError(f"{name} is not closed")
            if tokens[at] == ")":
                break
        at += 1
    return checked(Program(name, tuple(words), tuple(inputs))), at


def checked(program: Program) -> Program:
    """The program, whose operator has the words and takes what it must.

    Raises:
        ProgramError: it does not.
    """
    name, words = program.name, program.words
    allowed, takes, _ = _SIGNATURES[name]
    if len(words) != len(allowed):
        raise ProgramError(f"{name} has {len(allowed)} words, not {len(words)}: {program}")
    choices = [one if one is not None else ATTRIBUTES.get(words[0], ()) for one in allowed]
    for word, among in zip(words, choices, strict=True):
        if word not in among:
            raise ProgramError(f"{name} does not know {word!r}; use one of {', '.join(among)}")
    if name == "compare":
        takes = (OBJECT, OBJECT) if words[0] in ATTRIBUTES else (NUMBER, NUMBER)
    given = tuple(one.gives for one in program.inputs)
    if given != takes:
        raise ProgramError(f"{name} takes {_listed(takes)}, not {_listed(given)}: {program}")
    return program


def _listed(kinds: tuple[str, ...]) -> str:
    return " and ".join(f"a {kind}" for kind in kinds) or "nothing"


def execute(program: Program, scene: TableScene) -> list[Step]:
    """What every operator gives on a scene, in the order of :meth:`Program.operators`; the last is the answer.

    Raises:
        ProgramError: a ``unique`` of none or several, or a ``nearest`` of none.
    """
    steps: list[Step] = []

    def run(one: Program) -> Result:
        given = [run(part) for part in one.inputs]
        result = _apply(one, given, scene)
        steps.append(Step(one, result))
        return result

    run(program)
    return steps


def answer_text(result: Result) -> str:
    """An answer as it is said."""
    if isinstance(result, bool):
        return "yes" if result else "no"
    return str(result)


def attribute(scene: TableScene, index: int, name: str) -> str:
    """The colour, shape or size of an object."""
    return getattr(scene.objects[index].thing, name)


def _apply(one: Program, given: list[Result], scene: TableScene) -> Result:
    name, words = one.name, one.words
    first = given[0] if given else ()
    if name == "scene":
        return tuple(range(len(scene.objects)))
    if name == "filter":
        return tuple(index for index in _set(first) if attribute(scene, index, words[0]) == words[1])
    if name == "unique":
        if len(_set(first)) != 1:
            raise ProgramError(f"there are {len(_set(first))} objects, not one: {one}")
        return _set(first)[0]
    if name in ("relate", "nearest"):
        beside = _beside(scene, _int(first), words[0])
        if name == "relate":
            return tuple(sorted(beside))
        if not beside:
            raise ProgramError(f"there is nothing on that side: {one}")
        return beside[0]
    if name == "same":
        wanted = attribute(scene, _int(first), words[0])
        others = (index for index in range(len(scene.objects)) if index != first)
        return tuple(index for index in others if attribute(scene, index, words[0]) == wanted)
    if name == "and":
        return tuple(index for index in _set(first) if index in _set(given[1]))
    if name == "or":
        return tuple(sorted({*_set(first), *_set(given[1])}))
    if name == "count":
        return len(_set(first))
    if name == "exist":
        return bool(_set(first))
    if name == "query":
        return attribute(scene, _int(first), words[0])
    if words[0] in ATTRIBUTES:
        return attribute(scene, _int(first), words[0]) == attribute(scene, _int(given[1]), words[0])
    one_number, other = _int(first), _int(given[1])
    return {"more": one_number > other, "fewer": one_number < other, "equal": one_number == other}[words[0]]


def _beside(scene: TableScene, index: int, direction: str) -> list[int]:
    """The objects on one side of another, the nearest along that axis first."""
    axis = "x" if direction in ("left", "right") else "y"
    sign = 1 if direction in ("right", "below") else -1
    here = getattr(scene.objects[index], axis)
    gaps = {other: sign * (getattr(placed, axis) - here) for other, placed in enumerate(scene.objects)}
    return sorted((other for other, gap in gaps.items() if gap > 0 and other != index), key=gaps.__getitem__)


def _set(result: Result) -> tuple[int, ...]:
    assert isinstance(result, tuple)
    return result


def _int(result: Result) -> int:
    assert isinstance(result, int)
    return result
