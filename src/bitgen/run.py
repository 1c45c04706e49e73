"""One run of stage 1: everything from a configuration to a trainer, and the summary after it."""

from __future__ import annotations

import logging

from bitgen.checkpoint.format import Checkpoint, checkpoint_folders, find_checkpoint, read_checkpoint, step_of
from bitgen.checkpoint.store import CheckpointStore
from bitgen.config import Config, ConfigError
from bitgen.data.collate import Collator
from bitgen.data.dataset import PairDataset
from bitgen.data.text_blocks import TextBlocks
from bitgen.data.word_count import WordCounter
from bitgen.feature_cache.phase import plan_cached_phase
from bitgen.machine.devices import resolve_precision
from bitgen.machine.ranks import Processes, from_main, main_first
from bitgen.machine.stopping import resume_command
from bitgen.objectives.stage1 import Stage1Objective
from bitgen.show.monitor import Monitor
from bitgen.show.parameters import count_parameters
from bitgen.tasks.stage1_parts import build_parts
from bitgen.tasks.stage1_validation import HeldOut, score_text
from bitgen.training.budget import REVISION_PREFIX, steps_per_pass
from bitgen.training.trainer import Trainer

logger = logging.getLogger(__name__)

HOW_TO_GET_DATA = (
    "train_data is not set. Prepare your own images with `python data_prep/image_folder.py --folder IMAGES "
    "--output DIR`, or a known source with data_prep/flickr8k.py, coco.py, cc3m.py, localized_narratives.py or "
    "babylm_multimodal.py (--help explains each), and write --train_data DIR --val_data DIR; the "
    "encoder comes with `hf download facebook/dinov2-base --local-dir dinov2-base` and --vision_encoder dinov2-base. "
    "To try everything with no data and no download: make quickstart."
)


def find_resume(config: Config, processes: Processes) -> Checkpoint | None:
    """The checkpoint to go on from, on every rank the one that rank 0 found whole.

    Raises:
        ConfigError: no resume was asked for, and ``output_dir`` holds checkpoints.
        CheckpointError: as ``find_checkpoint``.
    """
    output_dir = config.output.output_dir
    if config.training.resume is None:
        if checkpoint_folders(output_dir):
            raise ConfigError(
                f"output_dir {output_dir} holds checkpoints of another run: write --resume auto to go on with it, or "
                "another --output_dir (and --log_dir) for a new run."
            )
        return None
    found: Checkpoint | None = None
    with main_first(processes):
        if processes.is_main:
            found = find_checkpoint(config.training.resume, output_dir)
            if found is not None:
                _refuse_newer(found, config)
    path = from_main(found.path if found is not None else None, processes)
    if path is None:
        return None
    return found if processes.is_main else read_checkpoint(path)


def _refuse_newer(found: Checkpoint, config: Config) -> None:
    """Going back in a run would leave checkpoints of its abandoned future, which ``auto`` would take up later."""
    damaged = {folder.resolve() for folder in found.damaged}
    for folder in checkpoint_folders(config.output.output_dir):
        if (step_of(folder) or 0) > found.step and folder.resolve() not in damaged:
            raise ConfigError(
                f"--resume {config.training.resume}: output_dir {config.output.output_dir} holds newer checkpoints "
                f"({folder.name}). Write --resume auto to go on from there, give another --output_dir, or remove them."
            )


def _announce_resume(checkpoint: Checkpoint, store: CheckpointStore) -> None:
    for folder, problem in checkpoint.damaged.items():
        logger.warning("checkpoint %s is damaged, so the one before it is taken: %s", folder, problem)
        if store.writes and folder.parent.resolve() == store.folder.resolve():
            logger.warning("it is kept as %s", store.set_aside(folder))
    logger.info("resuming from %s, after step %d", checkpoint.path, checkpoint.step)


def build_trainer(config: Config, processes: Processes) -> Trainer:
    """Everything a run needs, from the log files to the first batch.

    Raises:
        ValueError: what was asked for cannot be; the message says what to write instead.
    """
    if config.data.train_data is None and config.data.text_data is None:
        raise ConfigError(HOW_TO_GET_DATA)
    output = config.output
    checkpoint = find_resume(config, processes)
    with main_first(processes):
        store = CheckpointStore(output.output_dir, output.max_checkpoints_to_keep, writes=processes.is_main)
    monitor = Monitor(
        output.log_dir, processes.is_main, checkpoint.step if checkpoint is not None else None, output.progress
    )
    try:
        return _assemble(config, processes, checkpoint, store, monitor)
    except BaseException:
        monitor.close()
        raise


def _assemble(
    config: Config, processes: Processes, checkpoint: Checkpoint | None, store: CheckpointStore, monitor: Monitor
) -> Trainer:
    if checkpoint is not None:
        _announce_resume(checkpoint, store)
    elif config.training.resume is not None:
        logger.info("--resume auto: no checkpoint in %s yet, so the run starts afresh", store.folder)

    # A run that goes on has its weights: those it started from may be gone.
    fresh = config if checkpoint is None else config.replace(init_from=None)
    tokenizer, train, val, text_val, model = build_parts(fresh, processes)
    objective = Stage1Objective(model, config.objective, sees_pairs=config.data.train_data is not None)
    precision = resolve_precision(config.training.precision, processes.device)
    table = count_parameters(model, {"temperature": [objective.log_temperature]})
    if processes.is_main:
        table.write(config.output.output_dir)

    held_out = val is not None or text_val is not None
    trainer = Trainer(
        config=config,
        objective=objective,
        dataset=train,
        collate=Collator(tokenizer.pad_token_id),
        monitor=monitor,
        store=store,
        processes=processes,
        precision=precision,
        count_words=WordCounter(tokenizer),
        held_out=HeldOut(config, val, text_val, tokenizer, processes.device, precision) if held_out else None,
        checkpoint=checkpoint,
        resume_command=resume_command(world_size=processes.world_size),
    )
    trainer.cached = plan_cached_phase(trainer, train, val)
    monitor.total_steps = trainer.plan.total_steps
    plan = trainer.plan
    rows = [
        ("device", f"{processes.device} ({processes.world_size} process{'es' if processes.world_size > 1 else ''})"),
        ("precision", precision.name),
        ("training data", f"{_names(config.data.text_data, config.data.train_data)}: {train.describe()}"),
        ("held-out data", _held_out_text(config, val, text_val)),
        ("batch", _batch_text(config, processes)),
        ("steps", f"{plan.total_steps:,} ({plan.steps_per_epoch:,} an epoch)"),
        ("feature cache", f"phase 1 reads {trainer.cached.parent}" if trainer.cached is not None else "none"),
        ("phase 2", f"from step {plan.boundary + 1:,}" if plan.boundary is not None else f"none: {plan.reason}"),
        ("checkpoints", config.output.output_dir),
    ]
    monitor.banner(rows, table.to_text())
    if plan.boundary is not None and plan.boundary >= plan.total_steps:
        logger.warning("phase 2 would start at step %d, after the run's end: LoRA never trains", plan.boundary + 1)
    return trainer


def _names(*sources: str | None) -> str:
    return " and ".join(source for source in sources if source is not None)


def _held_out_text(config: Config, val: PairDataset | None, text_val: TextBlocks | None) -> str:
    parts = [f"{config.data.val_data}: {val.image_count:,} images"] if val is not None else []
    parts += [f"{config.data.text_val_data}: {text_val.num_words:,} words"] if text_val is not None else []
    return "; ".join(parts) or "none"


def _batch_text(config: Config, processes: Processes) -> str:
    training, data = config.training, config.data
    kinds = [f"{training.text_batch_size} sequences"] if data.text_data is not None else []
    kinds += [f"{training.batch_size} pairs"] if data.train_data is not None else []
    text = " or ".join(kinds)
    text += f" ({data.text_ratio:.0%} of the batches are text)" if len(kinds) > 1 else ""
    text += f" x {processes.world_size} processes" if processes.world_size > 1 else ""
    return text + (f" x {training.grad_accum_steps} accumulated" if training.grad_accum_steps > 1 else "")


def finish(trainer: Trainer) -> None:
    """The end of a run: tables, the path of the best checkpoint, and what to try next."""
    config, progress, best = trainer.config, trainer.progress, trainer.store.best
    rows: list[tuple[str, object]] = [
        ("steps", f"{progress.step:,}" + (f" ({progress.skipped_steps} skipped)" if progress.skipped_steps else "")),
        ("seen", f"{progress.samples_seen:,} samples, {progress.words_seen:,} words"),
    ]
    training = config.training
    if training.max_words_seen is not None:
        share = progress.words_seen / training.max_words_seen
        rows.append(("budget of words", f"{share:.1%} of max_words_seen {training.max_words_seen:,}"))
    if training.max_epochs is not None:
        passes = progress.step / steps_per_pass(trainer.plan, trainer.sampler)
        rows.append(("budget of passes", f"{passes:.2f} of max_epochs {training.max_epochs}"))
    if progress.milestone:
        rows.append(
            ("checkpoints by words", f"{config.output.output_dir}/{REVISION_PREFIX}*M, the last {progress.milestone}M")
        )
    if progress.bad_records:
        rows.append(("skipped records", "; ".join(f"{n:,} x {reason}" for reason, n in progress.bad_records.items())))
    if best is not None and progress.best_score is not None:
        rows.append(("best checkpoint", f"{best} (step {progress.best_step:,}, {score_text(progress.best_score)})"))
    elif trainer.store.newest is not None:
        rows.append(("last checkpoint", str(trainer.store.newest)))
    trainer.monitor.summary(rows, _next_commands(config))


def _next_commands(config: Config) -> list[tuple[str, str]]:
    run, data = config.output.output_dir, config.data
    commands = []
    if data.train_data is not None and config.objective.contrastive_weight:
        commands.append(
            (
                "how good it is",
                f"python src/evaluate.py --checkpoint {run} --data {data.val_data or 'DIR'} --output results.json",
            )
        )
    if data.train_data is not None and config.objective.text_loss_weight:
        held_out = data.val_data or "DIR"
        commands.append(
            ("its captions", f"python src/evaluate.py --checkpoint {run} --task captioning --data {held_out}")
        )
    if data.text_data is not None:
        commands += [
            ("its grammar", f"python src/evaluate.py --checkpoint {run} --task babylm --eval_dir DIR"),
            ("for everybody", f"python src/export.py --checkpoint {run} --output DIR"),
        ]
    return commands
