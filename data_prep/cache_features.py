"""Computes the feature cache of a training run ahead of it: each image once through the frozen vision encoder.

Takes the flags of the training command, --config and --feature_cache DIR among them, because everything that decides
the features is among them. A run with the same flags then finds the cache complete. Restartable: finished parts stay.
"""

from __future__ import annotations

import argparse
import logging

from _common.flags import run  # puts src on the path
from bitgen.config import ConfigError, parse_config
from bitgen.data.collate import Collator
from bitgen.feature_cache.source import OFF, RunCaches, uncachable
from bitgen.guards.arguments import Parser
from bitgen.machine.devices import resolve_precision, start_processes
from bitgen.machine.ranks import stop_processes
from bitgen.tasks.stage1_parts import build_parts

EXAMPLE = """\
  python data_prep/cache_features.py --train_data data/coco/train --val_data data/coco/val \\
      --vision_encoder dinov2-base --feature_cache cache
  torchrun --nproc_per_node=8 data_prep/cache_features.py --use_ddp True --num_gpus 8 ... --feature_cache cache
then, with the same flags,
  python src/train_stage1_vision_language.py ... --feature_cache cache
Every flag of src/train_stage1_vision_language.py (see its --help) is understood."""

logger = logging.getLogger("data_prep")


def main(argv: list[str] | None = None) -> None:
    """Reads the flags, computes what is missing. Raises ``ValueError`` for anything a user can put right."""
    parser = Parser(
        description=__doc__,
        epilog=f"example:\n{EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="python data_prep/cache_features.py --feature_cache DIR [--config FILE] [--SETTING VALUE ...]",
    )
    _, flags = parser.parse_known_args(argv)
    config = parse_config(flags)
    if config.vision.feature_cache == OFF:
        raise ConfigError("feature_cache is off. Write --feature_cache DIR (or auto, for output_dir/feature_cache).")
    if config.data.train_data is None:
        raise ConfigError("train_data is not set. Write --train_data with a folder that data_prep/ wrote.")
    processes = start_processes(config.training.device, config.training.use_ddp)
    try:
        parts = build_parts(config, processes)
        reason = uncachable(config, parts.train, parts.val)
        if reason is not None:
            raise ConfigError(f"there is nothing to cache: {reason}.")
        cached = RunCaches(config, parts.train, parts.val, Collator(parts.tokenizer.pad_token_id))
        precision = resolve_precision(config.training.precision, processes.device)
        cached.prepare(parts.model.to(processes.device), processes, precision)
        logger.info("phase 1 can read %s", cached.parent)
    finally:
        stop_processes()


if __name__ == "__main__":
    run(main)
