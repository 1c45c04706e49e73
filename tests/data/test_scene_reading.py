"""Captions of scenes are read back exactly, and nothing else is."""

import random

import pytest

from bitgen.data.scenes.descriptions import Scene, Thing, iter_scenes, random_scene
from bitgen.data.scenes.reading import read_caption
from bitgen.data.scenes.wording import caption_scene


@pytest.mark.parametrize("seed", range(5))
def test_every_caption_says_its_own_scene_and_its_background_where_it_names_one(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(2000):
        scene = random_scene(rng)
        caption = caption_scene(scene, rng)
        read = read_caption(caption)
        assert read is not None, caption
        assert read.meaning == scene.meaning, caption
        if "background" in caption:
            assert read.background == scene.background


def test_captions_of_validation_scenes_tell_them_apart() -> None:
    rng = random.Random(0)
    scenes = list(iter_scenes("val", 300, 42))
    read = [read_caption(caption_scene(scene, rng)) for scene in scenes]
    assert len({scene.meaning for scene in read if scene is not None}) == len(scenes)


RED_STAR, BLUE_RING = Thing("red", "star"), Thing("blue", "ring")


@pytest.mark.parametrize(
    ("caption", "scene"),
    [
        ("a red star left of a blue hoop", Scene("relation", (RED_STAR, BLUE_RING), "left of")),
        ("a blue ring to the right of a red star", Scene("relation", (RED_STAR, BLUE_RING), "left of")),
        ("a blue ring with a red star to its left", Scene("relation", (RED_STAR, BLUE_RING), "left of")),
        ("on the right a blue ring, on the left a red star", Scene("relation", (RED_STAR, BLUE_RING), "left of")),
        ("a blue ring under a red star", Scene("relation", (RED_STAR, BLUE_RING), "above")),
        ("a pair of grey crosses one below the other", Scene("count", (Thing("grey", "cross", count=2),), "column")),
        ("the tiny disc at the top is violet", Scene("position", (Thing("purple", "circle", "small"),), "top")),
    ],
)
def test_a_caption_written_by_hand(caption: str, scene: Scene) -> None:
    read = read_caption(caption)
    assert read is not None
    assert read.meaning == scene.meaning


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "light light light",
        "a red star",
        "a red star left of",
        "a red stars left of a blue ring",
        "two red star left of a blue ring",
        "on the left a red star, on the left a blue ring",
        "three red stars, both red, in a row",
        "two red stars, all red, in a row",
        "a red star are left of a blue ring",
        "a red star left of a blue ring.",
        "a man rides a horse",
    ],
)
def test_what_is_no_caption_of_a_scene_says_nothing(caption: str) -> None:
    assert read_caption(caption) is None
