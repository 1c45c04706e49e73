"""The lines of the benchmark of reasoning say of how many things each figure is, and its interval is of so many."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

from bitgen.config.stage2 import Stage2Config

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "reasoning.py"


class Finder:
    """Answers nothing but where things are, with one figure for all; the mean overlap is from 0 to 1."""

    def __init__(self, *_: object) -> None: ...

    def where(self, count: int, seed: int, pair: bool) -> dict[str, float]:
        more = {} if pair else {"absent": 90.0, "named": 90.0}
        return {"acc@.5": 90.0, "mean IoU": 0.9, **more}


class OfNothing:
    model = processor = None
    config = Stage2Config()


def test_what_nothing_was_measured_of_is_null(capsys) -> None:
    """NaN is no JSON, and no number that other models' could be averaged with."""
    runpy.run_path(str(SCRIPT))["report"]("an arm", "direct", "chains", "follows", float("nan"), 0)
    line = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert line["value"] is line["interval"] is None


def test_a_perfect_score_of_few_questions_is_not_certain(capsys) -> None:
    runpy.run_path(str(SCRIPT))["report"]("an arm", "direct", "chains", "accuracy", 100.0, 31)
    line = json.loads(capsys.readouterr().out)
    assert (line["low"], line["high"]) == (pytest.approx(88.97, abs=0.01), pytest.approx(100))


def test_no_two_questions_are_about_one_picture(capsys, monkeypatch) -> None:
    """Else they would be right or wrong together, and the interval too narrow."""
    asked: list = []

    class Silent(Finder):
        def answer(self, given, _thinks) -> list:
            asked.append([one.key for one in given])
            return []

    measure = runpy.run_path(str(SCRIPT))["measure"]
    parts = {"Answerer": Silent, "majority": lambda _: 39.0, "ways_of": lambda _: ["direct"]}
    for name, part in parts.items():
        monkeypatch.setitem(measure.__globals__, name, part)
    measure("an arm", OfNothing(), 40, 60)
    capsys.readouterr()
    assert len(asked) == 6 * 3  # each split: its pictures, other ones, and none
    assert all(len(set(keys)) == len(keys) == 40 for keys in asked)


def test_a_figure_of_fewer_things_has_a_wider_interval(capsys, monkeypatch) -> None:
    measure = runpy.run_path(str(SCRIPT))["measure"]
    monkeypatch.setitem(measure.__globals__, "ASKED", ())
    monkeypatch.setitem(measure.__globals__, "Answerer", Finder)
    measure("an arm", OfNothing(), 400, 60)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = {(line["split"], line["name"]): line for line in lines}
    assert len(found) == len(lines) == 6
    of_all, of_fewer = found["in distribution", "where_acc@.5"], found["in distribution", "where_absent"]
    assert (of_all["questions"], of_fewer["questions"]) == (400, 100)
    assert found["in distribution", "where_named"]["questions"] == 100
    assert of_all["interval"] == pytest.approx(2.951, abs=0.001)  # Wilson's
    assert of_fewer["interval"] == pytest.approx(5.957, abs=0.001)
    for split in ("in distribution", "held-out pairs"):
        assert found[split, "where_mean IoU"]["interval"] is None  # a mean, and no share of things
