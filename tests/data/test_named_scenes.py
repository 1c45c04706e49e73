"""Captions in which things go by a name say their scene, and what has a name in training has none in evaluation."""

from __future__ import annotations

import random
import re

import pytest

from bitgen.data.episodes.names import invented_names
from bitgen.data.scenes.descriptions import COLOURS, SHAPES, Scene, Thing, is_held_out_pair
from bitgen.data.scenes.named import (
    ALONE,
    ONE_OF,
    QUESTIONS,
    Entity,
    entities,
    named_caption,
    naming,
    read_named_caption,
    scene_alone,
    scene_with,
)
from bitgen.data.scenes.reading import read_caption
from bitgen.data.scenes.wording import COLOUR_WORDS, SHAPE_WORDS, caption_scene
from support.speaking import made_of

RED_STAR, BLUE_RING = Entity("red", "star"), Entity("blue", "ring")
SIDE_BY_SIDE = Scene("relation", (Thing("red", "star"), Thing("blue", "ring")), "left of")


def drawn(seed: int, held_out: bool, named: int) -> tuple[Scene, dict[Entity, str], random.Random]:
    """A scene of one thing or two, of which ``named`` have a name."""
    rng = random.Random(f"{seed} {held_out} {named}")
    entity, other = rng.sample(entities(held_out), 2)
    scene = scene_with(entity, other, rng) if named == 2 or rng.random() < 0.5 else scene_alone(entity, rng)
    names = dict(zip((entity, other)[:named], invented_names(named, rng, held_out), strict=True))
    return scene, names, rng


def says(caption: str, entity: Entity) -> bool:
    """Whether a caption names a thing by colour and shape."""
    colours, shapes = COLOUR_WORDS.get(entity.colour, (entity.colour,)), SHAPE_WORDS.get(entity.shape, (entity.shape,))
    return re.search(rf"\b(?:{'|'.join(colours)}) (?:{'|'.join(shapes)})\b", caption) is not None


@pytest.mark.parametrize("named", [0, 1, 2])
@pytest.mark.parametrize("held_out", [False, True])
def test_a_named_caption_reads_back_to_its_scene(held_out: bool, named: int) -> None:
    for seed in range(700):
        scene, names, rng = drawn(seed, held_out, named)
        caption = named_caption(scene, names, rng)
        read = read_named_caption(caption, names, scene)
        assert read is not None and read.meaning == scene.meaning, caption
        if "background" in caption:
            assert read.background == scene.background, caption
        for entity, name in names.items():
            assert re.findall(rf"\b{name}\b", caption) == [name] and not says(caption, entity), caption
        unnamed = [thing for thing in scene.things if Entity(thing.colour, thing.shape) not in names]
        for thing in unnamed if len(scene.things) == 2 else ():
            assert says(caption, Entity(thing.colour, thing.shape)), caption
        assert re.findall(r"\b[A-Z]\w*", caption) == sorted(names.values(), key=caption.index), caption
        if names:
            assert read_caption(caption) is None, f"a name is no word of captions: {caption}"


@pytest.mark.parametrize("held_out", [False, True])
def test_names_the_wrong_way_round_are_another_scene(held_out: bool) -> None:
    others = 0
    for seed in range(300):
        scene, names, rng = drawn(seed, held_out, 2)
        one, other = names.values()
        caption = named_caption(scene, names, rng)
        swapped = caption.replace(one, "Nobody").replace(other, one).replace("Nobody", other)
        read = read_named_caption(swapped, names, scene)
        assert read is None or read.meaning != scene.meaning, swapped
        others += read is not None
    assert others > 290, "it is a caption, of the things the other way round"


def test_a_caption_without_the_name_or_with_another_is_none() -> None:
    for seed in range(300):
        scene, names, rng = drawn(seed, False, 1)
        (name,) = names.values()
        caption = named_caption(scene, names, rng)
        plain = caption_scene(scene, rng)
        assert read_named_caption(plain, names, scene) is None, plain
        assert read_named_caption(caption, {}, scene) is None, caption
        for wrong in ("Nobody", name.lower(), f"{name}x", f"{name} {name}"):
            assert read_named_caption(re.sub(rf"\b{name}\b", wrong, caption), names, scene) is None, (caption, wrong)


@pytest.mark.parametrize(
    ("caption", "names", "where"),
    [
        ("Rex is left of a blue ring", {RED_STAR: "Rex"}, "left of"),
        ("Rex is left of the blue ring", {RED_STAR: "Rex"}, "left of"),
        ("a picture of a blue hoop to the right of Rex on a dark background", {RED_STAR: "Rex"}, "left of"),
        ("on the left Rex, on the right Blick", {RED_STAR: "Rex", BLUE_RING: "Blick"}, "left of"),
        ("Rex is above Blick", {RED_STAR: "Rex", BLUE_RING: "Blick"}, "above"),
        ("Rex is right of a blue ring", {RED_STAR: "Rex"}, None),  # the things the other way round
        ("Rex is left of a blue star", {RED_STAR: "Rex"}, None),
        ("Rex is left of a red star", {BLUE_RING: "Rex"}, None),
        ("Rex is left of a", {RED_STAR: "Rex"}, None),
        ("Rex", {RED_STAR: "Rex"}, None),
        ("Rexis left of a blue ring", {RED_STAR: "Rex"}, None),
        ("the Rex is left of a blue ring", {RED_STAR: "Rex"}, None),
        ("Rex is left of Rex", {RED_STAR: "Rex"}, None),
        ("a red star is left of Rex", {RED_STAR: "Rex"}, None),
    ],
)
def test_a_caption_written_by_hand(caption: str, names: dict[Entity, str], where: str | None) -> None:
    read = read_named_caption(caption, names, SIDE_BY_SIDE)
    found = None if read is None or read.things != SIDE_BY_SIDE.things else read.where
    assert found == where


def test_what_evaluation_names_training_never_does() -> None:
    ours, theirs = set(entities(False)), set(entities(True))
    assert not ours & theirs and ours | theirs == {Entity(colour, shape) for colour in COLOURS for shape in SHAPES}
    assert {entity for entity in ours | theirs if is_held_out_pair(*entity)} < theirs
    assert {entity.colour for entity in ours} == set(COLOURS) and {entity.shape for entity in ours} == set(SHAPES)
    assert len(theirs) > 15 and len(ours) > 40


@pytest.mark.parametrize("forms", [ALONE, ONE_OF, QUESTIONS], ids=["alone", "one of", "questions"])
def test_wordings_all_differ(forms: tuple[str, ...]) -> None:
    assert len(set(forms)) == len(forms) > 2


@pytest.mark.parametrize("held_out", [False, True])
def test_a_naming_has_the_name_and_says_which_of_several_it_is_of(held_out: bool) -> None:
    rng, words = random.Random(0), set()
    for _ in range(400):
        entity, other = rng.sample(entities(held_out), 2)
        scene = scene_with(entity, other, rng) if rng.random() < 0.5 else scene_alone(entity, rng)
        text = naming("Rex", entity, scene, rng, held_out)
        thing = f"{entity.colour} {entity.shape}"
        assert "Rex" in re.findall(r"\w+", text)
        assert (thing in text.lower()) == (len(scene.things) == 2)
        form = text.replace("Rex", "{name}")
        words.add((form[:1].lower() + form[1:]).replace(thing, "{thing}"))
    if not held_out:  # with other words before and behind, and some in another order
        bare = {*ALONE[:-1], *ONE_OF[:-1]}
        found = {text: made_of(text, bare) for text in words}
        assert all(found.values()) and len(words) > 4 * len(bare)
        assert not [text for text in words if ALONE[-1] in text or ONE_OF[-1] in text]
        words = set().union(*found.values())
    expected = {ALONE[-1], ONE_OF[-1]} if held_out else {*ALONE[:-1], *ONE_OF[:-1]}
    assert words == expected
