"""A run that starts from another one which it trains itself: ``init_from`` names that run's YAML file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from bitgen.checkpoint.format import checkpoint_folders
from bitgen.config import Config, ConfigError, load_config
from bitgen.machine.ranks import stop_processes
from bitgen.protocols import Task
from bitgen.run import train

FOLDER = "first"
# Of the training settings, those that say where to train and not what.
_MACHINE = ("precision", "device", "seed", "use_ddp", "num_gpus")


def split_first_stage(config: Config) -> tuple[Config | None, Config]:
    """The run to train before this one (None: there is none, or this one has begun), and this run as it then starts.

    The first run has the file's objective, episodes, training and checkpoint settings, of stage 2 also how it asks, and
    everything else from this one: its data, its network, its machine. It writes to ``first`` in this run's folders.

    Raises:
        ConfigError: the file cannot be read, starts from a file itself, or does not go with this run's data or network.
    """
    path = config.training.init_from
    if path is None or not path.endswith((".yaml", ".yml")):
        return None, config
    theirs = load_config(path)
    if (theirs.training.init_from or "").endswith((".yaml", ".yml")):
        raise ConfigError(
            f"init_from {path} is to start from {theirs.training.init_from}: one run before another is all."
        )
    machine = {name: getattr(config.training, name) for name in _MACHINE}
    folders: dict[str, Any] = {
        name: str(Path(getattr(config.output, name)) / FOLDER) for name in ("output_dir", "log_dir")
    }
    asked = config.reasoning
    if theirs.reasoning.question_data is not None:  # else a run by reinforcement would be reinforced from the start
        asked = replace(theirs.reasoning, question_data=asked.question_data, question_val_data=asked.question_val_data)
    first = replace(
        config,
        objective=theirs.objective,
        reasoning=asked,
        episodes=theirs.episodes,
        training=replace(theirs.training, resume=config.training.resume, **machine),
        output=replace(theirs.output, progress=config.output.progress, **folders),
    )
    then = config.replace(init_from=folders["output_dir"])
    goes_on = config.training.resume not in (None, "auto")  # from a checkpoint elsewhere
    if goes_on or checkpoint_folders(config.output.output_dir):
        return None, then
    try:
        first.validate()
    except ConfigError as error:
        raise ConfigError(f"init_from {path}, trained first on this run's data and network: {error}") from error
    return first, then


def train_chain(task_of: Callable[[Config], Task], config: Config) -> int:
    """Train, first the run that this one starts from where it names one to be trained.

    Args:
        task_of: what a configuration is trained as.

    Returns 0, or the number of the signal that stopped it.

    Raises:
        ConfigError: what was asked for cannot be.
        RunFailed: training could not go on.
    """
    first, config = split_first_stage(config)
    try:
        purpose = f"The first of two runs: {config.output.output_dir} starts from its weights"
        stopped = train(task_of(first), first, purpose) if first is not None else 0
        return stopped or train(task_of(config), config)
    finally:
        stop_processes()
