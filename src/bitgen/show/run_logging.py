"""Where a run's log lines go: the console, and `training.log` in the log folder."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from pathlib import Path

FILE_ONLY = {"bitgen_file_only": True}
"""Pass as `extra=` for a line that belongs in training.log while the console shows the same thing in a livelier way."""

_NOT_IN_FILE = "bitgen_not_in_file"

# Libraries that report their own housekeeping as warnings; their errors are still shown.
_NOISY = (
    "transformers",
    "datasets",
    "huggingface_hub",
    "PIL",
    "matplotlib",
    "fsspec",
    "urllib3",
    "filelock",
    "absl",
    "tensorboard",
)


class _FileHandler(logging.FileHandler):
    """A log file. Where it cannot be written (a full disk), that is said once, and the run goes on."""

    _has_warned = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)  # a mistake in the call
        elif not self._has_warned:
            self._has_warned = True
            lost = f"{self.baseFilename}: lines are lost ({error.strerror or error}); training goes on"
            logging.getLogger(__name__).warning(lost, extra={_NOT_IN_FILE: True})

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what could not be written before
            super().close()


class _ConsoleHandler(logging.Handler):
    """Writes above the progress bar, if one is on the screen, and not through the middle of it.

    A terminal that is gone costs its lines alone; the log file has them.
    """

    def emit(self, record: logging.LogRecord) -> None:
        try:
            from tqdm import tqdm

            tqdm.write(self.format(record), file=sys.stderr)
            sys.stderr.flush()
        except OSError:
            pass
        except Exception:  # noqa: BLE001 - logging's own contract: a failed log line never stops the program
            self.handleError(record)


class _ConsoleFormatter(logging.Formatter):
    """Time and message; the level only where it is more than information."""

    def __init__(self, rank_label: str) -> None:
        super().__init__(datefmt="%H:%M:%S")
        self._rank_label = rank_label

    def format(self, record: logging.LogRecord) -> str:
        level = f"{record.levelname}: " if record.levelno >= logging.WARNING else ""
        self._style._fmt = f"%(asctime)s {self._rank_label}{level}%(message)s"
        return super().format(record)


def _not_file_only(record: logging.LogRecord) -> bool:
    return not getattr(record, "bitgen_file_only", False)


class RunLogging:
    """Handlers on the root logger for the length of a run; `close()` puts everything back as it was.

    Rank 0 shows information from `bitgen` and warnings from everything else on stderr, and writes both to
    `log_file` (appended to). Other ranks show warnings from `bitgen` and other libraries' errors, with their rank
    (environment variable RANK, as torchrun sets it), and write no file.

    Raises OSError when `log_file` cannot be opened.
    """

    def __init__(self, log_file: Path | None, is_main: bool = True) -> None:
        rank_label = "" if is_main else f"[rank {os.environ.get('RANK', '?')}] "
        handlers: list[logging.Handler] = []
        if log_file is not None:
            to_file = _FileHandler(log_file, mode="a", encoding="utf-8", errors="backslashreplace")
            to_file.addFilter(lambda record: not getattr(record, _NOT_IN_FILE, False))
            to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s | %(message)s"))
            handlers.append(to_file)
        console = _ConsoleHandler()
        console.setFormatter(_ConsoleFormatter(rank_label))
        console.addFilter(_not_file_only)
        handlers.append(console)

        self._handlers = handlers
        self._before: list[tuple[logging.Logger, int, bool, list[logging.Handler]]] = []
        root = logging.getLogger()
        self._take_over(root, logging.WARNING if is_main else logging.ERROR, [*root.handlers, *handlers])
        self._take_over(logging.getLogger("bitgen"), logging.INFO if is_main else logging.WARNING, [])
        for name in _NOISY:
            # Some of them (transformers) print past the root logger: their errors would miss training.log.
            self._take_over(logging.getLogger(name), logging.ERROR, [])

    def _take_over(self, logger: logging.Logger, level: int, handlers: list[logging.Handler]) -> None:
        self._before.append((logger, logger.level, logger.propagate, list(logger.handlers)))
        logger.setLevel(level)
        logger.propagate = True
        logger.handlers[:] = handlers

    def close(self) -> None:
        """Take the handlers away, close the file and restore the loggers. Safe to call twice."""
        for logger, level, propagate, handlers in self._before:
            logger.setLevel(level)
            logger.propagate = propagate
            logger.handlers[:] = handlers
        for handler in self._handlers:
            handler.close()
        self._handlers, self._before = [], []
