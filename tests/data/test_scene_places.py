"""Where things of a scene are: what is asked tells nothing of whether it is there."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from bitgen.data.questions.marked_text import NONE
from bitgen.data.scenes.descriptions import COLOURS, SHAPES
from bitgen.data.scenes.reasoning import where, where_absent
from bitgen.data.scenes.tables import HELD_OUT_PAIRS, SIZES, TableScene, table_scene

VALUES = {"size": SIZES, "colour": COLOURS, "shape": SHAPES}
SCENES = [table_scene(("places", index)) for index in range(1500)]


def words_of(question: str) -> dict[str, str]:
    said = question.rstrip("?").split()
    return {name: value for name, values in VALUES.items() for value in values if value in said}


def fitting(scene: TableScene, words: dict[str, str]) -> int:
    return sum(all(getattr(one.thing, name) == value for name, value in words.items()) for one in scene.objects)


@pytest.fixture(scope="module")
def asked() -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """The words about a thing of each scene, and about one that it does not have."""
    rng = random.Random(5)
    there = [words_of(where(scene, rng.randrange(len(scene.objects)), rng).question) for scene in SCENES]
    absent = [where_absent(scene, rng) for scene in SCENES]
    assert all(one.answer == NONE for one in absent)
    return there, [words_of(one.question) for one in absent]


def test_words_fit_one_thing_or_none(asked) -> None:
    there, absent = asked
    assert all(fitting(scene, words) == 1 for scene, words in zip(SCENES, there, strict=True))
    assert all(fitting(scene, words) == 0 for scene, words in zip(SCENES, absent, strict=True))


def test_how_it_is_put_does_not_tell_what_is_there(asked) -> None:
    """Which attributes are named, and with them every shape, colour and size, comes as often of either."""
    forms = [Counter(tuple(words) for words in some) for some in asked]
    assert len(forms[0]) == len(forms[1]) == 4
    for form in forms[0]:
        assert abs(forms[0][form] - forms[1][form]) < 0.04 * len(SCENES), form
    for name, values in VALUES.items():
        for value in values:
            shares = [sum(words.get(name) == value for words in some) / len(SCENES) for some in asked]
            assert abs(shares[0] - shares[1]) < 0.05, value


def test_what_is_absent_is_no_held_out_pair_and_often_a_near_miss(asked) -> None:
    _, absent = asked
    pairs = [(words.get("colour"), words["shape"]) for words in absent]
    assert not set(pairs) & set(HELD_OUT_PAIRS)
    near = [
        any(sum(getattr(one.thing, name) != value for name, value in words.items()) == 1 for one in scene.objects)
        for scene, words in zip(SCENES, absent, strict=True)
        if len(words) > 1
    ]
    assert sum(near) / len(near) > 0.5
