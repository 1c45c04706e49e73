"""Threads: decided before torch is loaded, by the process's share of the machine, and never against a person's word."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bitgen.machine import threads
from bitgen.machine.threads import SPINS, decide

REPOSITORY = Path(__file__).resolve().parents[2]
BOUNDED = {"GOMP_SPINCOUNT": str(SPINS)}


@pytest.mark.parametrize(
    ("environment", "cores", "quota", "expected"),
    [
        ({}, 2, None, BOUNDED),  # OpenMP itself takes all cores: today's numbers
        ({}, 64, None, BOUNDED),
        ({}, 64, 2.0, {**BOUNDED, "OMP_NUM_THREADS": "2"}),
        ({}, 64, 1.5, {**BOUNDED, "OMP_NUM_THREADS": "2"}),
        ({}, 64, 0.5, {**BOUNDED, "OMP_NUM_THREADS": "1"}),
        ({}, 2, 8.0, BOUNDED),
        ({"LOCAL_WORLD_SIZE": "4"}, 16, None, {**BOUNDED, "OMP_NUM_THREADS": "4"}),
        ({"LOCAL_WORLD_SIZE": "4"}, 16, 8.0, {**BOUNDED, "OMP_NUM_THREADS": "2"}),
        ({"LOCAL_WORLD_SIZE": "8"}, 2, None, {**BOUNDED, "OMP_NUM_THREADS": "1"}),
        ({"LOCAL_WORLD_SIZE": "1"}, 2, None, BOUNDED),
        ({"LOCAL_WORLD_SIZE": "many"}, 2, None, BOUNDED),
        ({"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "2"}, 2, None, BOUNDED),  # as torchrun sets it
        ({"OMP_NUM_THREADS": "7"}, 2, 1.0, BOUNDED),
        ({"GOMP_SPINCOUNT": "5"}, 2, None, {}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, 2, None, {}),
        ({"KMP_BLOCKTIME": "0"}, 2, None, {}),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, 8, 2.0, {"OMP_NUM_THREADS": "2"}),
        ({"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "3"}, 8, 2.0, {}),
    ],
)
def test_what_is_set(environment: dict[str, str], cores: int, quota: float | None, expected: dict[str, str]) -> None:
    before = dict(environment)
    assert decide(environment, cores, quota).variables == expected
    assert environment == before


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, ("2 of 8 cores", f"at most {SPINS} spins", "GOMP_SPINCOUNT")),
        ({"OMP_NUM_THREADS": "3"}, ("OMP_NUM_THREADS=3", f"at most {SPINS} spins")),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, ("2 of 8 cores", "as OMP_WAIT_POLICY=ACTIVE says")),
        ({"GOMP_SPINCOUNT": "5", "OMP_WAIT_POLICY": "ACTIVE"}, ("GOMP_SPINCOUNT=5, OMP_WAIT_POLICY=ACTIVE",)),
    ],
)
def test_what_is_said(environment: dict[str, str], said: tuple[str, ...]) -> None:
    sentence = decide(environment, 8, 2.0).sentence
    for part in said:
        assert part in sentence


def test_the_strictest_limit_of_nested_groups_counts(tmp_path: Path) -> None:
    groups = tmp_path / "cgroup"
    groups.write_text("0::/outer/inner\n")
    inner = tmp_path / "fs" / "outer" / "inner"
    inner.mkdir(parents=True)
    (inner / "cpu.max").write_text("max 100000\n")
    assert threads._quota(groups, tmp_path / "fs") is None
    (inner.parent / "cpu.max").write_text("150000 100000\n")
    assert threads._quota(groups, tmp_path / "fs") == 1.5
    (inner / "cpu.max").write_text("50000 100000\n")
    assert threads._quota(groups, tmp_path / "fs") == 0.5


def test_a_container_that_shows_only_its_own_root(tmp_path: Path) -> None:
    groups = tmp_path / "cgroup"
    groups.write_text("5:memory:/on/the/host\n4:cpu,cpuacct:/on/the/host\n0::/\n")
    for controllers, quota in (("memory", "100000"), ("cpu,cpuacct", "400000")):
        folder = tmp_path / "fs" / controllers
        folder.mkdir(parents=True)
        (folder / "cpu.cfs_quota_us").write_text(f"{quota}\n")
        (folder / "cpu.cfs_period_us").write_text("100000\n")
    assert threads._quota(groups, tmp_path / "fs") == 4.0
    (tmp_path / "fs" / "cpu,cpuacct" / "cpu.cfs_quota_us").write_text("-1\n")
    assert threads._quota(groups, tmp_path / "fs") is None


def test_no_control_groups(tmp_path: Path) -> None:
    assert threads._quota(tmp_path / "missing", tmp_path) is None


def in_a_new_process(code: str, **environment: str) -> list[str]:
    """The lines that ``code`` prints where nobody chose anything but ``environment``."""
    chosen = ("OMP_NUM_THREADS", "LOCAL_WORLD_SIZE", *threads.WAITING)
    kept = {name: value for name, value in os.environ.items() if name not in chosen}
    kept |= {"PYTHONPATH": str(REPOSITORY / "src"), **environment}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=kept, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


# A finder that is asked for torch first of all sees the environment that libgomp will see.
WATCHED = """
import importlib.abc, os, sys
class Watch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "torch":
            print(os.environ.get("GOMP_SPINCOUNT"), flush=True)
            os._exit(0)  # torch itself would take seconds
sys.meta_path.insert(0, Watch())
import train_stage1_vision_language
print("torch was not asked for")
"""


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({}, "ours"), ({"GOMP_SPINCOUNT": "77"}, "77"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "None")],
)
def test_the_entry_sets_them_before_torch_is_imported(environment: dict[str, str], expected: str) -> None:
    (seen,) = in_a_new_process(WATCHED, **environment)
    assert seen == (str(SPINS) if expected == "ours" else expected)


def test_the_decision_imports_no_torch_and_is_made_once() -> None:
    code = (
        "import os, sys\n"
        "from bitgen.machine.threads import threads_of_this_process as chosen\n"
        "first = chosen()\n"
        "print('torch' in sys.modules, *first.variables)\n"
        "os.environ.update(first.variables)\n"
        "print(chosen() == first)\n"
    )
    kept, same = in_a_new_process(code)
    assert "GOMP_SPINCOUNT" in kept and kept.startswith("False") and same == "True"


def test_nothing_is_set_where_torch_has_loaded_openmp_already(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in threads.WAITING:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(sys.modules, "torch", object())
    assert threads.threads_of_this_process.__wrapped__().variables == {}
    monkeypatch.delitem(sys.modules, "torch")
    assert "GOMP_SPINCOUNT" in threads.threads_of_this_process.__wrapped__().variables
