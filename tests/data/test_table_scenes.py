"""Scenes to reason about: nothing in them is in doubt, their boxes are those of the pixels, a key is a scene."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from bitgen.data.questions.boxes import Box
from bitgen.data.scenes.descriptions import BACKGROUNDS, COLOURS, SHAPES, Thing, is_held_out_pair, scene_rng
from bitgen.data.scenes.drawing import Placed, box_of, render_placed
from bitgen.data.scenes.tables import SIZES, TableScene, render_table, table_scene
from support.runs import run_code

MARGIN = 0.06
SIDE = 400  # pixels of a picture that is measured
KINDS = pytest.mark.parametrize("kind", ["train", "pair", "many", "many_pair"])


@pytest.fixture(scope="module")
def many() -> dict[str, list[TableScene]]:
    return {
        "train": [table_scene((3, index)) for index in range(600)],
        "pair": [table_scene((4, index), held_out_pair=True) for index in range(300)],
        "many": [table_scene((5, index), 7, 8) for index in range(200)],
        "many_pair": [table_scene((6, index), 7, 8, held_out_pair=True) for index in range(100)],
    }


def extents(objects: list[Placed], background: str = "light", size: int = SIDE) -> Box:
    """What objects change of a picture, in pixels."""
    shown, empty = (
        np.asarray(render_placed(some, background, size, scene_rng("measured"))).astype(int) for some in (objects, [])
    )
    changed = np.abs(shown - empty).max(axis=2) > 16
    rows, columns = np.nonzero(changed)
    return Box(columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


# ---- what is in a scene ----


@KINDS
def test_left_of_and_above_are_never_in_doubt(many, kind: str) -> None:
    for scene in many[kind]:
        for one, other in combinations(scene.objects, 2):
            assert abs(one.x - other.x) >= MARGIN and abs(one.y - other.y) >= MARGIN, scene


@KINDS
def test_objects_are_whole_and_apart(many, kind: str) -> None:
    for scene in many[kind]:
        for placed, box in ((placed, box_of(placed)) for placed in scene.objects):
            assert min(box.x1, box.y1, 1 - box.x2, 1 - box.y2) > 0, scene
            assert box.holds(placed.x, placed.y)
        for one, other in combinations(scene.objects, 2):
            gap = np.hypot(one.x - other.x, one.y - other.y)
            assert gap >= 1.2 * (one.radius + other.radius) - 1e-9, scene


@KINDS
def test_no_two_objects_are_alike_and_a_name_fits_one(many, kind: str) -> None:
    for scene in many[kind]:
        triples = [(placed.thing.size, placed.thing.colour, placed.thing.shape) for placed in scene.objects]
        assert len(set(triples)) == len(triples), scene
        assert [scene.name(index) for index in range(len(triples))] == [" ".join(triple) for triple in triples]
        assert {size for size, _, _ in triples} <= set(SIZES) and scene.background in BACKGROUNDS


@pytest.mark.parametrize(("numbers", "pair"), [((3, 6), False), ((3, 6), True), ((7, 8), False), ((5, 5), False)])
def test_numbers_are_those_asked_for_each_equally_often(numbers: tuple[int, int], pair: bool) -> None:
    """Also where many objects seldom find a place."""
    found = Counter(len(table_scene((7, index), *numbers, pair).objects) for index in range(800))
    kinds = range(numbers[0], numbers[1] + 1)
    assert set(found) == set(kinds)
    share = 1 / len(kinds)
    assert min(found.values()) >= 800 * share - 4 * (800 * share * (1 - share)) ** 0.5, found


@KINDS
def test_held_out_pairs_are_where_they_are_asked_for_and_nowhere_else(many, kind: str) -> None:
    for scene in many[kind]:
        held_out = [is_held_out_pair(placed.thing.colour, placed.thing.shape) for placed in scene.objects]
        assert any(held_out) == scene.has_held_out_pair == kind.endswith("pair"), scene


def test_all_colours_shapes_and_sizes_are_shown_and_something_is_often_alike(many) -> None:
    things = [placed.thing for scene in many["train"] for placed in scene.objects]
    assert {thing.colour for thing in things} == set(COLOURS) and {thing.shape for thing in things} == set(SHAPES)
    sizes = Counter(thing.size for thing in things)
    assert 0.4 < sizes["small"] / len(things) < 0.6
    alike = [len({placed.thing.colour for placed in scene.objects}) < len(scene.objects) for scene in many["train"]]
    assert np.mean(alike) > 0.5
    shown = {(placed.thing.colour, placed.thing.shape) for scene in many["pair"] for placed in scene.objects}
    assert sum(is_held_out_pair(*pair) for pair in shown) == len(COLOURS)


def test_the_place_of_an_object_in_the_list_does_not_tell_whether_its_pair_is_held_out(many) -> None:
    at = Counter(
        index
        for scene in many["many_pair"]
        for index, placed in enumerate(scene.objects)
        if is_held_out_pair(placed.thing.colour, placed.thing.shape)
    )
    assert max(at.values()) < 0.35 * at.total()


# ---- boxes and pixels ----


@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_box_is_what_the_pixels_fill(shape: str, size: str) -> None:
    """Of an object alone, by what it changes of the empty picture."""
    rng = scene_rng("boxes", shape, size)
    for background in (*BACKGROUNDS, *BACKGROUNDS):
        radius = rng.uniform(0.06, 0.07) if size == "small" else rng.uniform(0.095, 0.11)
        x, y = rng.uniform(0.2, 0.8), rng.uniform(0.2, 0.8)
        placed = Placed(Thing(rng.choice(COLOURS), shape, size), x, y, radius, rng.uniform(-0.12, 0.12))
        seen = extents([placed], background)
        assert np.abs(np.array(seen) - SIDE * np.array(box_of(placed))).max() < 1.5, placed
    flipped = box_of(placed._replace(x=0.5, y=0.5))
    assert max(flipped) < 0.5 + 1.2 * radius and min(flipped) > 0.5 - 1.2 * radius


def test_boxes_of_whole_scenes_are_where_their_objects_are_drawn(many) -> None:
    for number, scene in enumerate(many["many"][:12]):
        whole = np.asarray(render_table(scene, SIDE, ("whole", number))).astype(int)
        assert whole.shape == (SIDE, SIDE, 3)
        outside = np.ones((SIDE, SIDE), dtype=bool)
        for index in range(len(scene.objects)):
            x1, y1, x2, y2 = (round(SIDE * edge) for edge in scene.box(index))
            inside = whole[y1:y2, x1:x2]
            middle = inside.min() < 160 if scene.background == "light" else inside.max() > 90
            assert middle, "there is something in the box"
            outside[max(y1 - 2, 0) : y2 + 2, max(x1 - 2, 0) : x2 + 2] = False
        spread = whole[outside]
        assert spread.min() > 200 if scene.background == "light" else spread.max() < 60, "and nothing elsewhere"


def test_a_large_object_looks_larger_than_a_small_one(many) -> None:
    for shape in SHAPES:
        sides: dict[str, list[float]] = {"small": [], "large": []}
        for scene in many["train"]:
            for placed in scene.objects:
                if placed.thing.shape == shape:
                    box = box_of(placed)
                    sides[placed.thing.size].append(box.x2 - box.x1)
        assert 1.15 * max(sides["small"]) < min(sides["large"])


# ---- a key is a scene ----


def test_another_process_draws_the_same_scenes_and_pictures() -> None:
    code = """
import hashlib
from bitgen.data.scenes.tables import render_table, table_scene
for index in range(6):
    scene = table_scene((9, "train", index), 3, 8, bool(index % 2))
    print(scene, hashlib.sha256(render_table(scene, 56, (9, index)).tobytes()).hexdigest())
"""
    first, second = (run_code(code, PYTHONHASHSEED=seed) for seed in ("1", "2"))
    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout
    scenes = [str(table_scene((9, "train", index), 3, 8, bool(index % 2))) for index in range(6)]
    assert [line.rpartition(" ")[0] for line in first.stdout.splitlines()] == scenes


def test_other_keys_are_other_scenes() -> None:
    scenes = [table_scene(key) for key in [(1, 2), (2, 1), (1, 2, 0), (12,), ("train", 1, 2), ("val", 1, 2)]]
    assert len(set(scenes)) == len(scenes)
    assert table_scene((1, 2)) == scenes[0]


def test_shades_come_from_the_key_and_places_do_not() -> None:
    scene = table_scene((1,), 4, 4)
    one, other = (np.asarray(render_table(scene, 200, (shade,))).astype(int) for shade in (1, 2))
    assert np.array_equal(one, np.asarray(render_table(scene, 200, (1,)))) and not np.array_equal(one, other)
    assert np.abs(one - other).max() < 70, "shades differ, and no object moves"
