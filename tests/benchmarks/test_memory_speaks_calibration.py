"""Bins of the probabilities that are shown with what was recalled."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from memory_speaks_calibration import calibration

from bitgen.memory.answering import Answer


def answer(confidence: float, recalled: tuple[int, ...], asked: tuple[int, ...]) -> Answer:
    return Answer(SimpleNamespace(facts=asked), "", "", recalled, confidence)  # type: ignore[arg-type]


def test_answers_are_counted_by_the_probability_of_their_surest_fact() -> None:
    given = [
        answer(1.0, (1,), (1,)),  # the last bin has its end
        answer(0.99, (2, 1), (1, 2)),  # in any order
        answer(0.995, (1,), (1, 2)),  # one is missing
        answer(0.85, (1,), ()),  # nothing was taught
        answer(0.1, (), ()),
        answer(0.2, (), (3,)),  # held back
    ]
    found = calibration(given)
    assert set(found) == {(0.0, 0.6), (0.8, 0.9), (0.99, 1.0)}
    mean, right, count = found[0.99, 1.0]
    assert mean == pytest.approx((1 + 0.99 + 0.995) / 3) and right == pytest.approx(200 / 3) and count == 3
    assert found[0.8, 0.9] == (0.85, 0, 1) and found[0.0, 0.6] == (pytest.approx(0.15), 50, 2)
    assert calibration([]) == {}
