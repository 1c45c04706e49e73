"""Lines of several models combined: by hand, with what some models lack, and what is no line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "over_seeds.py"


def write(path: Path, *lines: dict) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def combine(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True)


def measure(name: str, value: float | None, **more: object) -> dict:
    return {"name": name, **more, "value": value, "interval": 1.0, "episodes": 24}


@pytest.fixture
def three(tmp_path) -> list[Path]:
    values = ((90.0, 1.0), (94.0, 2.0), (95.0, None))
    return [
        write(tmp_path / f"{n}.jsonl", measure("says", says, facts=8), measure("taught", taught, facts=1))
        for n, (says, taught) in enumerate(values)
    ]


def test_the_mean_and_its_interval_are_over_models(three) -> None:
    done = combine(*three)
    (line,) = map(json.loads, done.stdout.splitlines())  # one model could not measure the other
    assert line.items() >= {"name": "says", "facts": 8, "lowest": 90.0, "highest": 95.0, "models": 3}.items()
    assert line["value"] == pytest.approx(93.0)
    # Deviations -3, 1, 2: a variance of 14 / 2; Student's t of two degrees of freedom is 4.303.
    assert line["interval"] == pytest.approx(4.303 * (7 / 3) ** 0.5, rel=1e-3)
    assert "left out, as not every model has them: 1" in done.stderr


def test_one_model_has_no_interval_and_the_table_a_column_for_each_number_of_facts(three) -> None:
    (line, _) = map(json.loads, combine(three[0]).stdout.splitlines())
    assert line["interval"] is None and line["value"] == 90.0
    table = combine("--markdown", *three[:2]).stdout.splitlines()
    assert table[0] == "| facts | 1 | 8 |"
    assert table[2].startswith("| says |  | 92.0 ±") and table[2].endswith(" (90.0) |")
    assert table[3].startswith("| taught | 1.5 ±") and table[3].endswith(" (1.0) |  |")


@pytest.mark.parametrize("line", ["not JSON", "[1]", '{"name": "says"}', '{"value": "many"}'])
def test_what_is_no_measure_is_named(tmp_path, three, line: str) -> None:
    with three[1].open("a") as file:
        file.write(line + "\n")
    done = combine(*three)
    assert done.returncode == 1 and f"{three[1]}, line 3" in done.stderr and "Traceback" not in done.stderr


def test_a_measure_that_is_there_twice_and_a_missing_file(tmp_path, three) -> None:
    done = combine(write(tmp_path / "twice.jsonl", measure("says", 1.0, facts=8), measure("says", 2.0, facts=8)))
    assert done.returncode == 1 and "twice.jsonl, line 2" in done.stderr
    done = combine(tmp_path / "none.jsonl")
    assert done.returncode == 1 and "none.jsonl cannot be read" in done.stderr and "Traceback" not in done.stderr
