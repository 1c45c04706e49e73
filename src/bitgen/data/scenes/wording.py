"""Captions of the built-in scenes: English in varied wording, always true, and complete.

Complete: whatever wording is drawn, a caption names each object's colour and shape, the size where it is not medium,
the number, and the place, relation or arrangement, so that captions of scenes of different meaning differ.
``at the top`` means the middle of the top edge; a corner is always called one.
"""

from __future__ import annotations

import random

from bitgen.data.scenes.descriptions import Scene, Thing

COLOUR_WORDS = {"purple": ("purple", "violet"), "cyan": ("cyan", "turquoise"), "grey": ("grey", "gray")}
SHAPE_WORDS = {"circle": ("circle", "disc"), "cross": ("cross", "plus sign"), "ring": ("ring", "hoop")}
SIZE_WORDS = {"small": ("small", "little", "tiny"), "medium": ("",), "large": ("large", "big", "huge")}
NUMBER_WORDS = {2: "two", 3: "three", 4: "four"}

_CORNER = ("in the {0} corner", "in the corner at the {0}")
PLACE_WORDS = {
    "left": ("on the left", "on the left side", "at the left edge"),
    "right": ("on the right", "on the right side", "at the right edge"),
    "top": ("at the top", "near the top edge", "at the top edge"),
    "bottom": ("at the bottom", "near the bottom edge", "at the bottom edge"),
    "centre": ("in the centre", "in the center", "in the middle"),
    "top left": tuple(form.format(words) for form in _CORNER for words in ("top left", "upper left")),
    "top right": tuple(form.format(words) for form in _CORNER for words in ("top right", "upper right")),
    "bottom left": tuple(form.format(words) for form in _CORNER for words in ("bottom left", "lower left")),
    "bottom right": tuple(form.format(words) for form in _CORNER for words in ("bottom right", "lower right")),
}

# For a relation and its converse: phrases before a noun, phrases after `with ...`, phrases for that side.
RELATION_WORDS = {
    "left of": (
        ("to the left of", "left of", "on the left of"),
        ("to {its} left", "on {its} left"),
        ("on the left", "at the left"),
    ),
    "right of": (
        ("to the right of", "right of", "on the right of"),
        ("to {its} right", "on {its} right"),
        ("on the right", "at the right"),
    ),
    "above": (("above", "over", "higher than"), ("above {it}", "over {it}"), ("at the top", "in the upper half")),
    "below": (
        ("below", "under", "beneath"),
        ("below {it}", "underneath {it}"),
        ("at the bottom", "in the lower half"),
    ),
}
CONVERSE = {"left of": "right of", "above": "below"}

ARRANGEMENT_WORDS = {
    ("row", True): ("side by side", "next to each other", "in a row"),
    ("row", False): ("in a row", "next to each other", "lined up from left to right"),
    ("column", True): ("one above the other", "one below the other", "in a column"),
    ("column", False): ("in a column", "one below the other", "lined up from top to bottom"),
    ("scattered", True): ("on a diagonal", "placed diagonally", "diagonally apart"),
    ("scattered", False): ("scattered around", "scattered over the picture", "here and there"),
}

POSITION_TEMPLATES = (
    "{a} {place}{background}",
    "there is {a} {place}{background}",
    "{place} there is {a}{background}",
    "{place} we see {a}{background}",
    "a picture of {a} {place}{background}",
    "{a} sits {place}{background}",
    "{a} can be seen {place}{background}",
    "the {size} {shape} {place} is {colour}",
    "the {colour} {shape} {place} is {size}",
    "the {shape} {place} is {size} and {colour}",
)
RELATION_TEMPLATES = (
    "{a} {relation} {b}{background}",
    "there {be} {a} {relation} {b}{background}",
    "a picture of {a} {relation} {b}{background}",
    "{a} {be} {relation} {b}",
    "{the_a} {be} {relation} {the_b}",
    "{a} with {b} {relation_of_b}{background}",
    "{a} {side_of_a} and {b} {side_of_b}{background}",
    "{side_of_a} {a}, {side_of_b} {b}",
)
COUNT_TEMPLATES = (
    "{things} {arrangement}{background}",
    "there are {things} {arrangement}{background}",
    "a picture of {things} {arrangement}{background}",
    "we see {things} {arrangement}{background}",
    "{number} {shapes}, {all} {colour}, {arrangement}",
    "{number} {shapes} {arrangement}, {all} of them {colour}",
)
LINE_TEMPLATES = ("a {line} of {things}{background}", "there is a {line} of {things}{background}")


def caption_scene(scene: Scene, rng: random.Random) -> str:
    """One caption of the scene, its wording drawn from ``rng``: lower case, no full stop."""
    background = ""
    if rng.random() < 0.25:
        background = f" {rng.choice(('on', 'against'))} a {scene.background} background"
    writer = {"position": _position, "relation": _relation, "count": _count}[scene.kind]
    return writer(scene, background, rng)


def caption_scene_differently(scene: Scene, count: int, rng: random.Random) -> list[str]:
    """``count`` captions of the scene, no two of them equal."""
    captions: dict[str, None] = {}
    while len(captions) < count:
        captions[caption_scene(scene, rng)] = None
    return list(captions)


def _position(scene: Scene, background: str, rng: random.Random) -> str:
    (thing,) = scene.things
    return rng.choice(POSITION_TEMPLATES).format(
        a=_indefinite(thing, rng, one=("a", "a", "one", "a single")),
        place=rng.choice(PLACE_WORDS[scene.where]),
        size=rng.choice(SIZE_WORDS[thing.size]),
        colour=_colour(thing, rng),
        shape=_shape(thing, rng),
        background=background,
    )


def _relation(scene: Scene, background: str, rng: random.Random) -> str:
    (a, b), relation, converse = scene.things, scene.where, CONVERSE[scene.where]
    if rng.random() < 0.5:
        a, b, relation, converse = b, a, converse, relation
    a_is, _, a_side = RELATION_WORDS[relation]
    _, b_is_with, b_side = RELATION_WORDS[converse]
    side = rng.randrange(len(a_side))  # the same form for both sides
    it, its = ("it", "its") if a.count == 1 else ("them", "their")
    return rng.choice(RELATION_TEMPLATES).format(
        a=_indefinite(a, rng),
        b=_indefinite(b, rng),
        the_a=f"the {_noun(a, rng)}",
        the_b=f"the {_noun(b, rng)}",
        be="is" if a.count == 1 else "are",
        relation=rng.choice(a_is),
        relation_of_b=rng.choice(b_is_with).format(it=it, its=its),
        side_of_a=a_side[side],
        side_of_b=b_side[side],
        background=background,
    )


def _count(scene: Scene, background: str, rng: random.Random) -> str:
    (thing,) = scene.things
    two = thing.count == 2
    templates: tuple[str, ...] = COUNT_TEMPLATES
    if not two and scene.where != "scattered":
        templates += LINE_TEMPLATES
    things = _indefinite(thing, rng)
    if two and rng.random() < 0.25:
        things = f"a pair of {things.removeprefix('two ')}"
    return rng.choice(templates).format(
        things=things,
        arrangement=rng.choice(ARRANGEMENT_WORDS[scene.where, two]),
        number=NUMBER_WORDS[thing.count],
        shapes=_shape(thing, rng),
        colour=_colour(thing, rng),
        all="both" if two else "all",
        line=scene.where,
        background=background,
    )


def _indefinite(thing: Thing, rng: random.Random, one: tuple[str, ...] = ("a",)) -> str:
    noun = _noun(thing, rng)
    if thing.count > 1:
        return noun
    article = rng.choice(one)
    return f"{'an' if article == 'a' and noun[0] in 'aeiou' else article} {noun}"


def _noun(thing: Thing, rng: random.Random) -> str:
    number = NUMBER_WORDS.get(thing.count, "")
    words = (number, rng.choice(SIZE_WORDS[thing.size]), _colour(thing, rng), _shape(thing, rng))
    return " ".join(word for word in words if word)


def _colour(thing: Thing, rng: random.Random) -> str:
    return rng.choice(COLOUR_WORDS.get(thing.colour, (thing.colour,)))


def _shape(thing: Thing, rng: random.Random) -> str:
    word = rng.choice(SHAPE_WORDS.get(thing.shape, (thing.shape,)))
    return word if thing.count == 1 else plural(word)


def plural(word: str) -> str:
    """The plural of a shape's name."""
    return f"{word}{'es' if word.endswith('s') else 's'}"


def opposite(relation: str) -> str:
    """The relation the other way round: of ``left of`` it is ``right of``."""
    return {**CONVERSE, **{back: there for there, back in CONVERSE.items()}}[relation]
