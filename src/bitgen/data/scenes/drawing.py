"""Draws the built-in scenes: pictures of any size in a fraction of a millisecond, so that nothing is stored.

Lengths are fractions of the picture's side, y grows downwards. A shape of radius r stays within 1.2 r of its centre.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw

from bitgen.data.questions.boxes import Box
from bitgen.data.scenes.descriptions import Scene, Thing

RGB: dict[str, tuple[int, int, int]] = {
    "red": (222, 30, 38),
    "orange": (250, 140, 20),
    "yellow": (245, 218, 40),
    "green": (40, 160, 62),
    "cyan": (50, 205, 215),
    "blue": (38, 78, 222),
    "purple": (132, 48, 178),
    "pink": (250, 128, 190),
    "brown": (125, 74, 36),
    "grey": (128, 128, 130),
}
_RADIUS = {"small": (0.085, 0.105), "medium": (0.135, 0.155), "large": (0.19, 0.22)}
REACH = 1.2  # of a shape, in radii: the corner of a square
_OVERSAMPLING = 4


class Placed(NamedTuple):
    """One object in the picture: centre, radius and rotation (radians)."""

    thing: Thing
    x: float
    y: float
    radius: float
    rotation: float


def render_scene(scene: Scene, size: int, rng: random.Random) -> Image.Image:
    """The scene as an RGB picture, ``size`` x ``size``; shades, exact places, radii, rotations come from ``rng``."""
    image = _background(scene.background, size, rng)
    colours = {thing: _jittered(RGB[thing.colour], rng) for thing in scene.things}
    for placed in place_things(scene, rng):
        _draw(image, placed, colours[placed.thing])
    return image


def render_placed(objects: Sequence[Placed], background: str, size: int, rng: random.Random) -> Image.Image:
    """Objects where they are, each in a shade of its own, as an RGB picture, ``size`` x ``size``."""
    image = _background(background, size, rng)
    for placed in objects:
        _draw(image, placed, _jittered(RGB[placed.thing.colour], rng))
    return image


def box_of(placed: Placed) -> Box:
    """What an object fills of the picture, to its outermost points."""
    shape, radius = placed.thing.shape, placed.radius
    if shape in _ROUND:
        reach = _ROUND[shape] * radius
        return Box(placed.x - reach, placed.y - reach, placed.x + reach, placed.y + reach)
    cos, sin = math.cos(placed.rotation) * radius, math.sin(placed.rotation) * radius
    xs = [placed.x + cos * u - sin * v for u, v in _OUTLINES[shape]]
    ys = [placed.y + sin * u + cos * v for u, v in _OUTLINES[shape]]
    return Box(min(xs), min(ys), max(xs), max(ys))


def place_things(scene: Scene, rng: random.Random) -> list[Placed]:
    """Where the objects of a scene go: apart from each other and whole inside the picture."""
    spots = {"position": _position_spots, "relation": _relation_spots, "count": _count_spots}[scene.kind](scene, rng)
    return [Placed(thing, x, y, radius, rng.uniform(-0.12, 0.12)) for thing, x, y, radius in spots]


_Spot = tuple[Thing, float, float, float]


def _position_spots(scene: Scene, rng: random.Random) -> list[_Spot]:
    (thing,) = scene.things
    radius = rng.uniform(*_RADIUS[thing.size])
    near = REACH * radius + 0.02

    def coordinate(low: str, high: str) -> float:
        if low in scene.where:
            return near + rng.uniform(0, 0.03)
        if high in scene.where:
            return 1 - near - rng.uniform(0, 0.03)
        return 0.5 + rng.uniform(-0.03, 0.03)

    return [(thing, coordinate("left", "right"), coordinate("top", "bottom"), radius)]


def _relation_spots(scene: Scene, rng: random.Random) -> list[_Spot]:
    spots = []
    shift = rng.uniform(-0.02, 0.02)
    for thing, middle in zip(scene.things, (0.27, 0.73), strict=True):
        along = middle + shift
        if thing.count == 1:
            radius = rng.uniform(*_RADIUS[thing.size])
            line = [0.5 + rng.uniform(-0.06, 0.06)]
        else:
            radius = rng.uniform(0.1, 0.115)
            step = 0.29 if thing.count == 3 else 0.34
            line = [0.5 + step * (i - (thing.count - 1) / 2) for i in range(thing.count)]
        for across in line:
            # Across the relation, a group stands in a line: a column beside, a row above the other.
            near = REACH * radius + 0.01
            u = min(max(along + rng.uniform(-0.02, 0.02), near), 1 - near)
            v = across + rng.uniform(-0.015, 0.015)
            spots.append((thing, u, v, radius) if scene.where == "left of" else (thing, v, u, radius))
    return spots


def _count_spots(scene: Scene, rng: random.Random) -> list[_Spot]:
    (thing,) = scene.things
    if scene.where == "scattered":
        radius = rng.uniform(0.095, 0.105)
        centres = [(0.19 + 0.31 * column, 0.19 + 0.31 * row) for column, row in _scattered_cells(thing.count, rng)]
        jitter = 0.03
    else:
        radius = rng.uniform(0.088, 0.098) if thing.count == 4 else rng.uniform(0.1, 0.115)
        step = {2: 0.36, 3: 0.3, 4: 0.24}[thing.count]
        across = 0.5 + rng.uniform(-0.12, 0.12)
        line = [0.5 + step * (i - (thing.count - 1) / 2) for i in range(thing.count)]
        centres = [(along, across) if scene.where == "row" else (across, along) for along in line]
        jitter = 0.01
    return [(thing, x + rng.uniform(-jitter, jitter), y + rng.uniform(-jitter, jitter), radius) for x, y in centres]


def _scattered_cells(count: int, rng: random.Random) -> list[tuple[int, int]]:
    """Cells of a 3 x 3 grid that form neither a row nor a column: at least two distinct coordinates each way."""
    cells = [(column, row) for column in range(3) for row in range(3)]
    while True:
        chosen = rng.sample(cells, count)
        if len({column for column, _ in chosen}) > 1 and len({row for _, row in chosen}) > 1:
            return chosen


def _background(tone: str, size: int, rng: random.Random) -> Image.Image:
    """A flat tint, a gradient between tints or soft blots of them; always far lighter or darker than any object."""
    low, high = (212, 252) if tone == "light" else (6, 44)
    cells = rng.choice((1, 2, 5))
    tint = [rng.randint(low, high) for _ in range(3)]
    spread = 14
    values = bytes(
        min(max(channel + rng.randint(-spread, spread), low), high) for _ in range(cells * cells) for channel in tint
    )
    small = Image.frombytes("RGB", (cells, cells), values)
    return small.resize((size, size), Image.Resampling.BILINEAR)


def _jittered(colour: tuple[int, int, int], rng: random.Random) -> tuple[int, ...]:
    # Mostly in brightness: a grey whose channels moved apart would pass for brown.
    brightness = rng.randint(-12, 12)
    return tuple(min(max(channel + brightness + rng.randint(-3, 3), 0), 255) for channel in colour)


def _draw(image: Image.Image, placed: Placed, colour: tuple[int, ...]) -> None:
    size = image.width
    x, y, radius = placed.x * size, placed.y * size, placed.radius * size
    left, top = math.floor(x - REACH * radius), math.floor(y - REACH * radius)
    side = math.ceil(2 * REACH * radius) + 1
    # Only the object's own box is drawn larger and shrunk: far less work than oversampling the picture.
    mask = Image.new("L", (side * _OVERSAMPLING, side * _OVERSAMPLING))
    centre = ((x - left) * _OVERSAMPLING, (y - top) * _OVERSAMPLING)
    _draw_shape(ImageDraw.Draw(mask), placed.thing.shape, centre, radius * _OVERSAMPLING, placed.rotation)
    image.paste(colour, (left, top), mask.reduce(_OVERSAMPLING))


def _draw_shape(
    draw: ImageDraw.ImageDraw, shape: str, centre: tuple[float, float], radius: float, rotation: float
) -> None:
    cx, cy = centre

    def ellipse(scale: float, fill: int) -> None:
        reach = radius * scale
        draw.ellipse((cx - reach, cy - reach, cx + reach, cy + reach), fill=fill)

    if shape in _ROUND:
        ellipse(_ROUND[shape], 255)
        if shape == "ring":
            ellipse(0.58, 0)
    else:
        cos, sin = math.cos(rotation) * radius, math.sin(rotation) * radius
        draw.polygon([(cx + cos * u - sin * v, cy + sin * u + cos * v) for u, v in _OUTLINES[shape]], fill=255)


def _star() -> tuple[tuple[float, float], ...]:
    corners = [(1.15 if i % 2 == 0 else 0.47, math.pi * i / 5) for i in range(10)]
    return tuple((reach * math.sin(angle), -reach * math.cos(angle)) for reach, angle in corners)


def _heart() -> tuple[tuple[float, float], ...]:
    points = []
    for i in range(32):
        t = 2 * math.pi * i / 32
        u = 16 * math.sin(t) ** 3
        v = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((u / 16, -(v + 2.5) / 15))
    return tuple(points)


_ROUND = {"circle": 0.95, "ring": 1.0}  # and their reach, in radii
_ARM = 0.31
_OUTLINES: dict[str, tuple[tuple[float, float], ...]] = {
    "square": ((-0.83, -0.83), (0.83, -0.83), (0.83, 0.83), (-0.83, 0.83)),
    "triangle": ((0, -1.05), (1.0, 0.7), (-1.0, 0.7)),
    "star": _star(),
    "cross": (
        (-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM),
        (_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM),
    ),
    "heart": _heart(),
    "diamond": ((0, -1.12), (0.76, 0), (0, 1.12), (-0.76, 0)),
}  # fmt: skip
