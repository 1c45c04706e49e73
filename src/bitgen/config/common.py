"""What every kind of run has: the settings of its loop and of what it leaves behind, and the launcher's check.

A kind of run is a dataclass of groups, derived from :class:`RunSchema`: these two, those of others that fit, its own.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from bitgen.config.fields import AtLeastOne, Batch, NotNegative, Positive, Rate, setting
from bitgen.config.launch import check_launch, launcher_world_size
from bitgen.config.schema import Schema
from bitgen.config.values import ConfigError
from bitgen.stages import FINAL_SHARE


@dataclass
class TrainingSettings:
    """How it is minimised: batches, steps, learning rate, numbers and devices."""

    _argument_group_name = "training"

    batch_size: Batch = setting(128, "Pairs of a micro-batch on each process.")
    grad_accum_steps: Batch = setting(
        2, "Micro-batches of an optimizer step. Each one is contrasted by itself: this does not add negatives."
    )
    optimizer: Literal["adamw", "muon", "normuon"] = setting(
        "adamw",
        "muon: Muon updates what is new and a matrix, AdamW the rest. It learns language in fewer steps. normuon: the "
        "same with NorMuon (arXiv 2510.05491), whose updates are of one size for all neurons, at muon_learning_rate.",
    )
    learning_rate: Positive = setting(2e-4, "Peak learning rate of AdamW, after the warm-up.")
    muon_learning_rate: Positive = setting(0.01, "Peak learning rate of Muon or NorMuon, on the same schedule.")
    gate_lr_factor: NotNegative[float] = setting(
        10.0,
        "Learning rate of the gates of fusion and memory relative to learning_rate: what a gate that starts at 0 lets "
        "through learns only as it opens.",
    )
    weight_decay: NotNegative[float] = setting(
        0.02, "Decay of matrices, apart from the gradient; norms, biases, gates and temperature have none."
    )
    num_epochs: Batch = setting(50, "Passes over the training data; the schedule spans them.")
    text_batch_size: Batch = setting(32, "Sequences of a micro-batch of text on each process.")
    max_words_seen: AtLeastOne | None = setting(
        None, "Budget of words, each time they are seen: the run ends before the step that would exceed it."
    )
    max_epochs: AtLeastOne | None = setting(
        None, "Budget of passes through any part of the data: a longer run is cut, and its schedule with it."
    )
    max_steps: AtLeastOne | None = setting(None, "Stop after this many optimizer steps, which the schedule then spans.")
    warmup_steps: NotNegative[int] = setting(1000, "Steps of linear warm-up, before the rate falls.")
    cooldown_ratio: Rate | None = setting(
        None,
        "Share of the steps, at the end, over which the rate falls linearly from its peak, where it is until then; "
        "0: it never falls; none: it falls as a cosine, from the warm-up on.",
    )
    final_rate_ratio: Rate = setting(
        FINAL_SHARE, "What the rate has fallen to at the last step, as a share of its peak; 0: nothing."
    )
    max_grad_norm: Positive = setting(1.0, "Gradients are scaled down to this norm.")
    precision: Literal["auto", "bf16", "fp32", "fp16"] = setting(
        "auto", "Autocast: auto takes bf16 where the device has it, else fp32. fp16 needs a GPU."
    )
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "Where to train; auto: a GPU when there is one.")
    seed: NotNegative[int] = setting(42, "Every random draw derives from it.")
    use_ddp: bool = setting(False, "Data parallel over several processes; start them with torchrun.")
    num_gpus: Batch = setting(1, "Processes over all machines; must be the launcher's world size. On CPUs too.")
    parallel: Literal["replicated", "sharded"] = setting(
        "replicated",
        "How several processes share the work: replicated (each holds the whole model, DistributedDataParallel) or "
        "sharded (each holds a part of it, FSDP2).",
    )
    init_from: str | None = setting(
        None,
        "A run's folder, or one of its checkpoints, whose weights this run starts from (averaged ones where it has "
        "them): a second stage with other data or losses. The same sizes and tokenizer; counters start at 0. Or, of "
        "stages 1 and 2, a YAML file: its objective, training and checkpoint settings (of stage 2 also how it asks) "
        "are run first, on this run's data, network, seed and machine, into first/ of output_dir; other flags of "
        "training are for this run alone.",
    )
    resume: str | None = setting(None, "'auto': go on from the newest whole checkpoint of output_dir; or a folder.")
    max_nonfinite_steps: AtLeastOne = setting(10, "Stop after this many steps in a row with a loss that is not finite.")
    ema_decay: Rate = setting(
        0.0, "Decay of the averaged weights that evaluation and the best checkpoint use, as 0.999; 0: off."
    )
    average_last: Rate = setting(
        0.0,
        "In place of ema_decay: share of the steps, at the end, whose weights are averaged evenly, as 0.2; 0: off. "
        "Before them the weights are used as they are.",
    )

    def warmup_of(self, steps: int) -> int:
        """Steps of the warm-up of a run of ``steps``."""
        return self.warmup_steps

    def cooldown_of(self, steps: int) -> int | None:
        """Steps of the linear fall at the end of a run of ``steps``; None: a cosine over all of them."""
        return None if self.cooldown_ratio is None else round(self.cooldown_ratio * steps)


@dataclass
class OutputSettings:
    """What a run leaves behind, and how often."""

    _argument_group_name = "output"

    output_dir: str = setting("checkpoints/stage1", "Checkpoints, latest, best, and the tokenizer.")
    log_dir: str = setting("logs/stage1", "training.log, metrics.jsonl and TensorBoard's files.")
    save_steps: AtLeastOne = setting(1000, "Optimizer steps between checkpoints.")
    eval_steps: AtLeastOne = setting(1000, "Optimizer steps between validations; one more at each epoch's end.")
    words_seen_checkpoints: bool = setting(
        False, "Keep chck_1M, 2M .. 10M, 20M .. 100M, 200M .. 1000M: the model after so many million words seen."
    )
    log_steps: AtLeastOne = setting(10, "Optimizer steps between logged scalars.")
    max_checkpoints_to_keep: AtLeastOne = setting(5, "Newest checkpoints kept; the best one is kept besides.")
    progress: bool = setting(True, "Show a progress bar on a terminal.")


class RunSchema(Schema):
    """A schema with a group ``training``, which is checked against the launcher and the devices too."""

    training: TrainingSettings

    def validate(self, world_size: int | None = None) -> None:
        """Stop here with what could not run.

        Args:
            world_size: processes over all machines; None asks the launcher's environment (1 without a launcher).

        Raises:
            ConfigError: the first setting that is out of range, contradicts another or does not fit this machine.
        """
        super().validate()
        if self.training.ema_decay and self.training.average_last:
            raise ConfigError(
                f"ema_decay is {self.training.ema_decay} and average_last is {self.training.average_last}, which are "
                "two ways to average weights. Write 0 for one of them."
            )
        launched = "WORLD_SIZE" in os.environ or (world_size or 1) > 1
        processes = launcher_world_size() if world_size is None else world_size
        check_launch(self.training, self.entry, processes, launched, self.check_batch)

    def check_batch(self, global_batch: int, how: str) -> None:
        """Check what depends on the batch of all processes; a kind of run with such settings overrides this.

        Args:
            global_batch: samples of a micro-batch over all processes.
            how: how it comes about, for messages.

        Raises:
            ConfigError: a setting that does not fit it.
        """
