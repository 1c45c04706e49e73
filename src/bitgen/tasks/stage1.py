"""Stage 1: images, captions and text, in two phases; what ``vision_tuning`` names joins in the second."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bitgen.config import Config, ConfigError
from bitgen.config.schema import CONFIG_FILE
from bitgen.data.collate import Collator
from bitgen.data.dataset import PairDataset
from bitgen.data.loader_source import LoaderSource
from bitgen.data.text_blocks import TextBlocks
from bitgen.data.text_shards import tokenizer_sha256
from bitgen.data.tokenizer import load_tokenizer
from bitgen.data.word_count import WordCounter
from bitgen.feature_cache.source import OFF, CachedSource, RunCaches, uncachable, useless
from bitgen.machine.devices import Precision, resolve_precision
from bitgen.machine.ranks import Processes
from bitgen.model.configuration_bitgen import BitGenConfig
from bitgen.model.modeling_bitgen import BitGenModel
from bitgen.model.parameter_roles import GATE as GATE_KIND
from bitgen.model.parameter_roles import LORA, LORA_A, LORA_B, MATRIX, NEW_PARTS, TOWER, TOWER_MATRIX, VISION
from bitgen.objectives.stage1 import Stage1Objective
from bitgen.protocols import HeldOutResult, Objective, Run
from bitgen.show.parameters import count_parameters
from bitgen.stages import Group, Phase, Stage
from bitgen.tasks.fingerprints import fingerprint_of, shard_fingerprints, text_fingerprint
from bitgen.tasks.stage1_parts import RunParts, build_parts
from bitgen.tasks.stage1_validation import HeldOut, score_text
from bitgen.trained import TOKENIZER, TOKENIZER_FOLDER
from bitgen.training.budget import planned

logger = logging.getLogger(__name__)

HOW_TO_GET_DATA = (
    "train_data is not set. Prepare your own images with `python data_prep/image_folder.py --folder IMAGES "
    "--output DIR`, or a known source with data_prep/flickr8k.py, coco.py, cc3m.py, localized_narratives.py or "
    "babylm_multimodal.py (--help explains each), and write --train_data DIR --val_data DIR; the "
    "encoder comes with `hf download facebook/dinov2-base --local-dir dinov2-base` and --vision_encoder dinov2-base. "
    "To try everything with no data and no download: make quickstart."
)


class Stage1:
    """The task ``stage1``."""

    def build(self, config: Config, ranks: Processes, fresh: bool) -> Run:
        """See ``protocols.Task``.

        Raises:
            ValueError: what was asked for cannot be; the message says what to write instead.
        """
        if config.data.train_data is None and config.data.text_data is None:
            raise ConfigError(HOW_TO_GET_DATA)
        # A run that goes on has its weights: those it started from may be gone.
        parts = build_parts(config if fresh else config.replace(init_from=None), ranks, fresh)
        sees_pairs = config.data.train_data is not None
        objective = Stage1Objective(parts.model, config.objective, sees_pairs, config.memory.memory_alpha)
        precision = resolve_precision(config.training.precision, ranks.device)
        source = live_source(config, parts, ranks)
        stage, why_one_phase = plan_stage(config, source)
        table = count_parameters(parts.model, {"temperature": [objective.log_temperature]}, stage, objective.roles())
        if ranks.is_main:
            table.write(config.output.output_dir)
        source = with_cache(config, parts, stage, source, ranks, precision)
        held_out = _held_out(config, parts, ranks, precision)
        if sees_pairs and config.objective.contrastive_weight and config.training.batch_size * ranks.world_size == 1:
            logger.warning(
                "the global batch is 1: the contrastive loss compares a pair with the queue alone (queue_weight %g), "
                "and with nothing at first. Write batch_size 2 or more",
                config.objective.queue_weight,
            )
        boundary = boundary_of(stage)
        if boundary is not None and boundary >= stage.steps:
            logger.warning("phase 2 would start at step %d, after the run's end: LoRA never trains", boundary + 1)
        return Run(
            objective,
            source,
            stage,
            _validator(held_out, source) if held_out is not None else None,
            _identity(config, parts, source, stage),
            {CONFIG_FILE: config.to_yaml(), "config.json": model_config_text(parts.model)},
            fingerprints(config, parts),
            _banner(config, parts, ranks, precision, stage, source, why_one_phase),
            table.to_text(),
            lambda step, words: [*_budget_rows(config, source, step, words), *_put_right_rows(held_out)],
            score_text,
            _next_commands(config),
        )


# ---- the schedule ----


def plan_stage(config: Config, source: LoaderSource) -> tuple[Stage, str]:
    """The schedule that a configuration asks for, within its budgets; and why it has one phase, else nothing."""
    boundary, reason = _boundary(config, source.steps_per_epoch)
    stage = planned("stage1", groups(config, boundary), source, config.training, _phases(config, boundary, reason))
    return stage, reason


def groups(config: Config, boundary: int | None) -> tuple[Group, ...]:
    """Stage 1's groups, by name; ``boundary``: the step from which the vision tower trains, None: it never does."""
    training, lora = config.training, config.lora
    rate, decay = training.learning_rate, training.weight_decay
    found = [
        Group("gate", _roles(GATE_KIND), rate, factor=training.gate_lr_factor, decay=decay),
        Group("new", _roles("*"), rate, decay=decay),
        Group(
            "temperature", ("temperature/*",), rate, config.objective.temperature_lr_factor,
            decay=decay, schedule="constant",
        ),
    ]  # fmt: skip
    if training.optimizer != "adamw":
        peak, kind = training.muon_learning_rate, training.optimizer
        found.append(Group("matrix", _roles(MATRIX), peak, decay=decay, optimizer=kind))
    if boundary is not None:
        late: dict[str, Any] = {"factor": lora.lora_lr_factor, "start": boundary, "decay": decay}
        late["warmup"] = lora.lora_lr_warmup_steps
        found.append(Group("lora_a", (f"{LORA}/{LORA_A}",), rate, **late))
        found.append(Group("lora_b", (f"{LORA}/{LORA_B}",), rate, **late, ratio=lora.lora_plus_ratio))
        matrices = f"{VISION}/{TOWER_MATRIX}"
        if training.tower_optimizer != "adamw":
            late_kind = training.tower_optimizer
            found.append(Group("muon_tower", (matrices,), training.muon_learning_rate, **late, optimizer=late_kind))
        # The matrices too, unless the group before has them: the first that takes a parameter keeps it.
        found.append(Group("tower", (f"{VISION}/{TOWER}", matrices), rate, **late))
    # The optimizer's order; and a gate or a matrix is taken by its group before "new" takes all that is left.
    return tuple(sorted(found, key=lambda group: group.name))


def _roles(kind: str) -> tuple[str, ...]:
    return tuple(f"{part}/{kind}" for part in NEW_PARTS)


def _boundary(config: Config, steps_per_epoch: int) -> tuple[int | None, str]:
    """The first step of phase 2; or None, and why there is none."""
    if config.data.train_data is None and config.data.text_data is not None:
        return None, "there is text alone, and no image to look at"
    if config.vision.vision_encoder == "features":
        return None, "images are features computed earlier, so there is nothing to unfreeze"
    if config.vision.vision_tuning == "frozen":
        return None, "vision_tuning is 'frozen'"
    lora = config.lora
    if lora.lora_warmup_steps is not None:
        return lora.lora_warmup_steps, ""
    return round(lora.lora_warmup_epochs * steps_per_epoch), ""


def _phases(config: Config, boundary: int | None, reason: str) -> tuple[Phase, ...]:
    if boundary is None:
        return (Phase(0, "No LoRA adapters", f"Training stays in phase 1: {reason}"),)
    what = "Vision tower" if config.vision.vision_tuning == "full" else "LoRA adapters"
    return Phase(0, f"{what} FROZEN"), Phase(boundary, f"{what} UNFROZEN")


def boundary_of(stage: Stage) -> int | None:
    """The first step of phase 2, where there is one."""
    return stage.phases[1].start if len(stage.phases) > 1 else None


# ---- batches and validation ----


def _source_settings(config: Config, parts: RunParts, ranks: Processes) -> dict:
    training = config.training
    return {
        "dataset": parts.train,
        "sampler": parts.train.batch_sampler(training.batch_size, ranks.rank, ranks.world_size),
        "collate": Collator(parts.tokenizer.pad_token_id),
        "count_words": WordCounter(parts.tokenizer),
        "batches_per_step": training.grad_accum_steps,
        "num_workers": config.data.num_workers,
        "pin": ranks.device.type == "cuda",
        "max_bad_fraction": config.data.max_bad_fraction,
    }


def live_source(config: Config, parts: RunParts, ranks: Processes) -> LoaderSource:
    """The batches of a run, whose images go through the tower."""
    return LoaderSource(**_source_settings(config, parts, ranks))


def with_cache(
    config: Config, parts: RunParts, stage: Stage, live: LoaderSource, ranks: Processes, precision: Precision
) -> LoaderSource:
    """The same batches with phase 1 from a feature cache, where the configuration asks for it and it can be."""
    if config.vision.feature_cache == OFF:
        return live
    train, reason = parts.train, uncachable(config, parts.train, parts.val)
    if reason is None:
        assert isinstance(train, PairDataset)
        reason = useless(config, stage, train)
        if reason is None:
            caches, folder = RunCaches(config, train, parts.val, live.collate), Path(config.output.output_dir)
            settings = _source_settings(config, parts, ranks)
            return CachedSource(caches, parts.model, ranks, precision, folder, **settings)
    logger.warning("feature cache off: %s", reason)
    return live


def _held_out(config: Config, parts: RunParts, ranks: Processes, precision: Precision) -> HeldOut | None:
    if parts.val is None and parts.text_val is None:
        return None
    return HeldOut(config, parts.val, parts.text_val, parts.tokenizer, ranks.device, precision)


def _validator(held_out: HeldOut, source: LoaderSource) -> Callable[[Objective, int], HeldOutResult]:
    def validate(objective: Objective, phase: int) -> HeldOutResult:
        assert isinstance(objective, Stage1Objective)
        return held_out(objective.model, objective.log_temperature.exp().item(), source.held_out_in(phase))

    return validate


# ---- what is kept and said of a run ----


def _identity(config: Config, parts: RunParts, source: LoaderSource, stage: Stage) -> dict[str, int | str | None]:
    training, pooling = config.training, parts.model.config.itm_pooling
    return {
        "training samples": source.size,
        "batch_size": training.batch_size,
        "grad_accum_steps": training.grad_accum_steps,
        "seed": training.seed,
        "optimizer": training.optimizer,
        "vision_tuning": parts.model.config.vision_tuning,
        **source.identity(),
        # The last token is what there was before there was a choice, and is not written.
        **({"itm_pooling": pooling} if pooling != "last" else {}),
        **_other_normalisation(parts.model.config),
        "feature_cache_pool": parts.model.config.feature_pool,
        "steps per epoch": stage.steps_per_epoch,
        "first step of phase 2 (lora_warmup_epochs, _steps)": boundary_of(stage),
    }


def _other_normalisation(model: BitGenConfig) -> dict[str, str]:
    """Nothing for what there was before there was a choice: image_normalisation imagenet resumes such a run."""
    found, before = model.normalisation, BitGenConfig().normalisation
    return {} if found == before else {"image_normalisation": f"encoder ({found})"}


def fingerprints(config: Config, parts: RunParts) -> dict[str, str]:
    """What must be the same by its content when a run goes on."""
    # As it is kept, which is what evaluation and export will read.
    tokenizer = load_tokenizer(Path(config.output.output_dir) / TOKENIZER_FOLDER)
    data = fingerprint_of(parts.train)
    mapped = ({"training data": data} if data is not None else {}) | tower_optimizer(config)
    mapped |= text_fingerprint(parts.train)
    return {TOKENIZER: tokenizer_sha256(tokenizer), **mapped, **shard_fingerprints(parts.train)}


def tower_optimizer(config: Config) -> dict[str, str]:
    """What updates a tower that is trained whole: another optimizer could not go on from its moments."""
    return {"tower_optimizer": config.training.tower_optimizer} if config.vision.vision_tuning == "full" else {}


def model_config_text(model: BitGenModel) -> str:
    """The network's configuration, for a checkpoint."""
    # Written by hand: PretrainedConfig.save_pretrained keeps only what differs from the defaults.
    return json.dumps(model.config.to_dict(), indent=2, sort_keys=True) + "\n"


def _banner(
    config: Config, parts: RunParts, ranks: Processes, precision: Precision, stage: Stage, source: LoaderSource,
    why_one_phase: str,
) -> list[tuple[str, object]]:  # fmt: skip
    data, boundary = config.data, boundary_of(stage)
    cached = f"phase 1 reads {source.caches.parent}" if isinstance(source, CachedSource) else "none"
    return [
        *banner_rows(ranks, precision),
        ("training data", f"{_names(data.text_data, data.train_data)}: {source.describe()}"),
        ("held-out data", _held_out_text(config, parts.val, parts.text_val)),
        ("batch", _batch_text(config, ranks)),
        ("steps", f"{stage.steps:,} ({stage.steps_per_epoch:,} an epoch)"),
        ("feature cache", cached),
        ("phase 2", f"from step {boundary + 1:,}" if boundary is not None else f"none: {why_one_phase}"),
        ("checkpoints", config.output.output_dir),
    ]


def banner_rows(ranks: Processes, precision: Precision) -> list[tuple[str, object]]:
    """Where a run computes, and in which precision."""
    return [
        ("device", f"{ranks.device} ({ranks.world_size} process{'es' if ranks.world_size > 1 else ''})"),
        ("precision", precision.name),
    ]


def _names(*sources: str | None) -> str:
    return " and ".join(source for source in sources if source is not None)


def _held_out_text(config: Config, val: PairDataset | None, text_val: TextBlocks | None) -> str:
    parts = [f"{config.data.val_data}: {val.image_count:,} images"] if val is not None else []
    parts += [f"{config.data.text_val_data}: {text_val.num_words:,} words"] if text_val is not None else []
    return "; ".join(parts) or "none"


def _batch_text(config: Config, ranks: Processes) -> str:
    training, data = config.training, config.data
    kinds = [f"{training.text_batch_size} sequences"] if data.text_data is not None else []
    kinds += [f"{training.batch_size} pairs"] if data.train_data is not None else []
    text = " or ".join(kinds)
    text += f" ({data.text_ratio:.0%} of the batches are text)" if len(kinds) > 1 else ""
    text += f" x {ranks.world_size} processes" if ranks.world_size > 1 else ""
    return text + (f" x {training.grad_accum_steps} accumulated" if training.grad_accum_steps > 1 else "")


def _budget_rows(config: Config, source: LoaderSource, step: int, words: int) -> list[tuple[str, object]]:
    training = config.training
    rows: list[tuple[str, object]] = []
    if training.max_words_seen is not None:
        share = words / training.max_words_seen
        rows.append(("budget of words", f"{share:.1%} of max_words_seen {training.max_words_seen:,}"))
    if training.max_epochs is not None:
        passes = step / source.steps_per_pass()
        rows.append(("budget of passes", f"{passes:.2f} of max_epochs {training.max_epochs}"))
    return rows


def _put_right_rows(held_out: HeldOut | None) -> list[tuple[str, object]]:
    """What the last validation of this process found re-ranking to put right."""
    found = [] if held_out is None else held_out.put_right
    return [
        ("put right by re-ranking", f'"{caption}": by cosine an image of "{other}" came first')
        for caption, other in found
    ]


def _next_commands(config: Config) -> list[tuple[str, str]]:
    run, data = config.output.output_dir, config.data
    evaluate, held_out = f"python src/evaluate.py --checkpoint {run}", data.val_data or "DIR"
    commands = []
    if data.train_data is not None and config.objective.contrastive_weight:
        commands.append(("how good it is", f"{evaluate} --data {held_out} --output results.json"))
    if data.train_data is not None and config.objective.text_loss_weight:
        commands.append(("its captions", f"{evaluate} --task captioning --data {held_out}"))
    if data.text_data is not None:
        commands.append(("its grammar", f"{evaluate} --task babylm --eval_dir DIR"))
        commands.append(("for everybody", f"python src/export.py --checkpoint {run} --output DIR"))
    return commands
