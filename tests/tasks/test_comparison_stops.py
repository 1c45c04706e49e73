"""A comparison that is told to stop, or killed: its training ends after a step, and the same command goes on."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from bitgen.commands import compare_vlms
from bitgen.tasks.recipe import DONE
from support.runs import REPOSITORY, wait_for_step
from support.warm import start_warm
from tasks.test_comparison import write_file

STEPS = 120  # so many that the signal finds it training


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_its_training_stops_with_it_and_goes_on_at_the_same_command(tmp_path, number) -> None:
    stage = {"name": "tune", "trains": "connector,language", "max_steps": STEPS}
    runs = [{"name": "a", "connector": "mlp", "connector_depth": 2, "stages": [stage]}]
    path = write_file(tmp_path, runs=runs, score="loss")
    comparison = start_warm([REPOSITORY / "src" / "compare_vlms.py", "--config", path])
    wait_for_step(tmp_path / "log" / "a" / "tune", 1, comparison)
    (training,) = _trainings_of(comparison.pid)
    comparison.send_signal(number)
    comparison.communicate(60)
    deadline = time.monotonic() + 60
    while _alive(training):
        assert time.monotonic() < deadline, "the training outlives its comparison"
        time.sleep(0.1)
    assert comparison.returncode == (-number if number == signal.SIGKILL else 128 + number)
    folder = tmp_path / "out" / "a" / "tune"
    assert not (folder / DONE).exists()
    reached = max(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))
    assert 0 < reached < STEPS - 2

    if number == signal.SIGKILL:
        return  # what is left is the same, and one training that goes on is enough
    assert compare_vlms.main(["--config", str(path), "--max_steps", str(reached + 2)]) == 0
    lines = [json.loads(line) for line in (tmp_path / "log" / "a" / "tune" / "metrics.jsonl").open()]
    steps = [line["step"] for line in lines if "train/loss" in line]
    assert steps == sorted(set(steps)) and steps[-1] == reached + 2  # none twice: it went on, and did not begin anew


def _trainings_of(pid: int) -> list[int]:
    """Children of a process that train, and not multiprocessing's tracker of resources."""
    children = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return [child for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
