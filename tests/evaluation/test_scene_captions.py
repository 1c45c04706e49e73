"""How many captions of scenes are right, against hand-made answers."""

import random

import pytest

from bitgen.data.scenes.descriptions import Scene, Thing, iter_scenes
from bitgen.data.scenes.wording import caption_scene
from bitgen.evaluation.scene_captions import scene_caption_metrics

SCENE = Scene("relation", (Thing("red", "star", "small"), Thing("blue", "ring", "large")), "left of")


def test_true_captions_in_any_wording_are_right_in_everything() -> None:
    rng = random.Random(0)
    scenes = list(iter_scenes("val", 100, 42))
    found = scene_caption_metrics([caption_scene(scene, rng) for scene in scenes], scenes)
    assert set(found.values()) == {100.0}


@pytest.mark.parametrize(
    ("caption", "wrong"),
    [
        ("a tiny red star left of a big blue ring", set()),
        ("a red star left of a blue ring", {"right_with_size", "right_size"}),
        ("a tiny blue star left of a big red ring", {"right", "right_with_size"}),
        ("a tiny red star right of a big blue ring", {"right", "right_with_size"}),
        ("a tiny red star above a big blue ring", {"right", "right_with_size", "right_where"}),
        ("a tiny red star left of a big green ring", {"right", "right_with_size", "right_colour"}),
        ("a tiny red star left of a big blue cross", {"right", "right_with_size", "right_shape"}),
    ],
)
def test_what_is_wrong_in_a_caption(caption: str, wrong: set[str]) -> None:
    found = scene_caption_metrics([caption], [SCENE])
    assert {name for name, value in found.items() if value == 0} == wrong
    assert {value for value in found.values()} <= {0.0, 100.0}


def test_what_is_no_caption_is_wrong_in_everything_and_shares_are_means() -> None:
    found = scene_caption_metrics(["light light light", "a tiny red star left of a big blue ring"], [SCENE, SCENE])
    assert set(found.values()) == {50.0}
    with pytest.raises(ValueError, match="no captions"):
        scene_caption_metrics([], [])
