"""Kills training runs at random moments, goes on with `--resume auto`, and compares what they end with.

  python benchmarks/faults.py --minutes 10

Small runs on built-in scenes, on one process and on two by turns: `kill -9` to all of a run's processes, or to one of
them, after a random time; then the same command again, until it ends by itself. Its newest checkpoint must be equal to
the last bit to that of a run that nobody disturbed. After each kill the newest whole checkpoint must be readable. One
JSON line a run, and one of counts at the end; the exit status is 1 where anything was lost, damaged or unequal.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from bitgen.checkpoint.format import CheckpointError, find_checkpoint
from bitgen.config import Config
from bitgen.guards.numbers import finite_float
from support.runs import REPOSITORY, TINY, command, environment, same_checkpoint

# Long enough that a run is most often killed while it trains, short enough for dozens of runs in ten minutes.
_SETTINGS = {**TINY, "max_steps": 24, "save_steps": 2, "lora_warmup_steps": 12, "ema_decay": 0.9, "val_data": "scenes"}
_SETTINGS |= {"eval_steps": 8, "caption_sampling": "one", "token_dropout": 0.1}
_LONGEST = 600.0  # seconds that a run may take by itself
_MOST_KILLS = 8


class Run:
    """A training run in a folder of its own."""

    def __init__(self, folder: Path, processes: int) -> None:
        self.folder, self.output = folder, folder / "run"
        config = Config().replace(**{**_SETTINGS, "output_dir": str(self.output), "log_dir": str(folder / "log")})
        self.arguments = command(config, processes, resume="auto")

    def start(self) -> subprocess.Popen[bytes]:
        """Start it, or go on."""
        with open(self.folder / "said.txt", "ab") as said:
            return subprocess.Popen(self.arguments, env=environment(), cwd=REPOSITORY, stdout=said, stderr=said)

    def finish(self) -> float:
        """Run it to its end; the seconds that it took. Raises RuntimeError with its last words where it fails."""
        started, process = time.monotonic(), self.start()
        try:
            status = process.wait(_LONGEST)
        finally:
            kill_all(process)
        if status:
            raise RuntimeError(f"status {status}: {self.last_words()}")
        return time.monotonic() - started

    def last_words(self) -> str:
        """The end of what it said."""
        return (self.folder / "said.txt").read_text(errors="replace")[-1000:]


def kill_all(process: subprocess.Popen[bytes], started: Sequence[int] = ()) -> None:
    """End the process and all that it started, now or, as ``started`` says, before it ended."""
    for number in (*descendants(process.pid), *started, process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    process.wait()


def descendants(process: int) -> list[int]:
    """The processes that one started, and what these started, by Linux's /proc: ranks have groups of their own."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    found = [process]
    for one in found:  # grows meanwhile
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


def disturb(run: Run, within: float, draw: random.Random) -> str:
    """Start it and kill it after a random time; what was killed, or "nothing" where it had ended before."""
    process = run.start()
    end = time.monotonic() + draw.uniform(0.1, within)
    while time.monotonic() < end and process.poll() is None:
        time.sleep(0.01)
    if process.poll() is not None:
        if process.returncode:
            raise RuntimeError(f"status {process.returncode}: {run.last_words()}")
        return "nothing"
    started = descendants(process.pid)
    if started and draw.random() < 0.5:
        with contextlib.suppress(ProcessLookupError):
            os.kill(draw.choice(started), signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(draw.uniform(1, 30))  # the others may notice, or be killed as well
        kill_all(process, started)
        return "one process"
    kill_all(process)
    return "all processes"


def one(folder: Path, straight: Run, processes: int, seconds: float, draw: random.Random, counts: Counter[str]) -> None:
    """Disturb a run until it ends, and compare it. Raises what shows that something was lost."""
    folder.mkdir()
    run, ended = Run(folder, processes), False
    for _ in range(draw.randint(1, _MOST_KILLS)):
        killed = disturb(run, seconds, draw)
        if killed == "nothing":
            ended = True
            break
        counts[f"kills of {killed}"] += 1
        found = find_checkpoint("auto", run.output)
        counts["kills before the first checkpoint"] += found is None
        counts["damaged checkpoints"] += 0 if found is None else len(found.damaged)
    if not ended:
        run.finish()
    same_checkpoint(straight.output, run.output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--minutes",
        type=finite_float,
        default=10,
        metavar="N",
        help="after the undisturbed runs (default: %(default)s)",
    )
    parser.add_argument("--processes", type=int, choices=(1, 2), nargs="+", default=[1, 2], help="default: 1 2")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the moments (default: %(default)s)")
    flags = parser.parse_args()
    draw, counts = random.Random(flags.seed), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        straight: dict[int, tuple[Run, float]] = {}
        for processes in flags.processes:
            place = Path(folder) / f"straight-{processes}"
            place.mkdir()
            run = Run(place, processes)
            straight[processes] = (run, run.finish())
        number, end = 0, time.monotonic() + 60 * flags.minutes
        while time.monotonic() < end:
            processes = flags.processes[number % len(flags.processes)]
            number, (undisturbed, seconds) = number + 1, straight[processes]
            line: dict[str, object] = {"run": number, "processes": processes}
            try:
                one(Path(folder) / str(number), undisturbed, processes, seconds, draw, counts)
                line["result"] = "equal"
            except (AssertionError, RuntimeError, CheckpointError, subprocess.TimeoutExpired) as error:
                line["result"] = f"{type(error).__name__}: {error}"[-2000:]
                counts["failures"] += 1
            line["kills so far"] = sum(count for name, count in counts.items() if name.startswith("kills of"))
            print(json.dumps(line), flush=True)
    print(json.dumps({"runs": number, "failures": 0, **counts}))
    sys.exit(1 if counts["failures"] or counts["damaged checkpoints"] else 0)


if __name__ == "__main__":
    main()
