"""A recipe: the stages of a vision-language model of parts, one run after the other."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from bitgen.checkpoint.format import checkpoint_folders
from bitgen.config.values import ConfigError
from bitgen.config.vlm import StageRun, VlmConfig
from bitgen.data.conversations.chat import own_template
from bitgen.data.conversations.chat_templates import TOKENIZER
from bitgen.guards.printable import printable
from bitgen.machine.files import replacing
from bitgen.machine.hub import hub_folder
from bitgen.machine.ranks import stop_processes, writes_here
from bitgen.run import train
from bitgen.tasks.vlm import Vlm
from bitgen.vlm.pretrained import FILES, family_of, tokenizer_of
from bitgen.vlm.vision import RANDOM

logger = logging.getLogger(__name__)
DONE = "finished"  # in a stage's folder, once it is


def train_recipe(stages: Sequence[StageRun], resume: bool) -> int:
    """Train the stages in their order; returns 0, or the number of the signal that stopped one.

    Args:
        resume: finished stages are passed over, and one that was begun goes on.

    Raises:
        ConfigError: what was asked for cannot be.
        RunFailed: training could not go on.
    """
    task = Vlm()
    _check_templates(stages)
    try:
        for number, (name, config) in enumerate(stages, 1):
            folder = Path(config.output.output_dir)
            done, begun = folder / DONE, bool(checkpoint_folders(folder))
            if not begun:  # of an earlier run, whose checkpoints were removed
                done.unlink(missing_ok=True)
            if resume and done.is_file():
                if changed := changed_since(config):
                    raise ConfigError(
                        f"{folder} is finished with other settings: {'; '.join(changed)}. Write the former ones, or "
                        f"another --output_dir for a new run. To go on with these, remove {done}."
                    )
                logger.info("%s is finished, and passed over. Remove %s to train it for longer.", folder, done)
                continue
            if resume and (config.training.resume is None or not _is_of(config.training.resume, folder, stages)):
                config = config.replace(resume="auto")
            if begun and not resume:
                raise ConfigError(
                    f"{folder} holds checkpoints of an earlier run: write --resume auto to go on with it, or another "
                    "--output_dir (and --log_dir) for a new one."
                )
            purpose = f"Stage {name}, {number} of {len(stages)}" if name else None
            stopped = train(task, config, purpose)
            if stopped:
                return stopped
            if writes_here():
                with replacing(done) as temporary:
                    temporary.write_text(f"# This stage is at its end, with these settings:\n{config.to_yaml()}")
    finally:
        stop_processes()
    return 0


def _check_templates(stages: Sequence[StageRun]) -> None:
    """Refuse a later stage whose tokenizer cannot write conversations before an earlier one takes its hours."""
    for name, config in stages[1:]:
        language = config.language
        if language.template != TOKENIZER or language.language_model == RANDOM:
            continue
        try:
            folder = hub_folder(language.language_model, language.language_revision, "language model", FILES)
            tokenizer = tokenizer_of(folder, family_of(folder))
        except ValueError:  # which the first stage that opens it says
            return
        try:
            own_template(tokenizer)
        except ValueError as error:
            raise ConfigError(f"stage {name}: {error}") from error


def changed_since(config: VlmConfig) -> list[str]:
    """What a finished stage was trained with otherwise, as texts for a person. A mark that says nothing of it, of an
    earlier version, finds no difference."""
    done = Path(config.output.output_dir) / DONE
    content = done.read_bytes()
    if not content.startswith(b"#"):
        return []
    try:
        differing = config.differences(content, done)
    except ConfigError as error:  # of another version, perhaps
        return [str(error)]
    return [
        f"{name} was {printable(then, 100)} and is {printable(now, 100)}"
        for name, (then, now) in differing.items()
        if name not in config.incidental
    ]


def _is_of(resume: str, folder: Path, stages: Sequence[StageRun]) -> bool:
    """Whether a stage is what ``--resume`` names: of several, the one whose checkpoint that is, or none of them."""
    folders = [Path(stage.config.output.output_dir).resolve() for stage in stages]
    named = Path(resume).resolve()
    owners = [one for one in folders if one in (named, *named.parents)]
    return not owners or folder.resolve() in owners
