"""What a trainer says of its steps: scalars, phases, and what went wrong."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING

import torch

from bitgen.data.text_and_pairs import TextAndPairs
from bitgen.machine.ranks import mean_over_ranks
from bitgen.objectives.stage1 import Stage1Output
from bitgen.training.throughput import flops_per_sample, peak_flops

if TYPE_CHECKING:
    from bitgen.training.trainer import Trainer

logger = logging.getLogger(__name__)


class TrainingDiverged(RuntimeError):
    """Too many steps in a row had a loss or a gradient that is not finite."""


def message_of(error: Exception) -> str:
    """What an error says, without the traceback that a data worker's error carries in front of it."""
    text = str(error)
    if "Traceback (most recent call last)" in text:
        # The last line that starts with an exception's name; the message itself may name others.
        text = re.split(r"^[\w.]+: ", text, flags=re.MULTILINE)[-1]
    return text.strip()


def announce_phase(trainer: Trainer) -> None:
    """The lines of the log that say which phase begins and what trains in it."""
    count = f"{sum(p.numel() for p in trainer.objective.parameters() if p.requires_grad):,}"
    logger.info("Phase %d", trainer.phase)
    if not trainer.adapters:
        logger.info("No LoRA adapters | Trainable params: %s", count)
        logger.info("Training stays in phase 1: %s", trainer.plan.reason)
        return
    what = "Vision tower" if trainer.objective.model.config.vision_tuning == "full" else "LoRA adapters"
    logger.info("%s %s | Trainable params: %s", what, "FROZEN" if trainer.phase == 1 else "UNFROZEN", count)


def log_step(
    trainer: Trainer, outputs: list[Stage1Output], rates: dict[str, float], grad_norm: float, tokens: float
) -> None:
    """Tell the monitor of a finished step, with its scalars every ``log_steps``.

    Args:
        outputs: of its micro-steps.
        rates: learning rates by group.
        tokens: padded length of its captions.
    """
    progress, plan, processes = trainer.progress, trainer.plan, trainer.processes
    # A step's own values, not a window's, so that a resumed run logs the same numbers; of a loss that this step did not
    # take (text or pairs), those of the last step that did.
    for name in sorted({name for output in outputs for name in output.metrics}):
        values = [output.metrics[name].float() for output in outputs if name in output.metrics]
        trainer.latest_metrics[name] = torch.stack(values).mean()
    if progress.step % trainer.config.output.log_steps and progress.step != plan.total_steps:
        trainer.monitor.step(progress.step, trainer.phase)
        return
    means = {name: value.item() for name, value in trainer.latest_metrics.items()}
    scalars = {f"train/{name}": value for name, value in mean_over_ranks(processes, means).items()}
    scalars["train/grad_norm"] = grad_norm
    scalars |= {f"train/lr/{kind}": rate for kind, rate in rates.items()}
    scalars |= {"train/samples_seen": progress.samples_seen, "train/words_seen": progress.words_seen}
    scalars["train/epoch"] = progress.step / plan.steps_per_epoch
    scalars["train/skipped_steps"] = progress.skipped_steps
    scalars["train/bad_records"] = sum(progress.bad_records.values())
    speed = trainer.throughput.report()
    peak = peak_flops(processes.device, trainer.precision.name)
    if peak is not None and not isinstance(trainer.dataset, TextAndPairs):  # the estimate is one of pairs
        per_sample = flops_per_sample(trainer.objective.model, trainer.phase, tokens)
        speed["perf/mfu"] = speed["perf/samples_per_sec"] * per_sample / (peak * processes.world_size)
    trainer.monitor.step(progress.step, trainer.phase, {**scalars, **speed})


def warn_of_skipped_step(trainer: Trainer, indices: list[torch.Tensor], finite: list[bool]) -> None:
    """Name the records of a step that all ranks agreed to skip.

    Args:
        indices: of the samples of each micro-batch of this rank.
        finite: of each micro-batch's loss, and then of the gradient's norm.
    """
    bad = [index for index, ok in zip(indices, finite, strict=False) if not ok] or indices
    if all(finite):
        what = "loss on another process"
    else:
        what = "gradient" if all(finite[: len(indices)]) else "loss"
    logger.warning(
        "step %d skipped, its %s is not finite (%d in a row). Its records: %s",
        trainer.progress.step + 1,
        what,
        trainer.progress.nonfinite_in_row,
        "; ".join(trainer.dataset.record_name(index) for part in bad for index in part.tolist()),
    )


def diverged(trainer: Trainer) -> TrainingDiverged:
    """The error that ends a run whose loss stays non-finite."""
    return TrainingDiverged(
        f"{trainer.progress.nonfinite_in_row} steps in a row had a loss or gradient that is not finite, so training "
        f"stopped after step {trainer.progress.step}. The last good checkpoint is {trainer.store.newest}. The log "
        "names the records: check them, or try a lower --learning_rate, a smaller --max_grad_norm or --precision fp32."
    )
