"""Sort-of-CLEVR: its counts, and its answers and rationales against what the pixels show."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import Counter, defaultdict
from typing import NamedTuple

import numpy as np
import pytest
import torch

from bitgen.config import Config
from bitgen.data.questions.boxes import intersection_over_union
from bitgen.data.questions.marked_text import Asked
from bitgen.data.sampler import SampleKey
from bitgen.data.scenes import sort_of_clevr
from bitgen.data.scenes.drawing import Placed, box_of
from bitgen.data.scenes.rationales import read_rationale
from bitgen.data.scenes.sort_of_clevr import PICTURES, SortOfClevr, draw_objects
from bitgen.model.processing_bitgen import BitGenProcessor
from bitgen.tasks.reasoning_data import validator_of
from support.warm import run_warm

SEED, SIDE = 3, 150
RGB = {
    "red": (222, 30, 38), "green": (40, 160, 62), "blue": (38, 78, 222),
    "orange": (250, 140, 20), "grey": (128, 128, 130), "yellow": (245, 218, 40),
}  # fmt: skip
# What marks a kind in any of its wordings, the first that is found.
KINDS = {
    "closest": "closest", "furthest": "furthest", "many": "count", "number": "count", "count": "count",
    "left": "left", "upper": "upper", "above": "upper", "top": "upper", "shape": "shape",
}  # fmt: skip
PROCESSOR = BitGenProcessor(None, SIDE, image_mean=(0, 0, 0), image_std=(1, 1, 1))


class Seen(NamedTuple):
    shape: str
    x: float
    y: float
    extent: float


def see(pixels: np.ndarray) -> dict[str, Seen]:
    """The object of each colour, from the pixels ``[3, H, W]`` alone."""
    found = {}
    for colour, rgb in RGB.items():
        away = np.linalg.norm(255 * pixels - np.array(rgb)[:, None, None], axis=0)
        rows, columns = np.nonzero(away < 45)
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        fill = len(rows) / (height * width)
        assert abs(height - width) <= 1 and min(abs(fill - 1), abs(fill - np.pi / 4)) < 0.08, (colour, fill)
        middle = (columns.mean() + 0.5) / SIDE, (rows.mean() + 0.5) / SIDE
        found[colour] = Seen("square" if fill > 0.9 else "circle", *middle, width / SIDE)
    return found


def kind_of(asked: Asked) -> str:
    return next(kind for mark, kind in KINDS.items() if re.search(rf"\b{mark}\b", asked.question))


def about(asked: Asked) -> str:
    (colour,) = re.findall(rf"\bthe ({'|'.join(RGB)}) thing\b", asked.question)
    return colour


def ordered_by_distance(seen: dict[str, Seen], colour: str) -> list[str]:
    def distance(other: str) -> float:
        return (seen[other].x - seen[colour].x) ** 2 + (seen[other].y - seen[colour].y) ** 2

    return sorted(set(seen) - {colour}, key=distance)


def objects_of(seen: dict[str, Seen], asked: Asked) -> list[str]:
    """Colours of the objects that a rationale must say, in their order."""
    colour, kind = about(asked), kind_of(asked)
    if kind == "count":
        return sorted((one for one in seen if seen[one].shape == seen[colour].shape), key=lambda one: seen[one].x)
    return [colour, *{"closest": ordered_by_distance(seen, colour)[:1],
                      "furthest": ordered_by_distance(seen, colour)[-1:]}.get(kind, [])]  # fmt: skip


def brute_force(seen: dict[str, Seen], asked: Asked) -> str:
    one, kind = seen[about(asked)], kind_of(asked)
    if kind in ("left", "upper"):
        return "yes" if (one.x if kind == "left" else one.y) < 0.5 else "no"
    if kind == "count":
        return str(sum(other.shape == one.shape for other in seen.values()))
    return seen[objects_of(seen, asked)[-1]].shape


def pictures(split: str, count: int, **settings):
    """(objects seen, what is asked) of pictures of a split."""
    source = SortOfClevr(PROCESSOR, SEED, split, **settings)
    for index in range(count):
        picture = source[SampleKey(index)]
        assert picture.pixels.shape == (3, SIDE, SIDE)
        yield see(picture.pixels.numpy()), picture.asked


@pytest.mark.parametrize("split", ["train", "test"])
def test_twenty_different_questions_of_a_picture_half_of_them_relational(split: str) -> None:
    source = SortOfClevr(PROCESSOR, SEED, split)
    assert len(source) == {"train": 9800, "test": 200}[split]
    wordings = defaultdict(set)
    for index in range(60):
        asked = source[SampleKey(index)].asked
        assert len({(kind_of(one), about(one)) for one in asked}) == len(asked) == 20
        assert Counter(one.family for one in asked) == {"relational": 10, "non-relational": 10}
        for one in asked:
            relational = kind_of(one) in ("closest", "furthest", "count")
            assert (one.family == "relational") == relational == (one.hops == 1), one
            wordings[kind_of(one)].add(one.question.replace(about(one), "X"))
    assert sorted(wordings) == sorted(set(KINDS.values()))
    assert all(len(forms) == 3 for forms in wordings.values())


@pytest.mark.parametrize("split", ["train", "test"])
def test_answers_and_rationales_are_what_the_pixels_show(split: str) -> None:
    answers = Counter()
    for seen, asked in pictures(split, 150, rationale_share=1.0):
        for one in asked:
            assert one.answer == brute_force(seen, one), (one, seen)
            answers[one.answer] += 1
            clauses = read_rationale(one.rationale)
            items = [item for clause in clauses for item in clause.items]
            expected = objects_of(seen, one)
            said = [item.name.split()[0] for item in items]
            assert [item.name for item in items] == [f"{colour} {seen[colour].shape}" for colour in said], one
            if kind_of(one) == "count":  # from left to right, as far as a pixel tells
                assert sorted(said) == sorted(expected), one
                assert np.diff([seen[colour].x for colour in said], prepend=0).min() > -1 / SIDE, one
            else:
                assert said == expected, one
            for item, colour in zip(items, said, strict=True):
                x, y = item.box.centre
                nearest = min(seen, key=lambda other: np.hypot(seen[other].x - x, seen[other].y - y))
                assert nearest == colour, one
                assert abs(item.box.x2 - item.box.x1 - seen[colour].extent) < 1 / 32 + 2 / SIDE, one
            if kind_of(one) == "count":
                assert len(clauses) == 1 and str(clauses[0].number) == one.answer, one
            elif one.family == "relational":
                assert f"; {kind_of(one)} <b" in one.rationale and len(clauses) == 2, one
            else:
                assert len(clauses) == 1, one
    assert set(answers) >= {"square", "circle", "yes", "no", *"12345"}


def test_a_box_of_a_rationale_covers_its_object() -> None:
    source = SortOfClevr(PROCESSOR, SEED, "train", rationale_share=1.0)
    for index in range(100):
        boxes = {placed.thing.colour: box_of(placed) for placed in draw_objects(SEED, index)}
        for one in source[SampleKey(index)].asked:
            for item in (item for clause in read_rationale(one.rationale) for item in clause.items):
                assert intersection_over_union(item.box, boxes[item.name.split()[0]]) > 0.5


def gap(one: Placed, other: Placed) -> float:
    """What is between two objects, negative where they overlap: a circle is its middle and a reach around it."""
    across, along = abs(one.x - other.x), abs(one.y - other.y)
    reach = 0.0
    for placed in (one, other):
        box = box_of(placed)
        half = (box.x2 - box.x1) / 2
        if placed.thing.shape == "circle":
            reach += half
        else:
            across, along = across - half, along - half
    if max(across, along) < 0:
        return max(across, along) - reach
    return float(np.hypot(max(across, 0), max(along, 0))) - reach


def test_no_answer_is_in_doubt_and_no_objects_overlap() -> None:
    for number in range(1500):
        objects = draw_objects(SEED, number)
        assert [placed.thing.colour for placed in objects] == list(RGB)
        places = np.array([(placed.x, placed.y) for placed in objects])
        assert np.abs(places - 0.5).min() >= 0.02
        distances = np.linalg.norm(places[:, None] - places, axis=-1)
        ordered = np.sort(distances, axis=1)[:, 1:]  # without itself
        assert (ordered[:, 1] - ordered[:, 0]).min() >= 0.01 - 1e-9
        assert (ordered[:, -1] - ordered[:, -2]).min() >= 0.01 - 1e-9
        boxes = [box_of(placed) for placed in objects]
        assert all(min(box) >= 0 and max(box) <= 1 for box in boxes)
        assert all(gap(*pair) > 0 for pair in itertools.combinations(objects, 2))
        assert {placed.radius for placed in objects} == {5 / 75}


def test_who_guesses_the_most_frequent_answer_is_right_by_chance(record_property) -> None:
    """1 + Binomial(5, 1/2) things have a shape: the most frequent number is right 10 times in 32."""
    answers: dict[str, Counter] = defaultdict(Counter)
    for split in ("train", "test"):
        for text in SortOfClevr(PROCESSOR, SEED, split, rationale_share=0.0).texts(2000):
            question, _, said = text.rpartition(" ")
            answers[kind_of(Asked(question, said))][said] += 1
    guesses = {kind: max(counts.values()) / counts.total() for kind, counts in answers.items()}
    record_property("majority guess", guesses)
    for kind, right in guesses.items():
        assert right < (0.34 if kind == "count" else 0.52), guesses
    assert set(answers["count"]) == set("123456")


def test_an_epoch_draws_questions_words_and_rationales_but_the_test_never_changes() -> None:
    train, test = (SortOfClevr(PROCESSOR, SEED, split, 4, 0.5) for split in ("train", "test"))
    whole = SortOfClevr(PROCESSOR, SEED, "train")
    first, again, later = (train[SampleKey(7, epoch)] for epoch in (0, 0, 1))
    assert first.asked == again.asked != later.asked and len(later.asked) == 4
    assert first.pixels.equal(later.pixels)
    of_picture = {(kind_of(one), about(one)) for one in whole[SampleKey(7)].asked}
    shown = {(kind_of(one), about(one)) for epoch in range(40) for one in train[SampleKey(7, epoch)].asked}
    assert shown == of_picture, "all of its twenty and no others are shown in the long run"
    assert test[SampleKey(7, 0)].asked == test[SampleKey(7, 1)].asked and len(test[SampleKey(7)].asked) == 20
    thought = [one.rationale is not None for index in range(100) for one in test[SampleKey(index)].asked]
    assert 0.45 < np.mean(thought) < 0.55
    more, none = (SortOfClevr(PROCESSOR, SEED, "test", rationale_share=share)[SampleKey(7)] for share in (1.0, 0.0))
    assert [one.question for one in more.asked] == [one.question for one in none.asked]
    assert all(one.rationale is None for one in none.asked) and all(one.rationale for one in more.asked)


def test_the_splits_and_the_seeds_have_no_picture_in_common() -> None:
    train, test = (sort_of_clevr.PICTURES[split] for split in ("train", "test"))
    assert not set(train) & set(test) and len(train) + len(test) == 10_000
    scenes = [draw_objects(SEED, number) for number in (*train[:1500], *test)]
    scenes += [draw_objects(SEED + 1, number) for number in test]
    assert len(set(scenes)) == len(scenes)
    test_scenes = SortOfClevr(PROCESSOR, SEED, "test")
    assert see(test_scenes[SampleKey(0)].pixels.numpy())["red"].x == pytest.approx(
        draw_objects(SEED, 9800)[0].x, abs=0.01
    )
    for index in (-1, 200):
        with pytest.raises(IndexError, match="test"):
            test_scenes[SampleKey(index)]


_DIGEST = """
import hashlib
from bitgen.data.sampler import SampleKey
from bitgen.data.scenes.sort_of_clevr import SortOfClevr
from bitgen.model.processing_bitgen import BitGenProcessor
print(*(hashlib.sha256(repr((p.asked, p.pixels.tolist())).encode()).hexdigest() for p in (
    SortOfClevr(BitGenProcessor(None, 30), 5, split, 6)[SampleKey(11, 2)] for split in ("train", "test"))))
"""


def test_another_process_draws_the_same() -> None:
    processor = BitGenProcessor(None, 30)
    drawn = [SortOfClevr(processor, 5, split, 6)[SampleKey(11, 2)] for split in ("train", "test")]
    own = [hashlib.sha256(repr((one.asked, one.pixels.tolist())).encode()).hexdigest() for one in drawn]
    other = run_warm(["-c", _DIGEST])  # whose sets have another order
    assert other.stdout.split() == own, other.stderr


def test_wrong_settings_say_so() -> None:
    with pytest.raises(ValueError, match="'val'.*train, test"):
        SortOfClevr(PROCESSOR, SEED, "val")
    for per_picture in (0, 21):
        with pytest.raises(ValueError, match=f"per_picture is {per_picture}"):
            SortOfClevr(PROCESSOR, SEED, "train", per_picture)


def test_training_is_validated_on_none_of_the_test_and_none_of_training() -> None:
    ranges = [set(numbers) for numbers in PICTURES.values()]
    assert set(PICTURES) == {"train", "test", "validation"}
    assert all(not one & other for one, other in itertools.combinations(ranges, 2))
    config = Config().replace(question_val_data="sort_of_clevr", question_data="sort_of_clevr")
    validator = validator_of(config, PROCESSOR)
    test, own = (SortOfClevr(PROCESSOR, config.training.seed, split) for split in ("test", "validation"))
    assert torch.equal(validator.pictures[0].pixels, own[SampleKey(0)].pixels)
    assert not torch.equal(validator.pictures[0].pixels, test[SampleKey(0)].pixels)
