"""Scenes to reason about: three to eight objects at free places, so that questions can go from one to the next.

Each object is small or large, and no two of a scene agree in colour, shape and size. Objects keep apart, and any two
centres differ by at least MARGIN both in x and in y, so that "left of" and "above" are never in doubt (the rule of
CLEVR, arXiv 1612.06890). Scenes of training have no object of a held-out (colour, shape) pair
(``descriptions.is_held_out_pair``).
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from PIL import Image

from bitgen.data.questions.boxes import Box
from bitgen.data.scenes.descriptions import BACKGROUNDS, COLOURS, SHAPES, Thing, is_held_out_pair, scene_rng
from bitgen.data.scenes.drawing import REACH, Placed, box_of, render_placed

SIZES = ("small", "large")
FEWEST, MOST = 3, 6
MARGIN = 0.06
_RADIUS = {"small": (0.06, 0.07), "large": (0.095, 0.11)}
HELD_OUT_PAIRS = tuple((colour, shape) for colour in COLOURS for shape in SHAPES if is_held_out_pair(colour, shape))
_TRIES = 200  # places drawn for an object, before the whole scene is drawn anew


@dataclass(frozen=True)
class TableScene:
    """Objects in the order in which they were placed, and the tone behind them."""

    objects: tuple[Placed, ...]
    background: str = "light"

    @property
    def has_held_out_pair(self) -> bool:
        """Whether a colour and a shape stand together that training never shows so."""
        return any(is_held_out_pair(placed.thing.colour, placed.thing.shape) for placed in self.objects)

    def box(self, index: int) -> Box:
        """What object ``index`` fills of the picture."""
        return box_of(self.objects[index])

    def name(self, index: int) -> str:
        """Size, colour and shape of object ``index``, by which it is the only one."""
        thing = self.objects[index].thing
        return f"{thing.size} {thing.colour} {thing.shape}"


def table_scene(
    key: tuple[object, ...], fewest: int = FEWEST, most: int = MOST, held_out_pair: bool = False
) -> TableScene:
    """The scene that ``key`` stands for, in every process.

    Args:
        fewest, most: number of objects, each equally likely.
        held_out_pair: at least one object has a colour and a shape that training never shows together; else none has.
    """
    rng = scene_rng("table", *key)
    count = rng.randint(fewest, most)  # once: many objects find no place more often, and are not to be fewer for it
    while True:
        things = _things(rng, count, held_out_pair)
        placed = _places(rng, things)
        if placed is not None:
            return TableScene(placed, rng.choice(BACKGROUNDS))


def render_table(scene: TableScene, size: int, key: tuple[object, ...]) -> Image.Image:
    """The scene as an RGB picture, ``size`` x ``size``; shades come from ``key``."""
    return render_placed(scene.objects, scene.background, size, scene_rng("table picture", *key))


def _things(rng: random.Random, count: int, held_out_pair: bool) -> list[Thing]:
    # Few colours and few shapes, so that objects have something in common and there is something to count.
    colours, shapes = rng.sample(COLOURS, rng.randint(3, 5)), rng.sample(SHAPES, rng.randint(3, 5))
    found: list[Thing] = []
    while len(found) < count:
        thing = Thing(rng.choice(colours), rng.choice(shapes), rng.choice(SIZES))
        if held_out_pair and not found:
            thing = Thing(*rng.choice(HELD_OUT_PAIRS), thing.size)
        if thing not in found and (held_out_pair or not is_held_out_pair(thing.colour, thing.shape)):
            found.append(thing)
    rng.shuffle(found)
    return found


def _places(rng: random.Random, things: list[Thing]) -> tuple[Placed, ...] | None:
    placed: list[Placed] = []
    for thing in things:
        radius = rng.uniform(*_RADIUS[thing.size])
        near = REACH * radius + 0.01
        for _ in range(_TRIES):
            x, y = rng.uniform(near, 1 - near), rng.uniform(near, 1 - near)
            if all(_apart(x, y, radius, other) for other in placed):
                placed.append(Placed(thing, x, y, radius, rng.uniform(-0.12, 0.12)))
                break
        else:
            return None
    return tuple(placed)


def _apart(x: float, y: float, radius: float, other: Placed) -> bool:
    across, along = abs(x - other.x), abs(y - other.y)
    return min(across, along) >= MARGIN and across**2 + along**2 >= (REACH * (radius + other.radius)) ** 2
