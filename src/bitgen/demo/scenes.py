"""Built-in scenes for the page: those of stage 1 to describe and find, and those of stage 2 to ask about."""

from __future__ import annotations

from typing import NamedTuple

from PIL import Image

from bitgen.data.scenes.dataset import SceneReader, render_scene
from bitgen.data.scenes.descriptions import scene_rng
from bitgen.data.scenes.questions import SceneQuestion, draw_question
from bitgen.data.scenes.reasoning import only_words
from bitgen.data.scenes.swapped import swapped_pairs
from bitgen.data.scenes.tables import TableScene, render_table, table_scene

MOST_SCENES = 100_000
_SIDE = 384  # pixels
_SEED = 42
_QUESTIONS = 6


class CaptionedPicture(NamedTuple):
    """A picture and the captions that are true of it."""

    picture: Image.Image
    captions: list[str]


def held_out_scenes(count: int) -> list[CaptionedPicture]:
    """Scenes of stage 1 with combinations that training never shows."""
    reader = SceneReader("val", count, _SEED)
    return [CaptionedPicture(reader.picture(row, _SIDE), reader.captions(row)) for row in range(count)]


def held_out_scene(row: int, count: int) -> Image.Image:
    """The picture of scene ``row`` of :func:`held_out_scenes`, without drawing the others."""
    return SceneReader("val", count, _SEED).picture(row, _SIDE)


def another_picture(row: int, count: int) -> Image.Image:
    """Scene ``row`` of :func:`held_out_scenes` laid out anew: other places, sizes and shades that fit its captions."""
    return SceneReader("val", count, _SEED).another_picture(row, _SIDE)


def swapped_example(number: int) -> tuple[Image.Image, list[str]]:
    """A scene with its caption, and the same words in another order, which are true of another scene."""
    *_, pair = swapped_pairs(1 + number % 64, _SEED)
    picture = render_scene(pair.scenes[0], _SIDE, scene_rng(_SEED, "swapped", number, "picture"))
    return picture, list(pair.captions)


class Table(NamedTuple):
    """A scene of stage 2 that training never drew, its picture, and what can be asked of it."""

    scene: TableScene
    picture: Image.Image
    questions: list[SceneQuestion]
    things: list[str]


def table(number: int) -> Table:
    """The scene of that number, the same as ``src/ask.py --scene NUMBER`` shows.

    Raises:
        ValueError: a number out of its range.
    """
    if not 0 <= number < MOST_SCENES:
        raise ValueError(f"there is no scene {number}: choose a number from 0 to {MOST_SCENES - 1:,}")
    key = ("shown", number)
    scene, rng = table_scene(key), scene_rng("questions of the page", number)
    drawn = [question for _ in range(_QUESTIONS) if (question := draw_question(scene, rng)) is not None]
    things = [only_words(scene, index, rng) for index in range(len(scene.objects))]
    return Table(scene, render_table(scene, 480, key), list({one.text: one for one in drawn}.values()), things)
