"""A run's state as a checkpoint, and back: what makes a resumed run the same run, bit for bit."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, TypeVar

import torch

from bitgen.checkpoint.format import Checkpoint, load_weights, read_tensors, split_state
from bitgen.checkpoint.manifest import EMA_FILE, CheckpointError
from bitgen.checkpoint.store import CheckpointStore
from bitgen.machine.files import digest
from bitgen.machine.parallel import Parallel
from bitgen.machine.randomness import random_state, set_random_state
from bitgen.machine.ranks import Processes, check_equal_on_ranks, from_main, gather_objects
from bitgen.protocols import Run, State
from bitgen.stages import Stage
from bitgen.training.averaging import WeightAverage
from bitgen.training.origin import STARTED_FROM, Start

logger = logging.getLogger(__name__)
Result = TypeVar("Result")


class Snapshots:
    """Writes a run's checkpoints and puts one back. All ranks call every method together.

    Args:
        run: whose objective and identity are saved.
        store: writes on rank 0.
        started_from: what a new run keeps of the one whose weights it starts with.
    """

    def __init__(self, run: Run, store: CheckpointStore, parallel: Parallel, started_from: Start | None = None) -> None:
        self.run, self.store, self.parallel, self.ranks = run, store, parallel, parallel.ranks
        self.identity = {"num_gpus": self.ranks.world_size, **run.identity}
        self.origin: State = {STARTED_FROM: started_from}
        self.base_hash: str | None = None
        self.saved_at = -1

    def store_base(self) -> None:
        """Write the weights that no run changes into the run's folder, unless they are there; before any is shared out
        over the ranks."""
        base = self._split()[1]
        self.base_hash = on_main(self.ranks, lambda: self.store.store_base(base))

    def save(self, step: int, stage: Stage, loop: State, average: WeightAverage | None, is_best: bool = False) -> None:
        """Write the checkpoint of ``step``, after checking that the ranks agree.

        Args:
            stage: as it is by now: a budget may have cut it.
            loop: the training loop's own state.

        Raises:
            CheckpointError: it could not be written; on every rank.
            RuntimeError: what the ranks hold differs.
        """
        if self.saved_at == step:
            if is_best:
                on_main(self.ranks, lambda: self.store.mark_best(step))
            return
        own, objective = self.parallel.gather(self._split()[0]), self.run.objective.state()
        if self.ranks.is_distributed and self.parallel.replicated:
            parts = {"the model's weights": digest(own.items())}
            parts |= {name: digest(_tensors(value, name)) for name, value in objective.items()}
            check_equal_on_ranks(self.ranks, {**parts, "phase": str(loop["phase"])})
        generators = gather_objects(random_state(self.ranks.device), self.ranks)
        state = {
            "step": step,
            **loop,
            **self.origin,
            "total_steps": stage.steps,
            "run": dict(self.identity),
            "fingerprints": dict(self.run.fingerprints),
            "source": self.run.source.state(stage, step),
            "objective": objective,
            "versions": _versions(),
            "random": generators,
            "averaged_steps": average.steps if average is not None else 0,
        }
        averaged = average.tensors if average is not None else None
        on_main(
            self.ranks,
            lambda: self.store.save(step, own, state, self.run.files, self.base_hash, averaged, is_best),
        )
        self.saved_at = step

    def restore(self, checkpoint: Checkpoint, average: WeightAverage | None) -> State:
        """Weights, objective, averages and random states of ``checkpoint``; the loop's own state is returned.

        Raises:
            CheckpointError: it belongs to another run: other processes, data, shapes or phases.
        """
        self._check_identity(checkpoint)
        state, objective = checkpoint.state, self.run.objective
        # What began before states said so may have begun either way.
        self.origin = {STARTED_FROM: state[STARTED_FROM]} if STARTED_FROM in state else {}
        load_weights(objective.model, checkpoint.files, objective.base_names())
        try:
            objective.load_state(state["objective"])
        except ValueError as error:
            raise CheckpointError(f"{checkpoint.path}: {error}") from error
        self.run.source.load_state(state["source"])
        if average is not None:
            there = EMA_FILE in checkpoint.files
            with read_tensors(checkpoint.files, EMA_FILE) if there else nullcontext() as averages:
                try:
                    average.load(averages, self.ranks.device, checkpoint.step, state.get("averaged_steps", 0))
                except ValueError as error:
                    raise CheckpointError(f"{checkpoint.path}: {error}") from error
        on_main(self.ranks, lambda: self._repoint_best(state["progress"].get("best_step")))
        set_random_state(state["random"][self.ranks.rank], self.ranks.device)
        self.saved_at = checkpoint.step
        return state

    def _split(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        return split_state(self.run.objective.model, self.run.objective.base_names())

    def _repoint_best(self, best: int | None) -> None:
        """``best`` as this checkpoint knew it: what an abandoned continuation found is found again, or is not."""
        if best is not None and self.store.has(best):
            self.store.mark_best(best)

    def _check_identity(self, checkpoint: Checkpoint) -> None:
        saved, now = checkpoint.state["run"], self.identity
        pairs = {name: (saved.get(name, "not set"), now.get(name, "not set")) for name in {**saved, **now}}
        # Of a setting that is newer than the checkpoint it was the default.
        newer = {name for name, (_, is_now) in pairs.items() if name not in saved and name in self.run.defaults
                 and is_now == self.run.defaults[name]}  # fmt: skip
        differing = [
            f"{name} was {then} and is {is_now}"
            for name, (then, is_now) in pairs.items() if then != is_now and name not in newer
        ]  # fmt: skip
        if differing:
            raise CheckpointError(
                f"{checkpoint.path} belongs to another run: {'; '.join(differing)}. Resume with the settings in "
                f"{checkpoint.path / 'config.yaml'}, or start a new run with another --output_dir."
            )
        fingerprints = checkpoint.state.get("fingerprints", {})
        for name, is_now in self.run.fingerprints.items():
            then = fingerprints.get(name, is_now)
            if then != is_now:
                raise CheckpointError(
                    f"{checkpoint.path} belongs to another run: the {name} is not the one that it was trained with "
                    f"(its fingerprint was {then[:12]} and is {is_now[:12]}). Put that one back, or start a new run "
                    "with another --output_dir."
                )
        planned = checkpoint.state["total_steps"]
        if planned != self.run.stage.steps:
            logger.warning(
                "the run was planned for %d steps and now for %d: from here on the learning rate follows the new plan",
                planned,
                self.run.stage.steps,
            )


def on_main(ranks: Processes, action: Callable[[], Result]) -> Result:
    """Rank 0 runs the action; every rank gets its result, or raises its ``CheckpointError``."""
    outcome: tuple[Any, str | None] = (None, None)
    if ranks.is_main:
        try:
            outcome = (action(), None)
        except CheckpointError as error:
            if not ranks.is_distributed:
                raise
            outcome = (None, str(error))
    result, message = from_main(outcome, ranks)
    if message is not None:
        raise CheckpointError(message)
    return result


def _tensors(value: Any, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor in nested dicts, by its path."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _tensors(inner, f"{name}.{key}")


def _versions() -> dict[str, str]:
    import peft
    import transformers

    return {"torch": str(torch.__version__), "transformers": transformers.__version__, "peft": peft.__version__}
