"""VQA accuracy, against what the published evaluation code answered."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest

from bitgen.evaluation.vqa_metrics import normalize_answer, vqa_accuracy, vqa_scores

PUBLISHED = json.loads(Path(__file__).with_name("vqa_v2_cases.json").read_text(encoding="utf-8"))


def test_answers_are_normalised_as_published():
    assert len(PUBLISHED["normalized"]) > 300
    different = [(text, wanted) for text, wanted in PUBLISHED["normalized"] if normalize_answer(text) != wanted]
    assert not different


def test_accuracy_is_the_published_one():
    found = [100 * vqa_accuracy(answer, people) for answer, people, _ in PUBLISHED["accuracy"]]
    wanted = [value for _, _, value in PUBLISHED["accuracy"]]
    assert found == pytest.approx(wanted, abs=1e-6) and set(wanted) == {0, 30, 60, 90, 100}


@pytest.mark.parametrize("agreed", range(11))
def test_leaving_one_out_is_the_mean_over_the_sets_without_one(agreed):
    people = ["yes"] * agreed + ["no"] * (10 - agreed)
    sets = [people[:i] + people[i + 1 :] for i in range(10)]
    plain = sum(min(one.count("yes") / 3, 1) for one in sets) / 10
    assert vqa_accuracy("Yes.", people) == pytest.approx(plain)


def test_one_reference_is_exact_match():
    assert vqa_accuracy("the Red ball!", ["red ball"]) == 1
    assert vqa_accuracy("red balls", ["red ball"]) == 0
    assert vqa_accuracy("2", ["two", "three"]) == 0.5
    assert vqa_accuracy("2", ["two"] * 3) == vqa_accuracy("2", ["two"] * 4) == 1


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("ＹＥＳ！", "yes"),
        ("红色。", "红色"),
        ("「赤」", "赤"),
        ("빨간 공?", "빨간 공"),
        ("ต้นไม้", "ต้นไม้"),
        ("dont\u2019", "dont'"),
        ("don\u2019t know", "don't know"),
        ("50%", "50%"),
    ],
)
def test_answers_in_any_script(text, wanted):
    assert normalize_answer(text) == unicodedata.normalize("NFKC", wanted)


def test_scores_of_a_set():
    found = vqa_scores(["yes", " ", "a cat"], [["yes"] * 2 + ["no"] * 8, ["dog"] * 10, "cat"])
    assert found["vqa_accuracy"] == pytest.approx(100 * (0.6 + 0 + 1) / 3)
    assert found["exact_match"] == pytest.approx(200 / 3)
    assert (found["questions"], found["no_answer"]) == (3, 1)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="no answers"):
        vqa_scores([], [])
    with pytest.raises(ValueError, match="2 answers for 1 questions"):
        vqa_scores(["a", "b"], ["a"])
    with pytest.raises(ValueError, match=r"question 1 \(answered b\): no answer to compare it with"):
        vqa_scores(["a", "b"], ["a", []])


def test_no_answer_is_never_right_and_a_choice_may_be_an_article():
    assert vqa_accuracy("A", ["A"]) == vqa_accuracy("a", ["A"]) == 1
    assert vqa_accuracy("an", ["A"]) == vqa_accuracy("", ["A"]) == vqa_accuracy(" ", ["?"]) == 0
    found = vqa_scores(["", "B", "A"], [["A"], ["B"], ["A"]])
    assert found["vqa_accuracy"] == found["exact_match"] == pytest.approx(200 / 3) and found["no_answer"] == 1
