"""Scenes in which something has a name: how it is taught, what a caption with the name says, and reading that back."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Mapping
from typing import NamedTuple

from bitgen.data.episodes.facts import surrounded, wording
from bitgen.data.scenes.descriptions import (
    BACKGROUNDS,
    COLOURS,
    PLACES,
    RELATIONS,
    SHAPES,
    Scene,
    Thing,
    is_held_out_pair,
)
from bitgen.data.scenes.reading import read_caption
from bitgen.data.scenes.wording import COLOUR_WORDS, SHAPE_WORDS, SIZE_WORDS, caption_scene

_TAUGHT_ONLY_IN_EVALUATION = 8  # of the pairs that training shows, one in eight is never taught there
_SIZES = "|".join(word for words in SIZE_WORDS.values() for word in words if word)
_ARTICLES = "an?|one|a single|the"

# How the only thing in a picture is named, and how one of several is; the last of each is held out, its words are not.
ALONE = (
    "this is {name}", "its name is {name}", "meet {name}", "{name}", "it is called {name}", "we call it {name}",
    "that is {name}", "the name of this is {name}", "you see {name} here", "this is called {name}",
)  # fmt: skip
ONE_OF = (
    "the {thing} is {name}", "{name} is the {thing}", "the {thing} is called {name}", "we call the {thing} {name}",
    "the name of the {thing} is {name}", "meet {name}, the {thing}", "the {thing} has the name {name}",
    "{name} is the name of the {thing}",
)  # fmt: skip
# Questions about a picture, after which the name follows; the last is held out.
QUESTIONS = (
    "what is {relation} the {other}?", "who is {relation} the {other}?", "who stands {relation} the {other}?",
    "what do you see {relation} the {other}?", "who can be seen {relation} the {other}?",
    "what is the name of the thing {relation} the {other}?", "name the thing {relation} the {other}:",
    "what is that {relation} the {other}?", "say who is {relation} the {other}:",
    "{relation} the {other} is", "{relation} the {other} stands", "{relation} the {other} you see",
    "the thing {relation} the {other} is called", "the name of what is {relation} the {other} is",
    "one sees {relation} the {other}", "{relation} the {other} there is",
)  # fmt: skip


class Entity(NamedTuple):
    """What can have a name: a colour and a shape."""

    colour: str
    shape: str


def entities(held_out: bool) -> list[Entity]:
    """Those that training teaches, or those that it never does: the pairs that no scene of training shows, and one in
    eight of the others."""
    every = [Entity(colour, shape) for colour in COLOURS for shape in SHAPES]
    return [entity for entity in every if _is_held_out(entity) == held_out]


def _is_held_out(entity: Entity) -> bool:
    digest = hashlib.blake2b(f"taught {entity.colour} {entity.shape}".encode(), digest_size=4).digest()
    rarely = int.from_bytes(digest, "little") % _TAUGHT_ONLY_IN_EVALUATION == 0
    return rarely or is_held_out_pair(*entity)


def scene_alone(entity: Entity, rng: random.Random) -> Scene:
    """A scene with the entity alone, at one of nine places."""
    thing = Thing(*entity, size=rng.choice(("small", "large")))
    return Scene("position", (thing,), rng.choice(PLACES), rng.choice(BACKGROUNDS))


def scene_with(entity: Entity, other: Entity, rng: random.Random) -> Scene:
    """A scene with both, either of them first."""
    sizes = rng.choice((("medium", "medium"), ("medium", "medium"), ("small", "large"), ("large", "small")))
    things = [Thing(*one, size=size) for one, size in zip((entity, other), sizes, strict=True)]
    rng.shuffle(things)
    return Scene("relation", tuple(things), rng.choice(RELATIONS), rng.choice(BACKGROUNDS))


def naming(name: str, entity: Entity, scene: Scene, rng: random.Random, held_out: bool) -> str:
    """What a picture of the scene is taught with."""
    forms = ALONE if len(scene.things) == 1 else ONE_OF
    form = wording(forms, rng, held_out)
    text = form.format(name=name, thing=f"{entity.colour} {entity.shape}")
    return text if held_out else surrounded(text, rng)


def named_caption(scene: Scene, names: Mapping[Entity, str], rng: random.Random) -> str:
    """A caption in which each of the things that have a name goes by it, and which says all else of the scene."""
    while True:
        caption = caption_scene(scene, rng)
        for entity, name in names.items():
            caption = _phrase(entity).sub(name, caption)
        read = read_named_caption(caption, names, scene)
        if read is not None and read.meaning == scene.meaning:
            return caption


def read_named_caption(caption: str, names: Mapping[Entity, str], scene: Scene) -> Scene | None:
    """The scene that a caption describes whose names stand for things; None: it is no caption, or a name is missing.

    Args:
        scene: the one that was described: the sizes of things that have a name are taken over, which no name tells.
    """
    nouns = {}
    for entity, name in names.items():
        if len(re.findall(rf"\b{re.escape(name)}\b", caption)) != 1:
            return None
        (thing,) = (thing for thing in scene.things if (thing.colour, thing.shape) == tuple(entity))
        size = "" if thing.size == "medium" else f"{thing.size} "
        nouns[name] = f"{size}{entity.colour} {entity.shape}"
    if not names:
        return read_caption(caption)
    pattern = re.compile(r"\b(" + "|".join(re.escape(name) for name in nouns) + r")\b")

    def with_articles(indefinite: bool) -> str:
        def noun_of(found: re.Match[str]) -> str:
            noun = nouns[found[1]]
            article = "the" if not indefinite else "an" if noun[0] in "aeiou" else "a"
            return f"{article} {noun}"

        return pattern.sub(noun_of, caption)

    return read_caption(with_articles(True)) or read_caption(with_articles(False))


def _phrase(entity: Entity) -> re.Pattern[str]:
    colours = "|".join(COLOUR_WORDS.get(entity.colour, (entity.colour,)))
    shapes = "|".join(SHAPE_WORDS.get(entity.shape, (entity.shape,)))
    return re.compile(rf"\b(?:{_ARTICLES}) (?:(?:{_SIZES}) )?(?:{colours}) (?:{shapes})\b")
