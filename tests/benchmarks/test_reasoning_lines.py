"""The lines of the benchmark of reasoning say of how many things each figure is, and its interval is of so many."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
from PIL import Image

from bitgen.config.stage2 import Stage2Config
from support.runs import written_run

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


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        ("longer", "--arm longer: write NAME=DIR"),
        ("longer=nowhere", "--arm longer=nowhere: nowhere"),
        ("longer={captioner}", "was not trained to answer questions"),
    ],
)
def test_an_arm_that_cannot_be_measured_is_named_before_anything_is_measured(capsys, arm: str, message: str) -> None:
    main = runpy.run_path(str(SCRIPT))["main"]
    with pytest.raises(SystemExit) as stopped:
        main(["--arm", arm.format(captioner=written_run())])
    said = capsys.readouterr()
    assert stopped.value.code == 2 and message in said.err and not said.out


@pytest.mark.parametrize("models", [1, 3])
def test_hops_are_drawn_of_one_model_and_of_several(tmp_path: Path, models: int) -> None:
    module = runpy.run_path(str(SCRIPT.parents[1] / "docs" / "figures_of_reasoning.py"))
    files = []
    for seed in range(models):
        lines = [
            {"arm": "longer", "way": way, "split": split, "name": f"accuracy_{hops}_hops", "value": 80.0 + seed - hops,
             "low": 75.0 - hops, "high": 90.0 - hops}
            for way in ("direct", "rationale")
            for split, chain in (("in distribution", range(4)), ("2 and 3 hops", (2, 3)), ("4 hops", (4,)))
            for hops in chain
        ]  # fmt: skip
        files.append(tmp_path / f"{seed}.jsonl")
        files[-1].write_text("".join(json.dumps(line) + "\n" for line in lines))
    module["draw_hops"](files, tmp_path / "hops.png")
    assert Image.open(tmp_path / "hops.png").size[0] > 500
    three = [{"value": 80.0, "low": 0.0, "high": 100.0}, {"value": 85.0, "low": 0.0, "high": 100.0}]
    assert module["_ends"](three) == (80.0, 85.0) and module["_ends"](three[:1]) == (0.0, 100.0)
