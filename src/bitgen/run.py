"""One run of any task: from a configuration to a trainer, the training, and the summary after it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from bitgen.checkpoint.format import (
    REVISION_PREFIX,
    Checkpoint,
    checkpoint_folders,
    find_checkpoint,
    read_checkpoint,
    revision_folders,
    step_of,
)
from bitgen.checkpoint.manifest import CheckpointError, read_manifest
from bitgen.checkpoint.store import CheckpointStore, mend_links
from bitgen.config.schema import CONFIG_FILE
from bitgen.config.values import ConfigError
from bitgen.guards.failures import explained
from bitgen.guards.printable import printable
from bitgen.machine import watch
from bitgen.machine.devices import Precision, resolve_precision, start_processes
from bitgen.machine.files import remove_leftovers
from bitgen.machine.memory import keep_freed_memory
from bitgen.machine.parallel import Parallel, Replicated
from bitgen.machine.ranks import Processes, exclusive_for_all, from_main, lost_peer, main_first
from bitgen.machine.stopping import resume_command
from bitgen.machine.threads import threads_of_this_process
from bitgen.protocols import Run, Task
from bitgen.show.monitor import Monitor
from bitgen.show.run_logging import FILE_ONLY
from bitgen.training.loop_settings import LoopSettings
from bitgen.training.origin import started_from
from bitgen.training.reporting import TrainingDiverged, message_of
from bitgen.training.trainer import Trainer

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"  # in a run's folders

# What a run that goes on may change without a word.
# (``rationale`` of stage 2 is part of a run's identity, as it could be learned, and is kept so in its settings.)
_NOT_OF_TRAINING = ("resume", "init_from", "output_dir", "log_dir", "progress", "rationale")

# A configuration of any task: it has the groups `training` and `output`.
Config = Any


class RunFailed(RuntimeError):
    """A run that could not go on: it diverged, the disk is full, or a record cannot be read."""


def train(task: Task, config: Config, purpose: str | None = None) -> int:
    """Build and fit. Returns 0, or the number of the signal that stopped the run.

    Args:
        purpose: what the run is one of, for the log.

    Raises:
        ConfigError: what a person asked for cannot be.
        RunFailed: training could not go on; why is in the log.
    """
    with ExitStack() as held:
        try:
            ranks = start_processes(config.training.device, config.training.use_ddp)
            if ranks.device.type == "cpu":
                keep_freed_memory()
            held.enter_context(folders_held(config.output, ranks))
            trainer = build_trainer(task, config, ranks)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        held.enter_context(closing(trainer.monitor))
        if purpose is not None:
            logger.info(purpose)
        logger.info(threads_of_this_process().sentence)
        if _fit(trainer):
            finish(trainer)
            if trainer.stopped and purpose is not None:
                logger.info("Stopped at this run's end. To go on with what follows it:\n  %s", trainer.resume_command)
    return trainer.stopped


def _fit(trainer: Trainer) -> bool:
    # Of several processes the main one, and only what can wait for another.
    seconds = watch.STALLED_SECONDS if trainer.ranks.is_main and trainer.ranks.is_distributed else 0.0
    try:
        with watch.StepWatch(seconds, lambda: trainer.throughput.began):
            return trainer.fit()
    except Exception as error:
        logger.info("where it happened", exc_info=True, extra=FILE_ONLY)
        is_ours = isinstance(error, (TrainingDiverged, ValueError))  # also a record that cannot be read
        said = message_of(error) if is_ours else lost_peer(error, trainer.ranks) or explained(error)
        if said is None:
            raise
        if not is_ours:
            said = f"{said} Go on with: {trainer.resume_command}"
        logger.error("%s", said)
        raise RunFailed(said) from error


@contextmanager
def folders_held(output: Any, ranks: Processes) -> Iterator[None]:
    """No other run writes to this one's folders while the block runs. Rank 0 holds them for all; they are made.

    Raises:
        ValueError: another run has one of them, or it cannot be written; on every rank.
    """
    with ExitStack() as held:
        taken = set()
        for name in ("output_dir", "log_dir"):
            folder = Path(getattr(output, name))
            with main_first(ranks):
                if ranks.is_main:
                    _make(folder, name)
            if (place := os.path.realpath(folder)) in taken:
                continue
            taken.add(place)
            remedy = f"Wait until that is done, or give this run another --{name}."
            held.enter_context(exclusive_for_all(ranks, folder / LOCK_FILE, f"--{name} {folder}", remedy))
            if ranks.is_main:
                with suppress(OSError):  # what cannot be removed is in nobody's way
                    remove_leftovers(folder)
        yield


def _make(folder: Path, name: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"--{name} {folder}: cannot write there ({error.strerror or error}). Choose a folder that you may write "
            "to, or free space and permissions on this one."
        ) from error


def find_resume(config: Config, processes: Processes) -> Checkpoint | None:
    """The checkpoint to go on from, on every rank the one that rank 0 found whole.

    Raises:
        ConfigError: no resume was asked for, and ``output_dir`` holds checkpoints.
        CheckpointError: as ``find_checkpoint`` and ``mend_links``.
    """
    output_dir = config.output.output_dir
    with main_first(processes):
        if processes.is_main:
            mend_links(output_dir)
    if config.training.resume is None:
        if checkpoint_folders(output_dir) or revision_folders(output_dir):
            raise ConfigError(
                f"output_dir {output_dir} holds checkpoints of another run: write --resume auto to go on with it, or "
                "another --output_dir (and --log_dir) for a new run."
            )
        return None
    found: Checkpoint | None = None
    with main_first(processes):
        if processes.is_main:
            found = find_checkpoint(config.training.resume, output_dir)
            _refuse_newer(found, config)
    path = from_main(found.path if found is not None else None, processes)
    if path is None:
        return None
    return found if processes.is_main else read_checkpoint(path)


def _refuse_newer(found: Checkpoint | None, config: Config) -> None:
    """Going back in a run would leave checkpoints of its abandoned future, which ``auto`` would take up later."""
    output_dir = config.output.output_dir
    step, passed_over = (found.step, found.damaged) if found is not None else (0, {})
    damaged = {folder.resolve() for folder in passed_over}
    newer = [
        folder
        for folder in checkpoint_folders(output_dir)
        if (step_of(folder) or 0) > step and folder.resolve() not in damaged
    ]
    if newer:
        raise ConfigError(
            f"--resume {config.training.resume}: output_dir {output_dir} holds newer checkpoints "
            f"({newer[0].name}). Write --resume auto to go on from there, give another --output_dir and --log_dir, or "
            "remove them."
        )
    # A damaged checkpoint is passed over, and the same steps reach the same milestones again.
    last = max([step, *(step_of(folder) or 0 for folder in passed_over)])
    if later := [folder.name for folder in revision_folders(output_dir) if _manifest_step(folder) > last]:
        raise ConfigError(
            f"--resume {config.training.resume}: output_dir {output_dir} holds {', '.join(later)} of later steps, "
            "which would stand beside this run's own checkpoints. Give another --output_dir and --log_dir, or remove "
            "them."
        )


def _manifest_step(folder: Path) -> int:
    try:
        return int(read_manifest(folder)["step"])
    except CheckpointError:
        return 0  # damaged: whoever exports it is told so


def _announce_resume(checkpoint: Checkpoint, store: CheckpointStore, config: Config) -> Config:
    """Returns: the settings, with the init_from that the run began with where the command leaves it out."""
    for folder, problem in checkpoint.damaged.items():
        logger.warning("checkpoint %s is damaged, so the one before it is taken: %s", folder, problem)
        if store.writes and folder.parent.resolve() == store.folder.resolve():
            logger.warning("it is kept as %s", store.set_aside(folder))
    logger.info("resuming from %s, after step %d", checkpoint.path, checkpoint.step)
    changed = _say_what_changed(checkpoint, config)
    rescored = config.rescored(changed)
    if rescored and checkpoint.state["progress"].get("best_score") is not None:
        logger.info("scores are of something else now (%s): the best is looked for anew", ", ".join(rescored))
        checkpoint.state["progress"] |= {"best_score": None, "best_step": None, "highest_score": None}
    began_with = changed.get("init_from", (None, None))[0] if config.training.init_from is None else None
    return config if began_with is None else config.replace(init_from=began_with)


def _say_what_changed(checkpoint: Checkpoint, config: Config) -> dict[str, tuple[Any, Any]]:
    """Settings may change at a resume, but not in silence, and not those that give weights their meaning.

    Returns: what they were, and are.

    Raises:
        CheckpointError: one of ``fixed`` differs.
    """
    path = checkpoint.path / CONFIG_FILE
    try:
        content = checkpoint.files.read(CONFIG_FILE) if CONFIG_FILE in checkpoint.files else None
        differing = config.differences(content, path) if content is not None else {}
    except ConfigError as error:  # of an earlier version, perhaps
        logger.warning("settings of the checkpoint cannot be compared with today's: %s", error)
        return {}
    changed = {
        name: f"{name} was {printable(then, 100)} and is {printable(now, 100)}"
        for name, (then, now) in differing.items()
        if name not in _NOT_OF_TRAINING
    }
    if refused := [text for name, text in changed.items() if name in config.fixed]:
        raise CheckpointError(
            f"{checkpoint.path} belongs to another run: {'; '.join(refused)}. Its weights would mean something else. "
            f"Resume with the settings in {path}, or start a new run with another --output_dir."
        )
    if changed:
        logger.info("changed since the checkpoint: %s", "; ".join(changed.values()))
    return differing


def build_trainer(task: Task, config: Config, ranks: Processes) -> Trainer:
    """Everything a run needs, from the log files to the first batch.

    Raises:
        ValueError: what was asked for cannot be; the message says what to write instead.
    """
    output = config.output
    checkpoint = find_resume(config, ranks)
    with main_first(ranks):
        store = CheckpointStore(output.output_dir, output.max_checkpoints_to_keep, writes=ranks.is_main)
    # Of a checkpoint of another run the logs are that run's.
    is_own = checkpoint is not None and checkpoint.path.parent.resolve() == store.folder.resolve()
    resume_step = checkpoint.step if checkpoint is not None and is_own else None
    monitor = Monitor(output.log_dir, ranks.is_main, resume_step, output.progress)
    try:
        return _assemble(task, config, ranks, checkpoint, store, monitor)
    except BaseException:
        logger.info("where it happened", exc_info=True, extra=FILE_ONLY)
        monitor.close()
        raise


def _assemble(
    task: Task,
    config: Config,
    ranks: Processes,
    checkpoint: Checkpoint | None,
    store: CheckpointStore,
    monitor: Monitor,
) -> Trainer:
    if checkpoint is not None:
        config = _announce_resume(checkpoint, store, config)
    elif config.training.resume is not None:
        logger.info("--resume auto: no checkpoint in %s yet, so the run starts afresh", store.folder)
    run = task.build(config, ranks, fresh=checkpoint is None)._replace(defaults=type(config)().flat())
    precision = resolve_precision(config.training.precision, ranks.device)
    parallel = _parallel(config.training, ranks, precision, run)
    command = resume_command(world_size=ranks.world_size)
    settings = _loop_settings(config, run, begins=checkpoint is None and ranks.is_main)
    trainer = Trainer(run, settings, monitor, store, parallel, precision, checkpoint, command)
    monitor.total_steps = run.stage.steps
    monitor.begin()
    monitor.banner(run.banner, run.parameters)
    return trainer


def _parallel(training: Any, ranks: Processes, precision: Precision, run: Run) -> Parallel:
    """How the processes share the work.

    Raises:
        ConfigError: settings that do not go with it.
    """
    if training.parallel == "replicated":
        return Replicated(ranks)
    from bitgen.machine.sharded import Sharded, elements_of_lists  # here, because most runs need nothing of FSDP

    parallel = Sharded(ranks, run.blocks or elements_of_lists)
    parallel.refuse(training.optimizer, precision.name)
    if training.ema_decay or training.average_last:
        says = "Averages of weights are kept whole, and a sharded run holds pieces of them. "
        raise ConfigError(says + "Write --ema_decay 0 --average_last 0, or --parallel replicated.")
    return parallel


def _loop_settings(config: Config, run: Run, begins: bool) -> LoopSettings:
    training, output = config.training, config.output
    start = started_from(training.init_from, output.words_seen_checkpoints, training.max_words_seen) if begins else None
    return LoopSettings(
        seed=training.seed,
        max_grad_norm=training.max_grad_norm,
        ema_decay=training.ema_decay,
        average_last=training.average_last,
        max_nonfinite_steps=training.max_nonfinite_steps,
        max_words_seen=training.max_words_seen,
        save_steps=output.save_steps,
        eval_steps=run.eval_steps or output.eval_steps,
        log_steps=output.log_steps,
        words_seen_checkpoints=output.words_seen_checkpoints,
        started_from=start,
    )


def finish(trainer: Trainer) -> None:
    """The end of a run: tables, the path of the best checkpoint, and what to try next."""
    run, progress, store = trainer.run, trainer.progress, trainer.store
    rows: list[tuple[str, object]] = [
        ("steps", f"{progress.step:,}" + (f" ({progress.skipped_steps} skipped)" if progress.skipped_steps else "")),
        ("seen", f"{progress.samples_seen:,} samples, {progress.words_seen:,} words"),
        *run.summary(progress.step, progress.words_seen),
    ]
    if progress.milestone:
        rows.append(("checkpoints by words", f"{store.folder}/{REVISION_PREFIX}*M, the last {progress.milestone}M"))
    if progress.bad_records:
        rows.append(("skipped records", "; ".join(f"{n:,} x {reason}" for reason, n in progress.bad_records.items())))
    if store.best is not None and progress.best_score is not None:
        score = run.score_text(progress.best_score)
        rows.append(("best checkpoint", f"{store.best} (step {progress.best_step:,}, {score})"))
    elif store.newest is not None:
        rows.append(("last checkpoint", str(store.newest)))
    trainer.monitor.summary(rows, run.next_commands)
