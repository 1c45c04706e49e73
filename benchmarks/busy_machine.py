"""What waiting threads cost: training speed with libgomp's own spinning and with machine/threads.py's, in one run.

    python benchmarks/busy_machine.py

Runs the quickstart's first steps in processes of the real entry, in turn: `default` loads torch first, so that nothing
is decided and no variable set; `bounded` is the entry as it is; `--also NAME=VALUE` adds a run with that variable set.
Each of them is started twice: on the machine as it is (`idle`), where `--burners` processes that only compute begin
while it runs (`busy_later`: nothing decided at the start can have known of them), and beside burners (`busy`). They end
with the benchmark, whatever ends it.

Prints a JSON line for each way of waiting and each state of the machine:
  samples_per_sec      median over the rounds of a process's median step,
  each_round           those medians,
  ratio_to_default     median over the rounds of the ratio to `default` in the same round,
  worst_other_cores    cores' worth of time that other processes took while it was measured, in the worst round,
  threads              what the entry decided at the start, in the last round.
On a machine that is really idle the last is below 0.1; a warning says where it was not. Linux alone.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parents[1]
ENTRY = REPOSITORY / "src" / "train_stage1_vision_language.py"
# With torch there already, the entry decides nothing: libgomp has read its variables.
TORCH_FIRST = "import runpy, sys, torch; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
# Ends when its parent does, also after a kill that leaves the parent no time to stop it. The parent's number is passed:
# it may be gone before the burner could ask for it.
BURNER = "import os, sys\nwhile os.getppid() == int(sys.argv[1]):\n    sum(range(100000))"
CHOICES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "MKL_NUM_THREADS")
# What a kernel and this benchmark take by themselves on an idle machine.
IDLE = 0.1
PATIENCE = 300.0

logger = logging.getLogger("busy_machine")


STATES = ("idle", "busy_later", "busy")


class Part(NamedTuple):
    """What one process did in one state of the machine: its median step, what others took, and what it had decided."""

    samples_per_sec: float
    other_cores: float
    threads: str = ""


def command_of(way: str, folder: Path, max_steps: int) -> tuple[list[str], dict[str, str]]:
    """The process of one way of waiting, and its environment."""
    environment = {name: value for name, value in os.environ.items() if name not in CHOICES}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ENTRY.parent), environment.get("PYTHONPATH"))))
    if "=" in way:
        name, value = way.split("=", 1)
        environment[name] = value
    start = [sys.executable, "-c", TORCH_FIRST] if way == "default" else [sys.executable]
    settings = {
        "config": REPOSITORY / "configs" / "quickstart.yaml",
        "output_dir": folder / "checkpoints",
        "log_dir": folder / "logs",
        "val_data": "none",
        "resume": "none",
        "log_steps": 1,
        "max_steps": max_steps,
    }
    flags = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
    return [*start, str(ENTRY), *flags], environment


def speeds_of(metrics: Path) -> list[float]:
    """Samples a second of each step that the run has written so far."""
    try:
        whole = metrics.read_text().rpartition("\n")[0].splitlines()
    except OSError:
        return []
    rows = (json.loads(line) for line in whole)
    return [row["perf/samples_per_sec"] for row in rows if "perf/samples_per_sec" in row]


def wait_for_step(step: int, metrics: Path, process: subprocess.Popen[bytes]) -> None:
    """Returns when the run has written that many steps.

    Raises:
        RuntimeError: it ended before, or took longer than ``PATIENCE`` seconds.
    """
    until = time.monotonic() + PATIENCE
    while len(speeds_of(metrics)) < step:
        if process.poll() is not None or time.monotonic() > until:
            raise RuntimeError(f"no step {step} in {metrics}: what the run said is in {metrics.parents[1] / 'said'}")
        time.sleep(0.05)


def ticks_of_others(process: subprocess.Popen[bytes]) -> float:
    """Clock ticks that all cores spent for processes other than the run, its data workers and this one."""
    used = [int(value) for value in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    busy = sum(used) - used[3] - used[4]  # all but idle and waiting for disks
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for number in (str(os.getpid()), str(process.pid), *children):
        fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
        busy -= int(fields[11]) + int(fields[12])
    return busy


@contextmanager
def burners(count: int) -> Iterator[None]:
    """Processes that only compute while the block runs."""
    with ExitStack() as started:
        for _ in range(count):
            burner = subprocess.Popen([sys.executable, "-c", BURNER, str(os.getpid())])
            started.callback(burner.wait)
            started.callback(burner.kill)
        yield


def run(way: str, folder: Path, plan: dict[str, tuple[int, int]], beside: dict[str, int]) -> dict[str, Part]:
    """Train in one process and measure it in each state of ``plan``.

    Args:
        way: as ``command_of``.
        folder: a new one, for what the run writes.
        plan: of each state in turn, the steps that are not counted and those that are.
        beside: how many burners start with each state; those of the first state start before the run.
    """
    folder.mkdir(parents=True)
    metrics = folder / "logs" / "metrics.jsonl"
    # A step more than are counted: after its last one a run goes on to write its checkpoint, and may be gone.
    command, environment = command_of(way, folder, sum(map(sum, plan.values())) + 1)
    parts: dict[str, Part] = {}
    with (folder / "said").open("wb") as said, ExitStack() as stack:
        process, last = None, 0
        for state, (uncounted, counted) in plan.items():
            stack.enter_context(burners(beside[state]))
            if process is None:
                process = subprocess.Popen(command, env=environment, stdout=said, stderr=subprocess.STDOUT)
                stack.callback(process.wait)
                stack.callback(process.kill)
            first, last = last + uncounted, last + uncounted + counted
            wait_for_step(first, metrics, process)
            before, started = ticks_of_others(process), time.monotonic()
            wait_for_step(last, metrics, process)
            ticks = (ticks_of_others(process) - before) / os.sysconf("SC_CLK_TCK")
            others = ticks / (time.monotonic() - started)
            parts[state] = Part(statistics.median(speeds_of(metrics)[first:last]), others, decided(folder / "said"))
            logger.info("%s, %s: %.1f samples/s, others took %.2f cores", way, state, *parts[state][:2])
    return parts


def decided(said: Path) -> str:
    """The entry's line about its threads."""
    lines = said.read_text(errors="replace").splitlines()
    return next((line[line.index("threads: ") :] for line in lines if "threads: " in line), "")


def results(rounds: list[dict[str, dict[str, Part]]]) -> list[dict[str, object]]:
    """A line for each way and state; ``rounds`` gives a way's parts by state."""
    lines: list[dict[str, object]] = []
    for state in STATES:
        for way in rounds[0]:
            parts = [each[way][state] for each in rounds]
            ratios = [
                part.samples_per_sec / each["default"][state].samples_per_sec
                for part, each in zip(parts, rounds, strict=True)
            ]
            lines.append(
                {
                    "name": way,
                    "machine": state,
                    "samples_per_sec": round(statistics.median(part.samples_per_sec for part in parts), 2),
                    "each_round": [round(part.samples_per_sec, 2) for part in parts],
                    "ratio_to_default": round(statistics.median(ratios), 3),
                    "worst_other_cores": round(max(part.other_cores for part in parts), 2),
                    "threads": parts[-1].threads,
                }
            )
            if state == "idle" and any(part.other_cores > IDLE for part in parts):
                logger.warning("%s: the machine was not idle, so its idle figures say little", way)
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2, help="how often all is run (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=12, help="steps on the machine as it is (default: %(default)s)")
    parser.add_argument("--busy_steps", type=int, default=2, help="steps beside burners (default: %(default)s)")
    parser.add_argument("--warm_steps", type=int, default=3, help="steps before those (default: %(default)s)")
    parser.add_argument("--burners", type=int, default=2, help="processes that compute beside (default: %(default)s)")
    parser.add_argument("--also", nargs="*", default=[], metavar="NAME=VALUE", help="a variable to try as well")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    ways = ["default", "bounded", *arguments.also]
    warm, quiet, beside_burners = arguments.warm_steps, arguments.steps, arguments.busy_steps
    beside = {"idle": 0, "busy_later": arguments.burners, "busy": arguments.burners}
    # In the first step beside burners that begin later, part of the time is without them.
    plans = ({"idle": (warm, quiet), "busy_later": (1, beside_burners)}, {"busy": (1, beside_burners)})
    rounds: list[dict[str, dict[str, Part]]] = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.rounds):
            done: dict[str, dict[str, Part]] = {way: {} for way in ways}
            # Every other round backwards: what follows what must not matter.
            for way in ways if number % 2 == 0 else reversed(ways):
                for which, plan in enumerate(plans):
                    done[way] |= run(way, Path(folder) / f"{number}-{which}-{way}", plan, beside)
            rounds.append(done)
    for line in results(rounds):
        print(json.dumps(line), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
