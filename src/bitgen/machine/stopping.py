"""Being told to stop: finish the step on the first signal, leave at once on the second."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from types import FrameType
from typing import Any

# SIGHUP: the terminal was closed, or the connection to it broke.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# Ctrl-C reaches a worker of torchrun twice: from the terminal, and then as SIGTERM from torchrun itself.
_LAUNCHER_ECHO_SECONDS = 5.0


class StopSignals:
    """While entered, the first of ``SIGNALS`` sets ``received``; a second one ends the process as by default.

    SIGHUP counts once, for a shell sends it again to what its terminal has told already. Where it is ignored, as
    ``nohup`` does, it stays so.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._at = 0.0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        for number in SIGNALS:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received is None:
            self.received, self._at = signal.Signals(number), now
            return
        if number == signal.SIGHUP:
            return
        from_launcher = "TORCHELASTIC_RUN_ID" in os.environ and number != self.received
        if from_launcher and now - self._at < _LAUNCHER_ECHO_SECONDS:
            return
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def outlast_stop_signals(_worker: int = 0) -> None:
    """For data workers: Ctrl-C, a closed terminal and torchrun signal the whole process group, and the trainer needs
    its workers to finish the step. They end with it, or at a second SIGTERM, which multiprocessing sends to those still
    there at exit."""
    terms = []

    def on_term(number: int, frame: FrameType | None) -> None:
        terms.append(number)
        if len(terms) > 1:
            os._exit(0)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, on_term)


def resume_command(arguments: list[str] | None = None, world_size: int = 1) -> str:
    """The command that continues this run: the one that started it, with ``--resume auto``."""
    script, *rest = sys.argv if arguments is None else arguments
    kept, skip = [], False
    for argument in rest:
        if skip:
            skip = False
        elif argument == "--resume":
            skip = True
        elif not argument.startswith("--resume="):
            kept.append(argument)
    if script.startswith("bitgen "):  # `bitgen train` and others, which are no file that python could run
        command, module = script.split(), ["-m", *script.split()]
    else:
        command, module = ["python", script], [script]
    if world_size > 1:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
        nodes = [f"--nnodes={world_size // here}", "..."] if here < world_size else []  # the rendezvous is the user's
        command = ["torchrun", *nodes, f"--nproc_per_node={here}", *module]
    return shlex.join([*command, *kept, "--resume", "auto"])
