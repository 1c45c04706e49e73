"""Sort-of-CLEVR, drawn anew by its rules (Santoro et al. 2017, arXiv 1706.01427).

10,000 pictures of six objects in six colours, each a square or a circle, 9,800 of them for training. Ten questions of a
picture are about one object (*non-relational*) and ten about how it stands to the others (*relational*). A picture and
its questions are a function of (seed, number). Beyond the rules, no answer is in doubt: objects keep off the middle
lines, and the closest and the furthest object are so by TIE. Questions are in words and differ within a picture.

All colours come with both shapes, also in training: a red square and a blue circle are pairs that the other scenes hold
out (``descriptions.is_held_out_pair``), so who learns from these pictures has no held-out pairs there.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bitgen.data.questions.boxes import box_text
from bitgen.data.questions.marked_text import Asked
from bitgen.data.sampler import SampleKey
from bitgen.data.scenes.descriptions import Thing, scene_rng
from bitgen.data.scenes.drawing import REACH, Placed, box_of, render_placed
from bitgen.data.scenes.reasoning import Picture
from bitgen.model.processing_bitgen import BitGenProcessor

COLOURS = ("red", "green", "blue", "orange", "grey", "yellow")
SHAPES = ("square", "circle")
# Training is validated on pictures behind these 10,000, so that the best checkpoint is not chosen on the test.
PICTURES = {"train": range(9_800), "test": range(9_800, 10_000), "validation": range(10_000, 10_200)}
NON_RELATIONAL, RELATIONAL = "non-relational", "relational"
SHAPE, LEFT, UPPER = "shape", "left", "upper"
CLOSEST, FURTHEST, COUNT = "closest", "furthest", "count"
KINDS = {NON_RELATIONAL: (SHAPE, LEFT, UPPER), RELATIONAL: (CLOSEST, FURTHEST, COUNT)}
OF_A_FAMILY = 10  # questions of each family about a picture
QUESTIONS = OF_A_FAMILY * len(KINDS)
RADIUS = 5 / 75
MIDDLE = 0.02  # how far centres keep from the middle lines
TIE = 0.01  # what the closest and the furthest object are ahead of the next
_TRIES = 200  # places drawn for an object, before the whole scene is drawn anew

_WORDINGS = {
    SHAPE: ("what shape is {a}?", "what is the shape of {a}?", "{a} has what shape?"),
    LEFT: ("is {a} on the left?", "is {a} left of the middle?", "is {a} in the left half?"),
    UPPER: ("is {a} in the upper half?", "is {a} above the middle?", "is {a} in the top half?"),
    CLOSEST: (
        "what shape is the thing closest to {a}?",
        "what is the shape of the thing closest to {a}?",
        "the thing closest to {a} has what shape?",
    ),
    FURTHEST: (
        "what shape is the thing furthest from {a}?",
        "what is the shape of the thing furthest from {a}?",
        "the thing furthest from {a} has what shape?",
    ),
    COUNT: (
        "how many things have the shape of {a}?",
        "what number of things has the shape of {a}?",
        "count the things that have the shape of {a}",
    ),
}

Objects = tuple[Placed, ...]


class Question(NamedTuple):
    """What is asked about the object of a colour, by its position in the scene."""

    family: str
    kind: str
    about: int


def draw_objects(seed: int, number: int) -> Objects:
    """The six objects of picture ``number`` of the 10,000, in the order of COLOURS."""
    rng = scene_rng("sort of clevr", seed, number)
    while True:
        things = [Thing(colour, rng.choice(SHAPES)) for colour in COLOURS]
        placed = _places(rng, things)
        if placed is not None and not _has_ties(placed):
            return placed


def draw_questions(seed: int, number: int) -> tuple[Question, ...]:
    """The twenty questions about picture ``number``, all different: first the non-relational ones."""
    rng = scene_rng("sort of clevr questions", seed, number)
    found: list[Question] = []
    for family, kinds in KINDS.items():
        every = [Question(family, kind, about) for kind in kinds for about in range(len(COLOURS))]
        found += rng.sample(every, OF_A_FAMILY)
    return tuple(found)


def answer(objects: Objects, question: Question) -> str:
    """Square, circle, yes, no, or a number from 1 to 6."""
    placed = objects[question.about]
    if question.kind == LEFT:
        return "yes" if placed.x < 0.5 else "no"
    if question.kind == UPPER:
        return "yes" if placed.y < 0.5 else "no"
    if question.kind == COUNT:
        return str(len(_alike(objects, question.about)))
    if question.kind != SHAPE:
        placed = objects[_found(objects, question)]
    return placed.thing.shape


def rationale(objects: Objects, question: Question) -> str:
    """Why that is the answer: the objects that it takes, each by its box and its name, as ``rationales`` says
    them."""
    about = _said(objects[question.about])
    if question.kind == COUNT:
        alike = sorted(_alike(objects, question.about), key=lambda placed: placed.x)
        return f"{', '.join(map(_said, alike))} makes {len(alike)}"
    if question.family == RELATIONAL:
        return f"{about}; {question.kind} {_said(objects[_found(objects, question)])}"
    return about


@dataclass(frozen=True)
class SortOfClevr:
    """The pictures of a split with what is asked of them.

    Pictures and questions are the same in each epoch. Of a picture of training, the epoch draws which questions are
    shown, in which words, and which of them with a rationale; any other picture shows all, always alike.

    Args:
        split: ``train``, ``test`` or ``validation``.
        per_picture: questions of a picture of training that a sample shows, 1 to 20.
        rationale_share: share of the questions that are answered with a rationale.

    Raises:
        ValueError: an unknown split, or more questions than there are.
    """

    processor: BitGenProcessor
    seed: int
    split: str
    per_picture: int = QUESTIONS
    rationale_share: float = 0.5

    def __post_init__(self) -> None:
        if self.split not in PICTURES:
            raise ValueError(f"unknown split of Sort-of-CLEVR {self.split!r}: use one of {', '.join(PICTURES)}")
        if not 1 <= self.per_picture <= QUESTIONS:
            raise ValueError(f"per_picture is {self.per_picture}; Sort-of-CLEVR has 1 to {QUESTIONS} of a picture")

    def __len__(self) -> int:
        return len(PICTURES[self.split])

    def name(self, index: int) -> str:
        """How messages call a picture."""
        return f"Sort-of-CLEVR {self.split} {index}"

    def texts(self, count: int) -> list[str]:
        """What is asked and answered of that many pictures, for a tokenizer to learn its words."""
        found: list[str] = []
        for index in range(min(count, len(self))):
            number = PICTURES[self.split][index]
            asked = self._asked(draw_objects(self.seed, number), number, epoch=0)
            found += [f"{one.question} {one.rationale or ''} {one.answer}" for one in asked]
        return found

    def __getitem__(self, key: SampleKey) -> Picture:
        """Raises ``IndexError`` for a picture that is not of the split."""
        if not 0 <= key.index < len(self):
            raise IndexError(f"{self.name(key.index)}: there are {len(self):,} pictures")
        number = PICTURES[self.split][key.index]
        objects = draw_objects(self.seed, number)
        shades = scene_rng("sort of clevr picture", self.seed, number)
        image = render_placed(objects, "light", self.processor.image_size, shades)
        pixels = self.processor.image(image, self.name(key.index))
        return Picture(pixels, self._asked(objects, number, key.epoch))

    def _asked(self, objects: Objects, number: int, epoch: int) -> tuple[Asked, ...]:
        questions: Sequence[Question] = draw_questions(self.seed, number)
        trains = self.split == "train"
        rng = scene_rng("sort of clevr asked", self.seed, number, epoch if trains else 0)
        if trains:
            questions = rng.sample(questions, self.per_picture)
        return tuple(self._in_words(objects, question, rng) for question in questions)

    def _in_words(self, objects: Objects, question: Question, rng: random.Random) -> Asked:
        text = rng.choice(_WORDINGS[question.kind]).format(a=f"the {COLOURS[question.about]} thing")
        why = rationale(objects, question) if rng.random() < self.rationale_share else None
        hops = int(question.family == RELATIONAL)
        return Asked(text, answer(objects, question), why, question.family, hops)


def _places(rng: random.Random, things: Sequence[Thing]) -> Objects | None:
    placed: list[Placed] = []
    for thing in things:
        for _ in range(_TRIES):
            x, y = rng.uniform(RADIUS, 1 - RADIUS), rng.uniform(RADIUS, 1 - RADIUS)
            is_clear = min(abs(x - 0.5), abs(y - 0.5)) >= MIDDLE
            if is_clear and all(math.dist((x, y), (one.x, one.y)) >= 2 * REACH * RADIUS for one in placed):
                placed.append(Placed(thing, x, y, RADIUS, 0.0))
                break
        else:
            return None
    return tuple(placed)


def _has_ties(objects: Objects) -> bool:
    """Whether the closest or the furthest object of any is in doubt."""
    for about in range(len(objects)):
        ordered = sorted(_distance(objects, about, other) for other in range(len(objects)) if other != about)
        if ordered[1] - ordered[0] < TIE or ordered[-1] - ordered[-2] < TIE:
            return True
    return False


def _distance(objects: Objects, one: int, other: int) -> float:
    return math.dist((objects[one].x, objects[one].y), (objects[other].x, objects[other].y))


def _found(objects: Objects, question: Question) -> int:
    """The object that is closest to, or furthest from, the one asked about."""
    others = [index for index in range(len(objects)) if index != question.about]
    choose = {CLOSEST: min, FURTHEST: max}[question.kind]
    return choose(others, key=lambda other: _distance(objects, question.about, other))


def _alike(objects: Objects, about: int) -> list[Placed]:
    """The objects of one's shape, itself included."""
    return [placed for placed in objects if placed.thing.shape == objects[about].thing.shape]


def _said(placed: Placed) -> str:
    return f"{box_text(box_of(placed))} {placed.thing.object_name}"
