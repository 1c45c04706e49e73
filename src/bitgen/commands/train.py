"""Stage 1, vision-language training: `python src/train_stage1_vision_language.py --help` lists every setting."""

from __future__ import annotations

import os

# Data workers are forked after the tokenizer was used; it would warn, and switch itself off, in each of them.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from bitgen.machine.threads import threads_of_this_process

os.environ.update(threads_of_this_process().variables)  # before torch is imported

from bitgen.config import Config, exit_on_config_error, parse_config
from bitgen.machine.ranks import stop_processes
from bitgen.run import RunFailed, train
from bitgen.tasks import TASKS
from bitgen.tasks.chain import split_first_stage


def run(config: Config) -> None:
    """Train, first the run that this one starts from where it names one to be trained.

    Raises:
        ConfigError: what was asked for cannot be.
        RunFailed: training could not go on.
    """
    task = TASKS["stage1"]
    first, config = split_first_stage(config)
    try:
        purpose = f"The first of two runs: {config.output.output_dir} starts from its weights"
        if first is None or train(task, first, purpose):
            train(task, config)
    finally:
        stop_processes()


def main(argv: list[str] | None = None) -> int:
    """Read the configuration and train; returns the exit status."""
    with exit_on_config_error():
        try:
            run(parse_config(argv))
        except RunFailed:  # it has said why
            return 1
    return 0
