"""Questions about scenes of free objects: programs that are drawn, and said in several wordings.

A question is drawn so that

- every ``unique`` in it finds one object, and every ``nearest`` one;
- the words for the thing that is asked about do not say what is asked of it, and answers are balanced: a family's
  answer is drawn first where it has few;
- training has no held-out *composition*: what a question combines, chosen by a hash (``compositions.py``).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bitgen.data.scenes.compositions import is_held_out_question
from bitgen.data.scenes.programs import (
    ATTRIBUTES,
    DIRECTIONS,
    Program,
    ProgramError,
    Step,
    answer_text,
    attribute,
    execute,
)
from bitgen.data.scenes.question_wording import COMPARE, COUNT, EXIST, NEXT, NUMBERS, QUERY, SIDES
from bitgen.data.scenes.tables import HELD_OUT_PAIRS, TableScene
from bitgen.data.scenes.wording import plural

FAMILIES = (
    "count", "exist", "query", "spatial", "chain", "compare_attribute", "compare_number", "same", "logic",
)  # fmt: skip
TRAINED_HOPS, MOST_HOPS = 3, 4
_SHARES = dict(zip(FAMILIES, (10, 6, 8, 14, 24, 10, 8, 10, 10), strict=True))
_TRIES = 60  # draws of a question of a family, before another scene or family is taken

_SCENE = Program("scene")


@dataclass(frozen=True)
class SceneQuestion:
    """A question about a scene: its program, its words, and what every operator gives."""

    family: str
    program: Program
    text: str
    steps: tuple[Step, ...]

    @property
    def answer(self) -> str:
        """What is right."""
        return answer_text(self.steps[-1].result)

    @property
    def hops(self) -> int:
        """Steps from an object to others."""
        return self.program.hops

    @property
    def objects(self) -> set[int]:
        """Those that it takes to see: that some operator gave, by themselves or in a group that is counted."""
        found: set[int] = set()
        for step in self.steps:
            if step.operator.gives == "object" and isinstance(step.result, int):
                found.add(step.result)
            elif step.operator.name in ("filter", "relate", "same", "or", "and") and isinstance(step.result, tuple):
                found |= set(step.result) if self.steps[-1].operator.gives in ("number", "truth") else set()
        return found


def draw_question(
    scene: TableScene,
    rng: random.Random,
    families: Sequence[str] = FAMILIES,
    held_out: bool | None = False,
    hops: tuple[int, int] = (0, TRAINED_HOPS),
) -> SceneQuestion | None:
    """A question about the scene, of one of the families; None: the scene has none to give.

    Args:
        held_out: whether its composition is one that training never has; None: either.
        hops: the fewest and the most; chains have no fewer than two.
    """
    family = rng.choices(families, weights=[_SHARES[family] for family in families])[0]
    wanted = rng.random()
    for _ in range(_TRIES):
        drawn = _DRAWERS[family](_Drawing(scene, rng, hops, wanted))
        if drawn is None:
            continue
        program, text = drawn
        if not hops[0] <= program.hops <= hops[1]:
            continue
        if held_out is not None and is_held_out_question(family, program) != held_out:
            continue
        try:
            steps = execute(program, scene)
        except ProgramError:
            continue
        if _fits(steps, wanted) and not _returns(program, steps):
            return SceneQuestion(family, program, text, tuple(steps))
    return None


def _fits(steps: Sequence[Step], wanted: float) -> bool:
    """Whether an answer is the one that was drawn beforehand, where there are few."""
    last = steps[-1]
    if isinstance(last.result, bool):
        return last.result == (wanted < 0.5)
    if isinstance(last.result, int):
        return last.result == _COUNTS[int(wanted * len(_COUNTS))]
    return True


_COUNTS = (0, 1, 2, 2, 3, 3, 4, 1, 0, 2, 3)


def _returns(program: Program, steps: Sequence[Step]) -> bool:
    """Whether a chain comes back to where it was, or an object is compared with itself: no picture is needed then."""
    if program.name == "compare" and program.words[0] in ATTRIBUTES:
        one, other = (next(step.result for step in steps if step.operator is part) for part in program.inputs)
        return one == other
    reached = [step.result for step in steps if step.operator.gives == "object"]
    return program.name == "query" and len(set(reached)) < len(reached)


class _Drawing:
    """A scene and the draws that a question is made of; phrases come with the program that means them."""

    def __init__(self, scene: TableScene, rng: random.Random, hops: tuple[int, int], wanted: float) -> None:
        self.scene, self.rng, self.hops, self.wanted = scene, rng, hops, wanted

    def index(self) -> int:
        """Any object."""
        return self.rng.randrange(len(self.scene.objects))

    def words_of(self, index: int, hidden: Sequence[str] = ()) -> dict[str, str] | None:
        """Attributes of an object by which it is the only one, without the ``hidden``; None: there are none such."""
        names = [name for name in ATTRIBUTES if name not in hidden]
        subsets = [[name for at, name in enumerate(names) if mask >> at & 1] for mask in range(1, 1 << len(names))]
        self.rng.shuffle(subsets)
        if self.rng.random() < 0.7:  # mostly as few words as it takes
            subsets.sort(key=len)
        for subset in subsets:
            found = {name: attribute(self.scene, index, name) for name in subset}
            if self.matching(found) == [index]:
                return found
        return None

    def matching(self, words: dict[str, str]) -> list[int]:
        """The objects that these attributes fit."""
        every = range(len(self.scene.objects))
        return [one for one in every if all(attribute(self.scene, one, name) == value for name, value in words.items())]

    def the(self, index: int, hidden: Sequence[str] = ()) -> tuple[Program, str] | None:
        """The object itself, by its attributes."""
        words = self.words_of(index, hidden)
        return None if words is None else (Program("unique", inputs=(filtered(words),)), f"the {noun(words)}")

    def beside(self, direction: str, of: tuple[Program, str]) -> tuple[Program, str] | None:
        """Another object on one side: the next one, or one that its attributes tell from the others there."""
        phrase = self.rng.choice(NEXT[direction]).format(a=of[1])
        if self.rng.random() < 0.5:
            return Program("nearest", (direction,), (of[0],)), phrase
        related = Program("relate", (direction,), (of[0],))
        try:
            there = execute(related, self.scene)[-1].result
        except ProgramError:
            return None
        assert isinstance(there, tuple)
        if not there:
            return None
        chosen = self.rng.choice(there)
        name = self.rng.choice(list(ATTRIBUTES))
        words = {name: attribute(self.scene, chosen, name)}
        if len([one for one in there if attribute(self.scene, one, name) == words[name]]) != 1:
            return None
        side = self.rng.choice(SIDES[direction]).format(a=of[1])
        return Program("unique", inputs=(filtered(words, related),)), f"the {noun(words)} {side}"

    def some(self, most: int = 2) -> dict[str, str]:
        """One or two attributes, mostly of an object that is there. A colour and a shape that training never shows
        together are asked for in scenes alone that show some: else their name would always mean "none"."""
        while True:
            drawn = self.rng.sample(list(ATTRIBUTES), self.rng.randint(1, most))
            names = [name for name in ATTRIBUTES if name in drawn]  # in one order: the same words are the same program
            index = self.index()
            words = {
                name: attribute(self.scene, index, name)
                if self.rng.random() < 0.75
                else self.rng.choice(ATTRIBUTES[name])
                for name in names
            }
            if (words.get("colour"), words.get("shape")) not in HELD_OUT_PAIRS or self.scene.has_held_out_pair:
                return words

    def chain(self, links: int, hidden: Sequence[str] = ()) -> tuple[Program, str] | None:
        """An object that is reached in that many steps from one that is named."""
        reached = self.the(self.index())
        for _ in range(links):
            if reached is None:
                return None
            reached = self.beside(self.rng.choice(DIRECTIONS), reached)
        return reached


Drawn = tuple[Program, str] | None


def filtered(words: dict[str, str], among: Program = _SCENE) -> Program:
    """The objects of a set with these attributes."""
    for name, value in words.items():
        among = Program("filter", (name, value), (among,))
    return among


def noun(words: dict[str, str], many: bool = False) -> str:
    """Attributes as a noun: small red star, large things."""
    shape = words.get("shape", "thing")
    parts = (words.get("size", ""), words.get("colour", ""), plural(shape) if many else shape)
    return " ".join(part for part in parts if part)


def _count(drawing: _Drawing) -> Drawn:
    words = drawing.some()
    text = drawing.rng.choice(COUNT).format(s=noun(words, many=True))
    return Program("count", inputs=(filtered(words),)), text


def _exist(drawing: _Drawing) -> Drawn:
    words = drawing.some(3)
    text = drawing.rng.choice(EXIST).format(t=noun(words)).replace(" a orange", " an orange")
    return Program("exist", inputs=(filtered(words),)), text


def _query(drawing: _Drawing) -> Drawn:
    name = drawing.rng.choice(list(ATTRIBUTES))
    return _asked(drawing, name, drawing.the(drawing.index(), hidden=(name,)))


def _asked(drawing: _Drawing, name: str, about: tuple[Program, str] | None) -> Drawn:
    if about is None or _says(about[0], name):
        return None
    return Program("query", (name,), (about[0],)), drawing.rng.choice(QUERY[name]).format(a=about[1])


def _says(program: Program, name: str) -> bool:
    """Whether the words by which an object is meant say this attribute of it."""
    one = program.inputs[0] if program.name == "unique" else program
    while one.name == "filter":
        if one.words[0] == name:
            return True
        one = one.inputs[0]
    return False


def _spatial(drawing: _Drawing) -> Drawn:
    return _asked(drawing, drawing.rng.choice(list(ATTRIBUTES)), drawing.chain(1))


def _chain(drawing: _Drawing) -> Drawn:
    fewest, most = max(drawing.hops[0], 2), drawing.hops[1]
    if fewest > most:
        return None
    return _asked(
        drawing, drawing.rng.choice(list(ATTRIBUTES)), drawing.chain(fewest + int(drawing.wanted * (most - fewest + 1)))
    )


def _compare_attribute(drawing: _Drawing) -> Drawn:
    name = drawing.rng.choice(list(ATTRIBUTES))
    links = int(drawing.rng.random() < 0.4)
    one, other = drawing.chain(links), drawing.the(drawing.index(), hidden=(name,))
    if one is None or other is None or _says(one[0], name) or str(one[0]) == str(other[0]):
        return None
    text = drawing.rng.choice(COMPARE[name]).format(a=one[1], b=other[1])
    return Program("compare", (name,), (one[0], other[0])), text


def _compare_number(drawing: _Drawing) -> Drawn:
    one, other = drawing.some(1), drawing.some(1)
    if one == other:
        return None
    word = drawing.rng.choice(list(NUMBERS))
    counts = tuple(Program("count", inputs=(filtered(words),)) for words in (one, other))
    text = drawing.rng.choice(NUMBERS[word]).format(a=noun(one, many=True), b=noun(other, many=True))
    return Program("compare", (word,), counts), text


def _same(drawing: _Drawing) -> Drawn:
    name = drawing.rng.choice(list(ATTRIBUTES))
    of = drawing.the(drawing.index(), hidden=(name,))
    if of is None:
        return None
    alike = Program("same", (name,), (of[0],))
    phrase = f"with the {name} of {of[1]}"
    if drawing.rng.random() < 0.5:
        text = drawing.rng.choice(COUNT).format(s=f"other things {phrase}")
        return Program("count", inputs=(alike,)), text
    text = drawing.rng.choice(EXIST).format(t=f"thing {phrase}").replace(" a thing", " another thing")
    return Program("exist", inputs=(alike,)), text


def _logic(drawing: _Drawing) -> Drawn:
    rng = drawing.rng
    if rng.random() < 0.5:
        one, other = drawing.the(drawing.index()), drawing.the(drawing.index())
        if one is None or other is None or one[0] == other[0]:
            return None
        sides = rng.sample(DIRECTIONS, 2)
        parts = tuple(Program("relate", (side,), (of[0],)) for side, of in zip(sides, (one, other), strict=True))
        phrases = [rng.choice(SIDES[side]).format(a=of[1]) for side, of in zip(sides, (one, other), strict=True)]
        group, phrase = Program("and", inputs=parts), f"that are {phrases[0]} and {phrases[1]}"
    else:
        first, second = rng.sample(list(ATTRIBUTES), 2)
        words = [{name: rng.choice(ATTRIBUTES[name]) if rng.random() < 0.25 else attribute(
            drawing.scene, drawing.index(), name)} for name in (first, second)]  # fmt: skip
        group = Program("or", inputs=(filtered(words[0]), filtered(words[1])))
        phrase = f"that are {_adjective(words[0])} or {_adjective(words[1])}"
    text = rng.choice(COUNT).format(s=f"things {phrase}")
    return Program("count", inputs=(group,)), text


def _adjective(words: dict[str, str]) -> str:
    return plural(words["shape"]) if "shape" in words else noun(words).removesuffix(" thing")


_DRAWERS: dict[str, Callable[[_Drawing], Drawn]] = {
    "count": _count,
    "exist": _exist,
    "query": _query,
    "spatial": _spatial,
    "chain": _chain,
    "compare_attribute": _compare_attribute,
    "compare_number": _compare_number,
    "same": _same,
    "logic": _logic,
}
