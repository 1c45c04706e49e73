"""Stage 1, vision-language training: `python src/train_stage1_vision_language.py --help` lists every setting."""

import logging
import os
import sys
from contextlib import closing

# Data workers are forked after the tokenizer was used; it would warn, and switch itself off, in each of them.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from bitgen.config import Config, ConfigError, exit_on_config_error, parse_config
from bitgen.run import build_trainer, finish
from bitgen.training.distributed import start_processes, stop_processes
from bitgen.training.reporting import TrainingDiverged, message_of
from bitgen.training.run_logging import FILE_ONLY

logger = logging.getLogger("bitgen.train")


def train(config: Config) -> int:
    """Build and fit; returns the exit status."""
    processes = start_processes(config)
    try:
        trainer = build_trainer(config, processes)
    except ValueError as error:  # what a person asked for cannot be
        raise ConfigError(str(error)) from error
    with closing(trainer.monitor):
        try:
            finished = trainer.fit()
        except (TrainingDiverged, ValueError) as error:  # a disk that is full, a record that cannot be read
            logger.info("where it happened", exc_info=True, extra=FILE_ONLY)
            logger.error("%s", message_of(error))
            return 1
        if finished:
            finish(trainer)
    return 0


def main() -> int:
    """Read the configuration and train."""
    with exit_on_config_error():
        config = parse_config()
        try:
            return train(config)
        finally:
            stop_processes()


if __name__ == "__main__":
    sys.exit(main())
