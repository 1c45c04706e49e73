"""A log that cannot be written is said once, and ends no run."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bitgen.show.metrics_file import drop_after, read_metrics
from bitgen.show.monitor import LOG_FILE, METRICS_FILE, Monitor


def fail(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Full(io.RawIOBase):
    """A file on a full disk."""

    def writable(self) -> bool:
        return True

    write = fail


def log_disk_full(monitor: Monitor, monkeypatch: pytest.MonkeyPatch) -> str:
    """It fails in flushing and, for what is still held back, in closing."""
    [handler] = [h for h in logging.getLogger().handlers if getattr(h, "baseFilename", "").endswith(LOG_FILE)]
    handler.stream.close()
    handler.stream = io.TextIOWrapper(io.BufferedWriter(Full()))
    return LOG_FILE


def metrics_disk_full(monitor: Monitor, monkeypatch: pytest.MonkeyPatch) -> str:
    monitor._metrics._file.close()
    monitor._metrics._file = Full()
    return METRICS_FILE


def tensorboard_fails(error: Exception) -> Callable[[Monitor, pytest.MonkeyPatch], str]:
    def break_it(monitor: Monitor, monkeypatch: pytest.MonkeyPatch) -> str:
        def raises(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(monitor._tensorboard, "add_scalar", raises)
        return "TensorBoard"

    return break_it


@pytest.mark.parametrize(
    "broken",
    [
        log_disk_full,
        metrics_disk_full,
        tensorboard_fails(OSError(errno.ENOSPC, "No space left on device")),
        tensorboard_fails(RuntimeError("the writer's thread is gone\x1b[2J")),
    ],
    ids=["training.log", "metrics.jsonl", "TensorBoard's disk", "TensorBoard"],
)
def test_a_log_that_fails_is_named_once_and_the_run_goes_on(tmp_path: Path, monkeypatch, capsys, broken) -> None:
    monitor = Monitor(tmp_path, progress=False)
    named = broken(monitor, monkeypatch)
    for step in range(1, 6):
        monitor.step(step, 1, {"train/loss": 1.0})
        logging.getLogger("bitgen.test").info("line %d", step)
    monitor.summary([("steps", 5)])
    monitor.close()
    said = capsys.readouterr().err
    assert [named in line for line in said.splitlines() if "WARNING" in line] == [True]
    assert "training goes on" in said and "Traceback" not in said and "Logging error" not in said and "\x1b" not in said
    assert all(f"line {step}" in said for step in range(1, 6)), "the console goes on"


def test_a_terminal_that_is_gone_ends_nothing(tmp_path: Path, monkeypatch) -> None:
    class Gone:
        encoding = "utf-8"

        def isatty(self) -> bool:
            return True

        def fileno(self) -> int:
            raise OSError(errno.EIO, "gone")

        write = flush = fail

    monitor = Monitor(tmp_path)
    monitor.start_epoch(0, 3)
    monkeypatch.setattr(sys, "stderr", Gone())
    from tqdm import tqdm

    monitor._bar = tqdm(total=3, file=open(os.devnull, "w"))  # noqa: SIM115
    monkeypatch.setattr(monitor._bar, "update", fail)
    monitor.step(1, 1, {"train/loss": 1.0})
    logging.getLogger("bitgen.test").warning("said to nobody")
    monitor.summary([("steps", 1)])
    monitor.close()
    assert "said to nobody" in (tmp_path / LOG_FILE).read_text()


@pytest.mark.parametrize(
    "line", ["[1]", "3", "null", "{}", '{"step": "1", "phase": 1}', '{"step": 1}', "[" * 100_000, '{"step": 1, "pha']
)
def test_a_line_of_another_shape_is_passed_over(tmp_path: Path, line: str) -> None:
    path = tmp_path / METRICS_FILE
    good = {"step": 1, "phase": 1, "train/loss": 2.5, "train/none": None}
    path.write_text(f"{json.dumps(good)}\n{line}\n{json.dumps({**good, 'train/text': 'x'})}\n")
    assert read_metrics(path) == [good, good]
    assert drop_after(path, 1) == 1
