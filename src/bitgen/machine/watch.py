"""A watch over steps that other processes take part in: a peer that is frozen, not dead, keeps the others waiting."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

# Far longer than a step takes, and far shorter than torch's own patience, which may be two hours.
STALLED_SECONDS = 600.0


class StepWatch:
    """While entered, a thread logs one sentence for each step that is not over after ``seconds``; it does nothing else.

    Args:
        seconds: 0: no thread, and nothing is ever said.
        began: when the step began that is under way, by ``time.perf_counter``; None between two steps.
    """

    def __init__(self, seconds: float, began: Callable[[], float | None]) -> None:
        self._seconds, self._began = seconds, began
        self._left = threading.Event()
        # A daemon: it holds no process that ends without leaving the block.
        self._thread = threading.Thread(target=self._look, name="step watch", daemon=True)

    def __enter__(self) -> StepWatch:
        if self._seconds:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        if self._seconds:
            self._thread.join()

    def _look(self) -> None:
        said: float | None = None
        while not self._left.wait(self._seconds / 20):
            began = self._began()
            if began is None or began == said or time.perf_counter() - began < self._seconds:
                continue
            said = began
            logger.warning(
                "a step is not over after %g minutes, and the run waits. Perhaps another process of it is frozen, or a "
                "disk or the network hangs: look on every machine at the state of the processes "
                "(`ps -o pid,stat,cmd`: T is stopped, D waits for a disk), at nvidia-smi, and at the data's disk. Wake "
                "a stopped process with `kill -CONT`; else end them all and go on with --resume auto",
                self._seconds / 60,
            )
