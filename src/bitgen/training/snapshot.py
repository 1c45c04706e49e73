"""A trainer's state as a checkpoint, and back: what makes a resumed run the same run, bit for bit."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors.torch import load_file

from bitgen.checkpoint.format import EMA_FILE, Checkpoint, CheckpointError, load_weights, split_state
from bitgen.machine.files import digest
from bitgen.machine.randomness import random_state, set_random_state
from bitgen.machine.ranks import Processes, check_equal_on_ranks, from_main, gather_objects
from bitgen.training.optimizer import state_by_name

if TYPE_CHECKING:
    from bitgen.training.trainer import Trainer

logger = logging.getLogger(__name__)
Result = TypeVar("Result")


def identity(trainer: Trainer) -> dict[str, int | str | None]:
    """What must be the same on resume for a run to go on as the same run."""
    training = trainer.config.training
    return {
        "num_gpus": trainer.processes.world_size,
        "training samples": len(trainer.dataset),
        "batch_size": training.batch_size,
        "grad_accum_steps": training.grad_accum_steps,
        "seed": training.seed,
        "optimizer": training.optimizer,
        "vision_tuning": trainer.objective.model.config.vision_tuning,
        **trainer.sampler.identity(),
        "feature_cache_pool": trainer.objective.model.config.feature_pool,
    }


# ---- saving ----


def save(trainer: Trainer, is_best: bool = False) -> None:
    """Write a checkpoint of this moment on rank 0, after checking that the ranks agree.

    Raises:
        CheckpointError: it could not be written; on every rank.
        RuntimeError: the ranks' weights, queues or phases differ.
    """
    processes, step = trainer.processes, trainer.progress.step
    if trainer.saved_at == step:
        if is_best and processes.is_main:
            trainer.store.mark_best(step)
        return
    own, _ = split_state(trainer.objective.model)
    if processes.is_distributed:
        queue = ((name, value) for name, value in trainer.queue.state_dict().items() if isinstance(value, torch.Tensor))
        parts = {
            "parameters and memory": digest(own.items()),
            "temperature": digest([("log_temperature", trainer.objective.log_temperature)]),
            "queue": digest(queue),
            "phase": str(trainer.phase),
        }
        check_equal_on_ranks(processes, parts)
    generators = gather_objects(random_state(processes.device), processes)

    def write() -> None:
        average = trainer.average.tensors if trainer.average is not None else None
        trainer.store.save(
            step,
            own,
            {**_state(trainer), "random": generators},
            trainer.config,
            trainer.objective.model.config,
            trainer.base_hash,
            average,
            is_best,
        )
        trainer.monitor.flush()

    on_main(processes, write)
    trainer.saved_at = step


def store_base(trainer: Trainer) -> str | None:
    """Write the frozen base into the run's folder on rank 0, unless it is there; its hash, on every rank."""
    return on_main(trainer.processes, lambda: trainer.store.store_base(split_state(trainer.objective.model)[1]))


def on_main(processes: Processes, action: Callable[[], Result]) -> Result:
    """Rank 0 runs the action; every rank gets its result, or raises its ``CheckpointError``."""
    outcome: tuple[Any, str | None] = (None, None)
    if processes.is_main:
        try:
            outcome = (action(), None)
        except CheckpointError as error:
            if not processes.is_distributed:
                raise
            outcome = (None, str(error))
    result, message = from_main(outcome, processes)
    if message is not None:
        raise CheckpointError(message)
    return result


def _state(trainer: Trainer) -> dict[str, Any]:
    """Everything but the weights and the random states that resuming needs: plain values and tensors."""
    plan, step = trainer.plan, trainer.progress.step
    return {
        "step": step,
        "phase": trainer.phase,
        "progress": asdict(trainer.progress),
        "plan": plan.to_dict(),
        "run": identity(trainer),
        "sampler": {
            "epoch": plan.epoch_at(step),
            "batch": step % plan.steps_per_epoch * trainer.config.training.grad_accum_steps,
        },
        "scores": trainer.scores,
        "latest_metrics": dict(trainer.latest_metrics),
        "optimizer": state_by_name(trainer.optimizer) if trainer.optimizer is not None else trainer.restored_moments,
        "scaler": trainer.scaler.state_dict(),
        "log_temperature": trainer.objective.log_temperature.detach(),
        "queue": trainer.queue.state_dict(),
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    import peft
    import transformers

    return {"torch": str(torch.__version__), "transformers": transformers.__version__, "peft": peft.__version__}


# ---- resuming ----


def restore(trainer: Trainer, checkpoint: Checkpoint) -> None:
    """Weights, queue, optimizer moments, counters and random states of ``checkpoint`` into a freshly built trainer.

    Raises:
        CheckpointError: it belongs to another run: other processes, data, shapes or phases.
    """
    _check_identity(trainer, checkpoint)
    state, model = checkpoint.state, trainer.objective.model
    load_weights(model, checkpoint.path)
    with torch.no_grad():
        trainer.objective.log_temperature.copy_(state["log_temperature"])
    try:
        trainer.queue.load_state_dict(state["queue"])
    except ValueError as error:
        raise CheckpointError(f"{checkpoint.path}: {error}") from error
    if trainer.average is not None:
        averages = checkpoint.path / EMA_FILE
        if not averages.exists():
            raise CheckpointError(
                f"{checkpoint.path} holds no averaged weights (it was written with ema_decay 0): resume with "
                "--ema_decay 0."
            )
        trainer.average.load(load_file(averages), trainer.processes.device)
    trainer.progress = replace(trainer.progress, **state["progress"])
    trainer.scores = list(state["scores"])
    trainer.latest_metrics = dict(state.get("latest_metrics", {}))
    trainer.restored_moments = state["optimizer"]
    if state["scaler"]:
        trainer.scaler.load_state_dict(state["scaler"])
    on_main(trainer.processes, lambda: _repoint_best(trainer))
    set_random_state(state["random"][trainer.processes.rank], trainer.processes.device)


def _repoint_best(trainer: Trainer) -> None:
    """``best`` as this checkpoint knew it: what an abandoned continuation found is found again, or is not."""
    best = trainer.progress.best_step
    if best is not None and trainer.store.has(best):
        trainer.store.mark_best(best)


def _check_identity(trainer: Trainer, checkpoint: Checkpoint) -> None:
    # Checkpoints from before there was a choice of optimizers do not name theirs.
    saved, now = {"optimizer": "adamw"} | checkpoint.state["run"], identity(trainer)
    pairs = {name: (saved.get(name, "not set"), now.get(name, "not set")) for name in {**saved, **now}}
    differing = [f"{name} was {then} and is {is_now}" for name, (then, is_now) in pairs.items() if then != is_now]
    plan_then, plan_now = checkpoint.state["plan"], trainer.plan.to_dict()
    meaning = {"steps_per_epoch": "steps per epoch", "boundary": "first step of phase 2 (lora_warmup_epochs, _steps)"}
    differing += [
        f"{text} was {plan_then[name]} and is {plan_now[name]}"
        for name, text in meaning.items()
        if plan_then[name] != plan_now[name]
    ]
    if differing:
        raise CheckpointError(
            f"{checkpoint.path} belongs to another run: {'; '.join(differing)}. Resume with the settings in "
            f"{checkpoint.path / 'config.yaml'}, or start a new run with another --output_dir."
        )
    if plan_then["total_steps"] != plan_now["total_steps"]:
        logger.warning(
            "the run was planned for %d steps and now for %d: from here on the learning rate follows the new plan",
            plan_then["total_steps"],
            plan_now["total_steps"],
        )
