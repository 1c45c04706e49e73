"""What is asked about built-in scenes in stage 2: questions with rationales, where things are, what is at a place.

A picture is a scene of free objects with several questions, or, for rehearsal, one of stage 1's scenes with captions.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import NamedTuple

import torch

from bitgen.data.questions.boxes import box_text
from bitgen.data.questions.marked_text import NONE, Asked
from bitgen.data.sampler import SampleKey
from bitgen.data.scenes.descriptions import COLOURS, SHAPES, Thing, is_held_out, random_scene, scene_rng
from bitgen.data.scenes.drawing import render_scene
from bitgen.data.scenes.questions import TRAINED_HOPS, SceneQuestion, draw_question, noun
from bitgen.data.scenes.rationales import STYLES, object_text, write_rationale
from bitgen.data.scenes.tables import FEWEST, HELD_OUT_PAIRS, MOST, SIZES, TableScene, render_table, table_scene
from bitgen.data.scenes.wording import caption_scene
from bitgen.model.processing_bitgen import BitGenProcessor

WHERE, WHAT_AT, DESCRIBE, CAPTION = "where", "what_at", "describe", "caption"
_WHERE = ("where is the {t}?", "find the {t}", "point at the {t}")
WHAT_IS_AT = "what is at {box}?"
_WHAT_AT = (WHAT_IS_AT, "name the thing at {box}", "which thing is at {box}?")
DESCRIBE_PICTURE = "describe the picture"
_DESCRIBE = (DESCRIBE_PICTURE, "what is in the picture?", "name all things with their places")
_ABSENT = 0.15  # share of things asked for that are not there
_VALUES = {"size": SIZES, "colour": COLOURS, "shape": SHAPES}
_GROUNDING = (WHERE, WHAT_AT, DESCRIBE), (60, 25, 15)


class Picture(NamedTuple):
    """A picture and what is asked of it. ``scene`` and ``questions``: those with a program behind them, by the position
    of what is asked."""

    pixels: torch.Tensor
    asked: tuple[Asked, ...]
    scene: TableScene | None = None
    questions: tuple[SceneQuestion | None, ...] = ()


@dataclass(frozen=True)
class SceneReasoning:
    """Pictures of scenes with what is asked of them, each a function of (seed, index, epoch).

    Args:
        size: pictures an epoch.
        per_picture: questions of each.
        rationale_share: share of the questions that are answered with a rationale.
        grounding_share: share of what is asked that is about places.
        caption_share: share of the pictures that are scenes of stage 1, with captions.
    """

    processor: BitGenProcessor
    seed: int
    size: int
    per_picture: int = 4
    rationale_share: float = 0.5
    grounding_share: float = 0.25
    caption_share: float = 0.1
    max_hops: int = TRAINED_HOPS
    max_objects: int = MOST

    def __len__(self) -> int:
        return self.size

    def name(self, index: int) -> str:
        """How messages call a picture."""
        return f"scene {index}"

    def texts(self, count: int) -> list[str]:
        """What is asked and answered of that many pictures, for a tokenizer to learn its words."""
        found: list[str] = []
        for index in range(count):
            rng = self._rng(SampleKey(index))
            if rng.random() < self.caption_share:
                continue
            asked, _, _ = self._asked(SampleKey(index), rng)
            found += [f"{one.question} {one.rationale or ''} {one.answer}" for one in asked]
        return found

    def __getitem__(self, key: SampleKey) -> Picture:
        rng = self._rng(key)
        if rng.random() < self.caption_share:
            return self._captioned(rng)
        asked, scene, questions = self._asked(key, rng)
        pixels = pixels_of(self.processor, scene, (self.seed, "train", *key))
        return Picture(pixels, asked, scene, questions)

    def _rng(self, key: SampleKey) -> random.Random:
        return scene_rng(self.seed, "reasoning", key.index, key.epoch)

    def _captioned(self, rng: random.Random) -> Picture:
        scene = random_scene(rng)
        while is_held_out(scene):
            scene = random_scene(rng)
        image = render_scene(scene, self.processor.image_size, rng)
        asked = tuple(Asked("", caption_scene(scene, rng), family=CAPTION) for _ in range(self.per_picture))
        return Picture(self.processor.image(image, "a scene"), asked)

    def _asked(
        self, key: SampleKey, rng: random.Random
    ) -> tuple[tuple[Asked, ...], TableScene, tuple[SceneQuestion | None, ...]]:
        scene = table_scene((self.seed, "train", *key), FEWEST, self.max_objects)
        asked: list[Asked] = []
        questions: list[SceneQuestion | None] = []
        while len(asked) < self.per_picture:
            question = None
            if rng.random() >= self.grounding_share:
                question = draw_question(scene, rng, hops=(0, self.max_hops))
            questions.append(question)
            if question is None:
                asked.append(self._grounding(scene, rng))
            else:
                asked.append(with_rationale(scene, question, rng, rng.random() < self.rationale_share))
        return tuple(asked), scene, tuple(questions)

    def _grounding(self, scene: TableScene, rng: random.Random) -> Asked:
        """Where something is has no reasons: a model that is to give some gives none."""
        asked = grounding(scene, rng)
        return asked._replace(rationale="") if rng.random() < self.rationale_share else asked


def pixels_of(processor: BitGenProcessor, scene: TableScene, key: tuple[object, ...]) -> torch.Tensor:
    """``pixel_values [3, H, W]`` of a scene."""
    return processor.image(render_table(scene, processor.image_size, key), "a scene")


def with_rationale(scene: TableScene, question: SceneQuestion, rng: random.Random, thinks: bool) -> Asked:
    """A question with its answer, and why, in one of the wordings."""
    why = write_rationale(scene, question.steps, rng.randrange(STYLES)) if thinks else None
    return Asked(question.text, question.answer, why, question.family, question.hops)


def grounding(scene: TableScene, rng: random.Random) -> Asked:
    """A question about places: where a thing is, what is at a place, or everything with its place."""
    kind = rng.choices(*_GROUNDING)[0]
    if kind == DESCRIBE:
        return Asked(rng.choice(_DESCRIBE), description(scene), family=kind)
    if kind == WHERE and rng.random() < _ABSENT:
        return where_absent(scene, rng)
    index = rng.randrange(len(scene.objects))
    if kind == WHERE:
        return where(scene, index, rng)
    text = rng.choice(_WHAT_AT).format(box=box_text(scene.box(index)))
    return Asked(text, scene.name(index), family=kind)


def where(scene: TableScene, index: int, rng: random.Random) -> Asked:
    """Where an object is, by words that fit it alone."""
    phrase = only_words(scene, index, rng)
    return Asked(rng.choice(_WHERE).format(t=phrase), box_text(scene.box(index)), family=WHERE)


def where_absent(scene: TableScene, rng: random.Random) -> Asked:
    """Where something is that is not there.

    As many attributes are named as of a thing that is there; else the form of the question would tell its answer.
    """
    words = _fitting_alone(scene, rng.randrange(len(scene.objects)), rng)
    while True:
        changed = [rng.choice(list(words))] if rng.random() < 0.5 else list(words)  # near misses, and others
        other = words | {name: rng.choice(_VALUES[name]) for name in changed}
        pair = (other.get("colour"), other["shape"])
        if not any(_fits(placed.thing, other) for placed in scene.objects) and pair not in HELD_OUT_PAIRS:
            return Asked(rng.choice(_WHERE).format(t=noun(other)), NONE, family=WHERE)


def only_words(scene: TableScene, index: int, rng: random.Random) -> str:
    """A noun that fits an object alone: its shape, with colour and size as far as it takes, or with both."""
    return noun(_fitting_alone(scene, index, rng))


def _fitting_alone(scene: TableScene, index: int, rng: random.Random) -> dict[str, str]:
    thing = scene.objects[index].thing
    ways = [{"shape": thing.shape}, {"colour": thing.colour, "shape": thing.shape},
            {"size": thing.size, "shape": thing.shape}]  # fmt: skip
    alone = [way for way in ways if sum(_fits(placed.thing, way) for placed in scene.objects) == 1]
    if alone and rng.random() < 0.7:
        return rng.choice(alone)
    return {"size": thing.size, "colour": thing.colour, "shape": thing.shape}


def _fits(thing: Thing, words: dict[str, str]) -> bool:
    return all(getattr(thing, name) == value for name, value in words.items())


def description(scene: TableScene) -> str:
    """All objects with their boxes, from left to right."""
    ordered = sorted(range(len(scene.objects)), key=lambda index: scene.objects[index].x)
    return "; ".join(object_text(scene, index) for index in ordered)
