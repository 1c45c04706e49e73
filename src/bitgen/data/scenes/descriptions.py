"""What is in a built-in scene, and which combinations training never sees.

A scene is one of three kinds:

- ``position``: one small or large object at one of nine places;
- ``relation``: two objects or small groups, the first to the left of or above the second, perhaps of different size;
- ``count``: two to four equal objects in a row, in a column or scattered.

Held out (:func:`is_held_out`), in validation and never in training, whatever the seed:

1. ten of the eighty (colour, shape) pairs, one a colour (:func:`is_held_out_pair`), in scenes of every kind;
2. one in five *compositions* of objects, chosen by a hash: (object, place) of a position scene, (object, object) of a
   relation scene in either order, (object, number) of a count scene, where an object is a (colour, shape).

Every validation scene has at least one of these, and no training scene has any, while each colour, shape, size, place,
relation and number is in training: who retrieves the validation scenes has learned the parts, not the list.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass

COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "brown", "grey")
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "diamond")
PLACES = (
    "top left", "top", "top right",
    "left", "centre", "right",
    "bottom left", "bottom", "bottom right",
)  # fmt: skip
RELATIONS = ("left of", "above")
ARRANGEMENTS = ("row", "column", "scattered")
BACKGROUNDS = ("light", "dark")
SPLITS = ("train", "val")

# Pairs of sizes and pairs of numbers that a relation scene may have: sizes differ only where both sides are one object.
_RELATION_SIZES = (("medium", "medium"), ("small", "large"), ("large", "small"))
_RELATION_COUNTS = ((1, 2), (2, 1), (2, 2), (1, 3), (3, 1), (2, 3), (3, 2))
_COMPOSITIONS_HELD_OUT = 5  # one in five
_DRAWS_BEFORE_GIVING_UP = 5000


@dataclass(frozen=True)
class Thing:
    """``count`` equal objects. ``size`` is small, medium or large; captions name a size only if it is not medium."""

    colour: str
    shape: str
    size: str = "medium"
    count: int = 1

    @property
    def object_name(self) -> str:
        """Colour and shape: what a held-out combination is made of."""
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """One scene: ``kind`` is position, relation or count.

    ``where`` is one of PLACES (position), RELATIONS (things[0] WHERE things[1]) or ARRANGEMENTS (count). ``background``
    is a tone that a caption may name but never needs to: no two validation scenes differ in it alone.
    """

    kind: str
    things: tuple[Thing, ...]
    where: str
    background: str = "light"

    @property
    def meaning(self) -> tuple:
        """What every caption of the scene says; scenes with equal meaning could not be told apart by their captions."""
        return self.kind, self.things, self.where

    @property
    def composition(self) -> str:
        """The combination of objects that the second held-out rule looks at."""
        names = sorted(thing.object_name for thing in self.things)
        if self.kind == "relation":
            return " + ".join(names)
        return f"{names[0]} / {self.where if self.kind == 'position' else self.things[0].count}"


def is_held_out_pair(colour: str, shape: str) -> bool:
    """Whether training never shows this colour with this shape: one shape a colour, one or two colours a shape."""
    return SHAPES[(3 * COLOURS.index(colour) + 1) % len(SHAPES)] == shape


def is_held_out(scene: Scene) -> bool:
    """Whether the scene has a combination that training never shows; see the module's docstring."""
    if any(is_held_out_pair(thing.colour, thing.shape) for thing in scene.things):
        return True
    digest = hashlib.blake2b(scene.composition.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") % _COMPOSITIONS_HELD_OUT == 0


def random_scene(rng: random.Random) -> Scene:
    """Draws a scene of any split."""
    kind = rng.choices(("position", "relation", "count"), weights=(35, 45, 20))[0]
    background = rng.choice(BACKGROUNDS)
    if kind == "position":
        thing = Thing(*_random_object(rng), size=rng.choice(("small", "large")))
        return Scene(kind, (thing,), rng.choice(PLACES), background)
    if kind == "count":
        thing = Thing(*_random_object(rng), count=rng.randint(2, 4))
        return Scene(kind, (thing,), rng.choice(ARRANGEMENTS), background)
    first, second = _random_object(rng), _random_object(rng)
    while second == first:
        second = _random_object(rng)
    names = (first, second)
    if rng.random() < 0.7:
        things = [Thing(*name, size=size) for name, size in zip(names, rng.choice(_RELATION_SIZES), strict=True)]
    else:
        things = [Thing(*name, count=count) for name, count in zip(names, rng.choice(_RELATION_COUNTS), strict=True)]
    return Scene(kind, tuple(things), rng.choice(RELATIONS), background)


def _random_object(rng: random.Random) -> tuple[str, str]:
    return rng.choice(COLOURS), rng.choice(SHAPES)


def iter_scenes(split: str, size: int, seed: int) -> Iterator[Scene]:
    """The first ``size`` scenes of a split; scene ``i`` is a pure function of (seed, split, i), whatever ``size`` is.

    Training scenes are drawn independently of each other; validation scenes all differ in meaning.
    Raises ``ValueError`` for an unknown split, no scenes, or more validation scenes than there are.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split of the scenes {split!r}: use one of {', '.join(SPLITS)}")
    if size < 1:
        raise ValueError(f"scenes_{split} is {size}; it must be positive")
    return _train_scenes(size, seed) if split == "train" else _val_scenes(size, seed)


def _train_scenes(size: int, seed: int) -> Iterator[Scene]:
    for index in range(size):
        rng = scene_rng(seed, "train", index, "scene")
        scene = random_scene(rng)
        while is_held_out(scene):
            scene = random_scene(rng)
        yield scene


def _val_scenes(size: int, seed: int) -> Iterator[Scene]:
    rng = scene_rng(seed, "val", "scenes")
    seen: set[tuple] = set()
    draws = 0
    while len(seen) < size:
        scene = random_scene(rng)
        draws += 1
        if is_held_out(scene) and scene.meaning not in seen:
            seen.add(scene.meaning)
            draws = 0
            yield scene
        elif draws == _DRAWS_BEFORE_GIVING_UP:
            raise ValueError(f"scenes_val is {size}, more than there are different ones; use {len(seen)} or less")


def scene_rng(*key: object) -> random.Random:
    """A generator that depends on ``key`` alone, in every process and Python version: SHA-512 seeds from strings."""
    return random.Random("/".join(map(str, key)))
