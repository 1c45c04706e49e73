"""A step that does not end is mentioned once, and nothing else changes."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import torch

from bitgen.machine.watch import StepWatch
from bitgen.training.throughput import Throughput
from support.runs import environment


def said(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if "is not over after" in record.getMessage()]


def until(condition, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_step_that_does_not_end_is_said_once_and_the_next_one_anew(caplog) -> None:
    began: list[float | None] = [time.perf_counter()]
    with StepWatch(0.05, lambda: began[0]):
        until(lambda: len(said(caplog)) == 1)
        time.sleep(0.3)
        began[0] = None
        time.sleep(0.3)
        assert len(said(caplog)) == 1 and said(caplog)[0].startswith("a step is not over after")
        began[0] = time.perf_counter()
        until(lambda: len(said(caplog)) == 2)
    assert "step watch" not in {thread.name for thread in threading.enumerate()}


def test_steps_in_time_and_what_is_between_them_say_nothing(caplog) -> None:
    with StepWatch(0.2, lambda: None), StepWatch(20, time.perf_counter), StepWatch(0, lambda: -1e9):
        time.sleep(0.5)
    assert not said(caplog)


def test_what_a_step_took_decides_and_not_what_came_after() -> None:
    throughput = Throughput(torch.device("cpu"), "fp32")
    assert throughput.began is None
    throughput.start_step()
    assert throughput.began is not None
    throughput.end_step(1, 1, None)
    assert throughput.began is None


def test_a_program_ends_though_nobody_left_the_watch() -> None:
    program = "from bitgen.machine.watch import StepWatch; StepWatch(600, lambda: None).__enter__()"
    subprocess.run([sys.executable, "-c", program], env=environment(), check=True, timeout=120)
