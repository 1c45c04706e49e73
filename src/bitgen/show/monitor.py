"""Monitor: what a person sees of a run. Log lines, progress bar, metrics.jsonl, TensorBoard, banner and summary."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from bitgen.guards.printable import printable

from .metrics_file import LAST_MEAN, MetricsFile, drop_after, read_metrics
from .run_logging import FILE_ONLY, RunLogging
from .summary import MAIN_HELD_OUT, held_out_table, status_line, training_rows
from .tables import format_table, print_table

logger = logging.getLogger(__name__)

LOG_FILE, METRICS_FILE, EVENT_FILES = "training.log", "metrics.jsonl", "events.out.tfevents.*"
BAR_FORMAT = "{desc} |{bar}| {n_fmt}/{total_fmt} ETA {remaining}{postfix}"
SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_FLUSHES = 15


def format_duration(seconds: float) -> str:
    """`0:42`, `12:05`, `3:20:11` or `2d 03:20:11`."""
    minutes, second = divmod(int(max(seconds, 0.0)), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour:02d}:{minute:02d}:{second:02d}"
    return f"{hour}:{minute:02d}:{second:02d}" if hour else f"{minute}:{second:02d}"


class Monitor:
    """Shows and records a run. Rank 0 (`is_main`) does the work; on other ranks every method does nothing.

    Args:
        log_dir: folder for training.log, metrics.jsonl and TensorBoard's event files; made when missing.
        is_main: True on rank 0.
        resume_step: last finished optimizer step of this run's checkpoint. What the earlier process logged after it is
            dropped when the run begins (:meth:`begin`), as those steps are trained again. None starts anew: the logs
            of an earlier run in the same folder move to `earlier-<n>` inside it, where TensorBoard shows them as a run
            of their own.
        progress: show a bar where stderr is a terminal. Plain lines appear otherwise.
        total_steps: optimizer steps of the whole run, for the time left; None leaves that out.

    Raises:
        ValueError: `log_dir` cannot be written.
    """

    def __init__(
        self,
        log_dir: str | Path,
        is_main: bool = True,
        resume_step: int | None = None,
        progress: bool = True,
        total_steps: int | None = None,
    ) -> None:
        self.log_dir, self.resume_step = Path(log_dir), resume_step
        self.is_main = is_main
        self.total_steps = total_steps
        self._show_bar = is_main and progress and _on_terminal()
        self._bar: Any = None
        self._epoch_label = ""
        self._started = time.monotonic()
        self._last_line = float("-inf")
        self._first_step: tuple[int, float] | None = None
        self._tensorboard: Any = None
        self._metrics: MetricsFile | None = None
        if not is_main:
            self._logging = RunLogging(None, is_main=False)
            return
        try:
            self.log_dir.mkdir(parents=True, exist_ok=True)
            moved_to = _set_earlier_run_aside(self.log_dir) if resume_step is None else None
            self._logging = RunLogging(self.log_dir / LOG_FILE)
        except OSError as error:
            raise self._unwritable(error) from error
        if moved_to is not None:
            logger.info("logs of an earlier run moved to %s", moved_to)
        if resume_step is None:
            self.begin()

    def begin(self) -> None:
        """The run goes on, and nothing refuses it any more: what it will log again is dropped. Otherwise the first
        figure does this.

        Raises:
            ValueError: as at the construction.
        """
        if not self.is_main or self._metrics is not None:
            return
        path, step, dropped = self.log_dir / METRICS_FILE, self.resume_step, 0
        try:
            if step is not None:
                dropped = drop_after(path, step)
            self._metrics = MetricsFile(path)
            self._tensorboard = _summary_writer(self.log_dir, step)
        except OSError as error:
            raise self._unwritable(error) from error
        if dropped:
            logger.info("dropped %d lines after step %d from %s", dropped, step, path)

    def _unwritable(self, error: OSError) -> ValueError:
        self.close()
        return ValueError(
            f"--log_dir {self.log_dir}: cannot write logs there ({error.strerror or error}). "
            "Choose a folder that you may write to, or free space and permissions on this one."
        )

    # ---- while training ----

    def start_epoch(self, epoch: int, total_steps: int, done: int = 0, num_epochs: int | None = None) -> None:
        """A new bar for `epoch` (counted from 0) of `total_steps` optimizer steps, `done` of them before a resume."""
        if not self.is_main:
            return
        self._close_bar()
        self._epoch_label = f"epoch {epoch + 1}" + (f"/{num_epochs}" if num_epochs else "")
        if self._show_bar:
            from tqdm import tqdm

            self._bar = tqdm(
                total=total_steps, initial=done, desc=self._epoch_label, bar_format=BAR_FORMAT, **_bar_size()
            )

    def step(self, step: int, phase: int, scalars: Mapping[str, float | Tensor] | None = None) -> None:
        """One optimizer step is done. `scalars` (full names, as `train/itm_loss`) only on steps that are logged:
        turning GPU values into numbers in every step would make the GPU wait."""
        if not self.is_main:
            return
        if self._first_step is None:
            self._first_step = (step, time.monotonic())
        self._on_bar("update", 1)
        if not scalars:
            return
        numbers = self._record(step, phase, scalars)
        left = self._time_left(step)
        if self._bar is not None:
            brief = status_line(numbers, "{:.2f}", "/s")
            self._on_bar("set_description_str", f"{self._epoch_label} phase {phase}", refresh=False)
            # The time left of the whole run goes first: a narrow terminal cuts the line's end off.
            self._on_bar("set_postfix_str", f"run {left} | {brief}" if left else brief)
        now = time.monotonic()
        if now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            of_total = f"/{self.total_steps}" if self.total_steps else ""
            line = f"{self._epoch_label} step {step}{of_total} (phase {phase}) | {status_line(numbers)}"
            line += f" | ETA {left}" if left else ""
            logger.info(line, extra=FILE_ONLY if self._bar is not None else None)

    def scalars(self, step: int, phase: int, scalars: Mapping[str, float | Tensor]) -> None:
        """Record scalars outside the training step: validation (`val/...`), memory use and the like."""
        if self.is_main and scalars:
            self._record(step, phase, scalars)
            self.flush()

    def pictures(self, step: int, pictures: Mapping[str, Tensor]) -> None:
        """Show pictures in TensorBoard: name -> uint8 `[3, H, W]`, as the functions in `pictures.py` return them."""
        if not self.is_main:
            return
        for name, picture in pictures.items():
            self._to_tensorboard("add_image", name, picture, global_step=step)

    def held_out(
        self,
        step: int,
        phase: int,
        scalars: Mapping[str, float],
        pictures: Mapping[str, Tensor],
        texts: Mapping[str, str],
    ) -> None:
        """A validation: its scalars, pictures and texts (Markdown), and a line of its main figures."""
        if not self.is_main:
            return
        self.scalars(step, phase, scalars)
        self.pictures(step, pictures)
        for name, text in texts.items():
            self._to_tensorboard("add_text", name, text, global_step=step)
        main = [(name, value) for name, value in scalars.items() if "_R@" in name or name in MAIN_HELD_OUT]
        shown = main or scalars.items()  # a task without any of these says all that it measures
        line = ", ".join(f"{name.removeprefix('val/')} {value:.4g}" for name, value in shown)
        logger.info("step %d held out: %s", step, line)

    def flush(self) -> None:
        """Hand TensorBoard's pending events to the system; call it with each checkpoint, so that a kill loses none."""
        self._to_tensorboard("flush")

    # ---- start and end ----

    def banner(self, rows: Sequence[tuple[str, object]], parameter_table: str | None = None) -> None:
        """What is about to run: names and values (device, world size, precision, data counts ...), the parameter
        table, where the logs go and how to look at them."""
        if not self.is_main:
            return
        shown = [(name, str(value)) for name, value in rows]
        shown += [("logs", str(self.log_dir / LOG_FILE)), ("watch", f"tensorboard --logdir {self.tensorboard_root}")]
        logger.info("%s", format_table(("", ""), shown, title="BitGen"))
        if parameter_table:
            logger.info("%s", parameter_table)

    def summary(self, rows: Sequence[tuple[str, object]], next_commands: Sequence[str | tuple[str, str]] = ()) -> None:
        """How it went: losses and held-out retrieval of each phase (from metrics.jsonl, so over all resumes), then
        `rows` (best checkpoint, samples/s ...) and the commands to try next, as strings or (what for, command)."""
        if not self.is_main:
            return
        self._close_bar()
        self.flush()
        try:
            records = read_metrics(self.log_dir / METRICS_FILE)
        except OSError as error:
            logger.warning("%s cannot be read (%s): no table of it", self.log_dir / METRICS_FILE, error.strerror)
            records = []
        self._show_table(("training", "first", f"last (mean of {LAST_MEAN})"), training_rows(records))
        self._show_table(*held_out_table(records))
        peak = [r["perf/peak_memory_gb"] for r in records if r.get("perf/peak_memory_gb") is not None]
        facts = [("time in this process", format_duration(time.monotonic() - self._started))]
        facts += [("peak memory", f"{max(peak):.2f} GB")] if peak else []
        facts += [(name, str(value)) for name, value in rows]
        self._show_table(("", ""), facts)
        commands = [("", c) if isinstance(c, str) else c for c in next_commands]
        commands = [("watch the curves", f"tensorboard --logdir {self.tensorboard_root}"), *commands]
        lines = ["Next:"]
        for purpose, command in commands:
            lines += [f"  # {purpose}"] if purpose else []
            lines.append(f"  {command}")
        # Never in a box: a command that a table wraps cannot be copied.
        logger.info("%s", "\n".join(lines))

    def close(self) -> None:
        """Close bar, files and handlers; safe to call twice, and on a Monitor whose construction failed."""
        self._close_bar()
        if self._tensorboard is not None:
            self._to_tensorboard("close")
            self._tensorboard = None
        if self._metrics is not None:
            self._metrics.close()
        if getattr(self, "_logging", None) is not None:
            self._logging.close()

    @property
    def tensorboard_root(self) -> Path:
        """The folder to give TensorBoard: the parent, so that runs beside each other can be compared."""
        parent = self.log_dir.parent
        # A log folder such as `logs` or `/data/logs` directly below the working or root folder is its own root.
        return self.log_dir if parent in (Path("."), Path(parent.anchor)) else parent

    # ---- inside ----

    def _record(self, step: int, phase: int, scalars: Mapping[str, float | Tensor]) -> dict[str, float]:
        numbers = {name: float(value) for name, value in scalars.items()}
        self.begin()
        assert self._metrics is not None
        self._metrics.write(step, phase, numbers)
        for name, value in {"phase": float(phase), **numbers}.items():
            self._to_tensorboard("add_scalar", name, value, global_step=step)
        return numbers

    def _to_tensorboard(self, method: str, *args: object, **kwargs: object) -> None:
        if self._tensorboard is None:
            return
        try:
            getattr(self._tensorboard, method)(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - its own kinds too; no run ends for its pictures
            # TensorBoard's writer thread is dead after its first failed write; the run and metrics.jsonl go on.
            self._tensorboard = None
            logger.warning(
                "%s: TensorBoard gets no more events (%s); training goes on", self.log_dir, printable(error, 200)
            )

    def _time_left(self, step: int) -> str:
        if self.total_steps is None or self._first_step is None:
            return ""
        first, at = self._first_step
        # The first step is left out of the rate: it pays for compiling and starting workers.
        if step <= first:
            return ""
        return format_duration((time.monotonic() - at) / (step - first) * (self.total_steps - step))

    def _show_table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        if not rows:
            return
        # In colour on a terminal, and then only the file gets the plain one; else plain in both.
        try:
            in_colour = _on_terminal() and print_table(columns, rows)
        except OSError:  # the terminal is gone
            in_colour = False
        logger.info("\n%s", format_table(columns, rows), extra=FILE_ONLY if in_colour else None)

    def _close_bar(self) -> None:
        self._on_bar("close")
        self._bar = None

    def _on_bar(self, method: str, *args: object, **kwargs: object) -> None:
        if self._bar is None:
            return
        try:
            getattr(self._bar, method)(*args, **kwargs)
        except OSError:  # the terminal is gone
            self._bar = None


def _on_terminal() -> bool:
    return sys.stderr.isatty()


def _bar_size() -> dict[str, object]:
    try:
        columns, lines = os.get_terminal_size(sys.stderr.fileno())
    except OSError:
        columns = lines = 0
    # Terminals of containers and of `script` may say 0 x 0, for which tqdm draws nothing at all.
    return {"dynamic_ncols": True} if columns and lines else {"ncols": 120, "nrows": 24}


def _set_earlier_run_aside(log_dir: Path) -> Path | None:
    """Move an earlier run's own files (nothing else) to the first free `earlier-<n>`; None when there are none."""
    files = [log_dir / name for name in (LOG_FILE, METRICS_FILE) if (log_dir / name).exists()]
    files += sorted(log_dir.glob(EVENT_FILES))
    if not files:
        return None
    number = 1
    while (target := log_dir / f"earlier-{number}").exists():
        number += 1
    target.mkdir()
    for file in files:
        shutil.move(str(file), target / file.name)
    return target


def _summary_writer(log_dir: Path, resume_step: int | None) -> object:
    from torch.utils.tensorboard import SummaryWriter

    # purge_step: TensorBoard then forgets what the earlier process wrote for the steps that are trained again.
    purge_step = None if resume_step is None else resume_step + 1
    return SummaryWriter(str(log_dir), purge_step=purge_step, flush_secs=SECONDS_BETWEEN_FLUSHES)
