"""The busy machine's benchmark: ratios within a round, runs with and without the decision, burners that always end."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))  # behind src, which has a memory.py too

from busy_machine import CHOICES, ENTRY, Part, burners, command_of, decided, results, speeds_of


def test_ratios_are_of_the_same_round(caplog: pytest.LogCaptureFixture) -> None:
    def one_round(default: float, bounded: float, others: float) -> dict[str, dict[str, Part]]:
        busy = {"default": Part(default / 10, 2.0), "bounded": Part(bounded / 2, 2.0)}
        idle = {"default": Part(default, 0.0), "bounded": Part(bounded, others)}
        return {way: {"idle": idle[way], "busy_later": busy[way], "busy": busy[way]} for way in idle}

    with caplog.at_level(logging.WARNING):
        lines = results([one_round(100, 99, 0.0), one_round(50, 60, 0.5), one_round(80, 80, 0.01)])
    found = {(line["name"], line["machine"]): line for line in lines}
    assert [found["bounded", state]["ratio_to_default"] for state in ("idle", "busy")] == [1.0, 5.0]
    assert found["bounded", "idle"]["samples_per_sec"] == 80 and found["bounded", "idle"]["worst_other_cores"] == 0.5
    assert found["bounded", "busy"]["each_round"] == [49.5, 30, 40]
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["bounded"]


def test_a_persons_variables_reach_no_run_and_a_tried_one_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in CHOICES:
        monkeypatch.setenv(name, "1")
    default, environment = command_of("default", tmp_path, 7)
    assert default[1] == "-c" and str(ENTRY) in default and not set(CHOICES) & set(environment)
    bounded, environment = command_of("bounded", tmp_path, 7)
    assert bounded[1] == str(ENTRY) and not set(CHOICES) & set(environment)
    assert bounded[bounded.index("--max_steps") + 1] == "7"
    _, environment = command_of("OMP_WAIT_POLICY=PASSIVE", tmp_path, 7)
    assert {name: environment[name] for name in CHOICES if name in environment} == {"OMP_WAIT_POLICY": "PASSIVE"}


def test_a_line_that_is_half_written_is_not_read(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    assert speeds_of(metrics) == []
    metrics.write_text('{"perf/samples_per_sec": 3.5}\n{"val/t2i_R@1": 1.0}\n{"perf/samples_per_sec": 4')
    assert speeds_of(metrics) == [3.5]


def test_what_the_entry_decided_is_found_in_what_it_said(tmp_path: Path) -> None:
    (tmp_path / "said").write_text("09:00:00 Parameters\n09:00:01 threads: 2 of 2 cores; waiting\nmore\n")
    assert decided(tmp_path / "said") == "threads: 2 of 2 cores; waiting"
    (tmp_path / "said").write_text("09:00:00 Parameters\n")
    assert decided(tmp_path / "said") == ""


def test_burners_end_with_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Kept(subprocess.Popen):
        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__(*arguments, **options)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Kept)
    with pytest.raises(RuntimeError, match="on purpose"), burners(2):
        assert [burner.poll() for burner in started] == [None, None]
        raise RuntimeError("on purpose")
    assert len(started) == 2 and all(burner.poll() is not None for burner in started)


def test_a_burner_ends_when_its_parent_is_gone() -> None:
    parent = (
        "import os, subprocess, sys\n"
        f"sys.path.insert(0, {str(ENTRY.parents[1] / 'benchmarks')!r})\n"
        "from busy_machine import BURNER\n"
        "subprocess.Popen([sys.executable, '-c', BURNER, str(os.getpid())])\n"
    )
    # The burner holds the pipe: run() returns only when it has ended too.
    done = subprocess.run([sys.executable, "-c", parent], stdout=subprocess.PIPE, timeout=120, check=False)
    assert done.returncode == 0
