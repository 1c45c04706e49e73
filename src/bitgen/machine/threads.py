"""How many OpenMP threads a process computes with and how they wait: decided before torch loads OpenMP.

The builds of torch on PyPI for Linux bring GNU's libgomp, which reads these variables once, when it is loaded. This
module therefore imports neither torch nor anything that does. Other runtimes (Intel's, LLVM's) ignore GOMP_SPINCOUNT.
"""

from __future__ import annotations

import functools
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

# A thread that waits for another first asks again and again (it spins), and then sleeps. libgomp's own 300,000 spins
# are milliseconds. Where the other thread has lost its core to another program, they are taken from the very core that
# it needs: training is many times slower. To be woken costs tens of microseconds, so waiting about that long before
# sleeping is good on an idle machine and on a busy one, and the load may change while a run goes on. Measured by
# benchmarks/busy_machine.py.
SPINS = 30_000

# Whoever set one of these has chosen how threads wait.
WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")


class Threads(NamedTuple):
    """Environment variables to set before torch is imported, and the decision in words, for the log."""

    variables: dict[str, str]
    sentence: str


def decide(environment: Mapping[str, str], cores: int, quota: float | None = None) -> Threads:
    """What to add to ``environment``; what a person or a launcher set there stays.

    The number of threads never depends on what else the machine does: it decides in which order sums are added up,
    and so a run's last digits. How threads wait changes no number.

    Args:
        environment: the process's variables.
        cores: how many the process may run on.
        quota: how many cores' time its container gives it; None where it has no limit.
    """
    variables: dict[str, str] = {}
    number = max(1, _usable(cores, quota) // _processes(environment))
    said = f"threads: {number} of {cores} cores"
    if "OMP_NUM_THREADS" in environment:
        said = f"threads: OMP_NUM_THREADS={environment['OMP_NUM_THREADS']}"
    elif number < cores:  # otherwise OpenMP takes all cores by itself
        variables["OMP_NUM_THREADS"] = str(number)
    chosen = [f"{name}={environment[name]}" for name in WAITING if name in environment]
    if chosen:
        return Threads(variables, f"{said}; they wait as {', '.join(chosen)} says")
    variables["GOMP_SPINCOUNT"] = str(SPINS)
    return Threads(variables, f"{said}; waiting at most {SPINS} spins (GOMP_SPINCOUNT), then asleep")


@functools.cache
def threads_of_this_process() -> Threads:
    """The decision for this process, made at the first call; its ``variables`` are for the caller to set."""
    if "torch" in sys.modules:
        return Threads({}, "threads: torch was loaded before they could be chosen")
    cores = _cores()
    quota = _quota(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))
    return decide(os.environ, len(cores), quota)


def _usable(cores: int, quota: float | None) -> int:
    return cores if quota is None else min(cores, math.ceil(quota))


def _processes(environment: Mapping[str, str]) -> int:
    """How many processes of this run a launcher started on this machine."""
    return _whole(environment.get("LOCAL_WORLD_SIZE", ""), otherwise=1)


def _whole(text: str, otherwise: int) -> int:
    return int(text) if text.isdecimal() and int(text) > 0 else otherwise


def _cores() -> set[int]:
    if hasattr(os, "sched_getaffinity"):  # Linux
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _quota(groups: Path, mounted: Path) -> float | None:
    """Cores' worth of time that the process's control groups give it, of the strictest one; None without a limit.

    Args:
        groups: a line for each hierarchy, ``number:controllers:path``; both versions of control groups are known.
        mounted: the folder in which their files are.
    """
    try:
        lines = groups.read_text().splitlines()
    except OSError:  # not Linux
        return None
    found: list[float] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = mounted / controllers if controllers else mounted
        # In a container the path may be the host's, of which only the root is mounted there.
        inside = PurePosixPath(path.lstrip("/"))
        for folder in (inside, *inside.parents):
            found += _limit(root / folder)
    return min(found, default=None)


def _limit(folder: Path) -> list[float]:
    """The limit of one control group: version 2 has ``cpu.max``, version 1 two files."""
    try:
        if (folder / "cpu.max").exists():
            time, period = (folder / "cpu.max").read_text().split()
        else:
            time, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return [int(time) / int(period)] if time not in ("max", "-1") else []
    except (OSError, ValueError):
        return []
