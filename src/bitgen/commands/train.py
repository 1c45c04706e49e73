"""Stage 1, vision-language training: `python src/train_stage1_vision_language.py --help` lists every setting."""

from __future__ import annotations

import logging
import os
from contextlib import closing

# Data workers are forked after the tokenizer was used; it would warn, and switch itself off, in each of them.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from bitgen.config import Config, ConfigError, exit_on_config_error, parse_config
from bitgen.machine.devices import start_processes
from bitgen.machine.ranks import stop_processes
from bitgen.run import build_trainer, finish
from bitgen.show.run_logging import FILE_ONLY
from bitgen.tasks.chain import split_first_stage
from bitgen.training.reporting import TrainingDiverged, message_of

logger = logging.getLogger("bitgen.train")


class RunFailed(RuntimeError):
    """A run that could not go on: it diverged, the disk is full, or a record cannot be read."""


def train(config: Config, purpose: str | None = None) -> bool:
    """Build and fit; returns whether the run came to its end unasked.

    Raises:
        ConfigError: what was asked for cannot be.
        RunFailed: training could not go on; why is in the log.
    """
    processes = start_processes(config.training.device, config.training.use_ddp)
    try:
        trainer = build_trainer(config, processes)
    except ValueError as error:  # what a person asked for cannot be
        raise ConfigError(str(error)) from error
    with closing(trainer.monitor):
        if purpose is not None:
            logger.info(purpose)
        try:
            finished = trainer.fit()
        except (TrainingDiverged, ValueError) as error:  # a disk that is full, a record that cannot be read
            logger.info("where it happened", exc_info=True, extra=FILE_ONLY)
            logger.error("%s", message_of(error))
            raise RunFailed(message_of(error)) from error
        if finished:
            finish(trainer)
            if trainer.stopped and purpose is not None:
                logger.info("Stopped between the two runs. Go on with:\n  %s", trainer.resume_command)
    return finished and not trainer.stopped


def run(config: Config) -> None:
    """Train, first the run that this one starts from where it names one to be trained.

    Raises:
        ConfigError: what was asked for cannot be.
        RunFailed: training could not go on.
    """
    first, config = split_first_stage(config)
    try:
        if first is None or train(first, f"The first of two runs: {config.output.output_dir} starts from its weights"):
            train(config)
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
