"""Stage 2, reasoning: `python src/train_stage2_reasoning.py --help` lists every setting."""

from __future__ import annotations

import os

# Data workers are forked after the tokenizer was used; it would warn, and switch itself off, in each of them.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from bitgen.machine.threads import threads_of_this_process

os.environ.update(threads_of_this_process().variables)  # before torch is imported

from bitgen.config import ConfigError, exit_on_config_error
from bitgen.config.stage2 import Stage2Config
from bitgen.run import RunFailed
from bitgen.tasks import task_of
from bitgen.tasks.chain import train_chain


def main(argv: list[str] | None = None) -> int:
    """Read the configuration and train; returns the exit status, which ``--help`` explains."""
    with exit_on_config_error():
        config = Stage2Config.parse(argv)
        if config.reasoning.question_data is None:
            raise ConfigError("question_data is none: there is nothing to ask. Write --question_data scenes.")
        try:
            stopped = train_chain(task_of, config)
        except RunFailed:  # it has said why
            return 1
    # As shells say of a process that a signal ended: to `train && evaluate`, a stopped run is not a finished one.
    return 128 + stopped if stopped else 0
