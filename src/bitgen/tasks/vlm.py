"""A stage of a vision-language model of parts as a task: what trains, at what rates, on what, and what is measured."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from bitgen.config.schema import CONFIG_FILE
from bitgen.config.vlm import ADAPTER, CONNECTOR, LANGUAGE, VISION, VlmConfig
from bitgen.config.vlm_settings import ConversationSettings
from bitgen.data.conversations.chat_templates import PLAIN
from bitgen.data.loader_source import LoaderSource
from bitgen.machine.devices import Precision, resolve_precision, warn_of_emulation
from bitgen.machine.ranks import Processes
from bitgen.machine.sharded import elements_of_lists
from bitgen.objectives.supervised import NextTokens
from bitgen.protocols import Run
from bitgen.stages import Group, Phase, Stage
from bitgen.tasks.vlm_cache import CachedVisuals, is_cached
from bitgen.tasks.vlm_parts import VlmParts, build_parts
from bitgen.tasks.vlm_validation import HeldOutAnswers, score_text
from bitgen.training.budget import planned
from bitgen.vlm.modeling import MATRIX
from bitgen.vlm.vision import RANDOM

logger = logging.getLogger(__name__)

MODEL_FILE = "config.json"


class Vlm:
    """The task of one stage."""

    def build(self, config: VlmConfig, ranks: Processes, fresh: bool) -> Run:
        """See ``protocols.Task``.

        Raises:
            ValueError: what was asked for cannot be; the message says what to write instead.
        """
        precision = resolve_precision(config.training.precision, ranks.device)
        _warn_of_what_is_not_used(config)
        if config.language.language_dtype == "bfloat16" and config.language.language_model != RANDOM:
            warn_of_emulation("language_dtype=bfloat16", "--language_dtype float32", ranks.device)
        parts = build_parts(config, ranks, fresh)
        objective = NextTokens(parts.model)
        kind: Callable[..., LoaderSource] = LoaderSource
        if is_cached(config, parts):
            kind = partial(CachedVisuals, config, parts, ranks, precision)
        source = kind(
            parts.train,
            parts.sampler,
            parts.collate,
            count_words=lambda ids, mask: int(mask.sum()),  # batches say it themselves
            batches_per_step=config.training.grad_accum_steps,
            num_workers=config.data.num_workers,
            pin=ranks.device.type == "cuda",
            max_bad_fraction=config.data.max_bad_fraction,
        )
        stage = plan_stage(config, source)
        held_out = HeldOutAnswers(config, parts, ranks, precision) if parts.val is not None else None
        return Run(
            objective,
            source,
            stage,
            (lambda trained, phase: held_out(trained, source.held_out_in(phase))) if held_out is not None else None,
            _identity(config, source, stage),
            {CONFIG_FILE: config.to_yaml(), MODEL_FILE: json.dumps(parts.description, indent=2, sort_keys=True) + "\n"},
            parts.fingerprints,
            _banner(config, parts, ranks, precision, stage, source),
            parts.table,
            score_text=partial(score_text, config.validation.best_metric),
            next_commands=_next_commands(config),
            eval_steps=validated_every(config, stage),
            blocks=_blocks,
        )


def _warn_of_what_is_not_used(config: VlmConfig) -> None:
    """Say which settings were set for nothing."""
    language, data = config.language, config.data
    if language.template == PLAIN:
        given = {"prompts": data.prompts != ConversationSettings.prompts, "system_prompt": language.system_prompt}
        if named := " and ".join(name for name, is_set in given.items() if is_set):
            message = "%s: the template plain writes the picture and its caption alone. Leave it out, or write another "
            logger.warning(message + "template.", named)
    if language.language_model == RANDOM and language.language_dtype != "float32":
        message = "language_dtype=%s: a 'random' language model is trained whole, in float32. Leave it out."
        logger.warning(message, language.language_dtype)


def _blocks(objective: nn.Module) -> list[nn.Module]:
    """The language model's layers, which every batch runs once on every rank. Encoder and connector are none: how often
    they run depends on the pictures of a rank's batch, so they are gathered with the whole."""
    assert isinstance(objective, NextTokens)
    return elements_of_lists(objective.model.language)


def validated_every(config: VlmConfig, stage: Stage) -> int | None:
    """Steps from one validation to the next where ``val_ratio`` says so; None: ``eval_steps`` does."""
    share = config.validation.val_ratio
    return None if share is None else max(1, round(share * stage.steps))


def plan_stage(config: VlmConfig, source: LoaderSource) -> Stage:
    """The schedule that a configuration asks for, within its budgets."""
    says = f"{', '.join(config.trained_parts)} trains" if config.trained_parts else "nothing trains"
    return planned("vlm", groups(config), source, config.training, (Phase(0, says),))


def groups(config: VlmConfig) -> tuple[Group, ...]:
    """The groups of the parts that train, in the optimizer's order."""
    training, parts = config.training, config.trained_parts
    rate, decay = training.learning_rate, training.weight_decay
    found = []
    if ADAPTER in parts:
        ratio = config.adapter.adapter_lora_plus
        found.append(Group("adapter", (f"{ADAPTER}/lora_a", f"{ADAPTER}/magnitude"), rate, decay=decay))
        found.append(Group("adapter_b", (f"{ADAPTER}/lora_b",), rate, ratio=ratio, decay=decay))
    own_rates = {
        CONNECTOR: training.connector_learning_rate or rate,
        LANGUAGE: rate,
        VISION: training.vision_learning_rate or rate,
    }
    for part, its_rate in own_rates.items():
        if part not in parts:
            continue
        if training.optimizer != "adamw":
            peak, kind = training.muon_learning_rate, training.optimizer
            found.append(Group(f"{part}_matrix", (f"{part}/{MATRIX}",), peak, decay=decay, optimizer=kind))
        found.append(Group(part, (f"{part}/*",), its_rate, decay=decay))
    return tuple(found)


def _identity(config: VlmConfig, source: LoaderSource, stage: Stage) -> dict[str, Any]:
    training = config.training
    return {
        "training samples": source.size,
        "batch_size": training.batch_size,
        "grad_accum_steps": training.grad_accum_steps,
        "seed": training.seed,
        "optimizer": training.optimizer,
        "trains": ", ".join(config.trained_parts),
        "max_length": config.language.max_length,
        "prompts": config.data.prompts,
        **source.identity(),
        "steps per epoch": stage.steps_per_epoch,
    }


def _banner(
    config: VlmConfig, parts: VlmParts, ranks: Processes, precision: Precision, stage: Stage, source: LoaderSource
) -> list[tuple[str, object]]:
    training = config.training
    batch = f"{training.batch_size} conversations"
    batch += f" x {ranks.world_size} processes" if ranks.world_size > 1 else ""
    batch += f" x {training.grad_accum_steps} accumulated" if training.grad_accum_steps > 1 else ""
    rows: list[tuple[str, object]] = [
        ("device", f"{ranks.device} ({ranks.world_size} process{'es' if ranks.world_size > 1 else ''})"),
        ("precision", precision.name),
        ("trains", ", ".join(config.trained_parts)),
        *parts.rows,
        ("training data", f"{config.data.train_data}: {source.describe()}"),
        ("held-out data", config.data.val_data or "none"),
        ("batch", batch),
        ("steps", f"{stage.steps:,} ({stage.steps_per_epoch:,} an epoch, warm-up {stage.warmup:,})"),
        ("checkpoints", config.output.output_dir),
    ]
    return rows


def _next_commands(config: VlmConfig) -> list[tuple[str, str]]:
    run = config.output.output_dir
    commands = [("a folder to use it from", f"python src/export.py --checkpoint {run} --output DIR")]
    if config.data.val_data is not None and config.connector.connector != "none":
        evaluate = f"python src/evaluate.py --checkpoint {run} --task captioning --data {config.data.val_data}"
        commands.insert(0, ("how good it is", evaluate))
    return commands
