"""A vision-language model of parts: `python src/train_vlm.py --help` lists every setting."""

from __future__ import annotations

import os
import sys

# Data workers are forked after the tokenizer was used; it would warn, and switch itself off, in each of them.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from bitgen.machine.threads import threads_of_this_process

os.environ.update(threads_of_this_process().variables)  # before torch is imported

from bitgen.config import exit_on_config_error
from bitgen.config.schema import flat_settings_of
from bitgen.config.values import ConfigError
from bitgen.config.vlm import StageRun, VlmConfig, stages_of
from bitgen.run import RunFailed
from bitgen.tasks.recipe import train_recipe
from bitgen.tasks.vlm_memory import FORMULA, memory_table


def main(argv: list[str] | None = None) -> int:
    """Read the recipe and train its stages; returns the exit status, which ``--help`` explains."""
    argv = sys.argv[1:] if argv is None else argv
    with exit_on_config_error():
        config = VlmConfig.parse(argv)
        if config.training.estimate is not None:
            for stage in stages_of(config, _given(argv)):
                print(_estimated(stage, config.training.estimate))
            print(FORMULA)
            return 0
        try:
            stopped = train_recipe(stages_of(config, _given(argv)), resume=config.training.resume is not None)
        except RunFailed:  # it has said why
            return 1
    return 128 + stopped if stopped else 0


def _estimated(stage: StageRun, processes: int) -> str:
    try:
        return memory_table(stage.name, stage.config, processes)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _given(argv: list[str]) -> set[str]:
    """The settings that the command line names."""
    names = {argument.split("=")[0].lstrip("-").replace("-", "_") for argument in argv if argument.startswith("--")}
    return names & set(flat_settings_of(VlmConfig))
