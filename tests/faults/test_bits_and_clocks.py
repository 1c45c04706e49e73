"""A flipped bit anywhere in a checkpoint's files, and a clock that jumps."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from unittest import mock

import pytest

from bitgen.checkpoint.format import find_checkpoint
from faults.harness import flip, spread_bits
from faults.writers import WRITERS

SOURCES = Path(__file__).resolve().parents[2] / "src"


@pytest.mark.parametrize("name", ["model.safetensors", "training_state.pt", "config.yaml"])
def test_a_flipped_bit_in_a_checkpoint_costs_that_checkpoint_alone(tmp_path, name) -> None:
    WRITERS["checkpoint"].write(tmp_path / "good", 1)
    shutil.copytree(tmp_path / "good", tmp_path / "run", symlinks=True)
    (file,) = tmp_path.glob(f"run/step-00000001/{name}")
    for bit in spread_bits(file, 40):
        shutil.copytree(tmp_path / "run" / "step-00000001", tmp_path / "run" / "step-00000002", dirs_exist_ok=True)
        flip(tmp_path / "run" / "step-00000002" / name, bit)
        found = find_checkpoint("auto", tmp_path / "run")
        assert found.step == 1 and found.path.name == "step-00000001"
        assert [path.name for path in found.damaged] == ["step-00000002"]


def test_a_clock_that_jumps_changes_no_file(tmp_path) -> None:
    """What is newest goes by steps and versions, not by the time of day."""
    for version, now in ((1, 4e9), (2, 1.0)):
        with mock.patch("time.time", lambda now=now: now):
            for name, writer in WRITERS.items():
                (tmp_path / name).mkdir(exist_ok=True)
                writer.write(tmp_path / name, version)
                assert writer.read(tmp_path / name) == version


def test_nothing_is_decided_by_the_time_of_day() -> None:
    """Durations and budgets are measured by a clock that does not jump; the time of day is for people to read."""
    wall = re.compile(r"time\.time\(|datetime\.now|time_ns|st_mtime|st_ctime|getmtime")
    found = {path.name for path in SOURCES.rglob("*.py") if wall.search(path.read_text(encoding="utf-8"))}
    assert found <= {"episodes.py"}, found
