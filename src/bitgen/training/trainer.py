"""The training loop: two phases, one step at a time, everything about a step a function of its number."""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset

from bitgen.checkpoint.format import Checkpoint
from bitgen.checkpoint.store import CheckpointStore
from bitgen.config import Config
from bitgen.data.bad_records import Skipped
from bitgen.data.text_and_pairs import TextAndPairs
from bitgen.evaluation.validation import HeldOutResult
from bitgen.feature_cache.pairs import CachedSplit, as_it_is
from bitgen.feature_cache.phase import CachedPhase, drop_base, restore_base
from bitgen.machine.devices import Precision
from bitgen.machine.randomness import random_state_kept, seed_everything
from bitgen.machine.ranks import Processes, agree, from_main, gather_objects
from bitgen.machine.stopping import StopSignals
from bitgen.objectives.feature_queue import FeatureQueue, QueueEntries
from bitgen.objectives.gather import gather_entries
from bitgen.objectives.stage1 import Stage1Objective, Stage1Output
from bitgen.show.monitor import Monitor
from bitgen.training.averaging import WeightAverage
from bitgen.training.batches import Batches
from bitgen.training.budget import REVISION_PREFIX, milestone, within_budget
from bitgen.training.optimizer import build_optimizer, load_state_by_name, set_learning_rates, state_by_name
from bitgen.training.phases import PhasePlan, plan_phases
from bitgen.training.progress import Progress
from bitgen.training.reporting import announce_phase, diverged, log_step, warn_of_skipped_step
from bitgen.training.skipped_records import SkippedRecords
from bitgen.training.snapshot import on_main, restore, save, store_base
from bitgen.training.throughput import Throughput

logger = logging.getLogger(__name__)


@dataclass
class Trainer:
    """Trains an objective on a dataset; see :meth:`fit`.

    Args:
        collate: samples to a batch.
        held_out: validates a model on rank 0, given the temperature and the split as features (None: as images); None:
            there is no validation data.
        count_words: ``(input_ids, attention_mask)`` -> words in a batch.
        checkpoint: resume from it; None: start anew.
        cached: phase 1 reads a feature cache; None: it runs the tower.

    All ranks must have built the same ``objective``. Raises as ``plan_phases`` and ``snapshot.restore`` do.
    """

    config: Config
    objective: Stage1Objective
    dataset: Dataset
    collate: Callable[[list[dict]], dict[str, torch.Tensor]]
    monitor: Monitor
    store: CheckpointStore
    processes: Processes
    precision: Precision
    count_words: Callable[[torch.Tensor, torch.Tensor], int]
    held_out: Callable[[nn.Module, float, CachedSplit | None], HeldOutResult] | None = None
    checkpoint: Checkpoint | None = None
    cached: CachedPhase | None = None
    resume_command: str = "the same command with --resume auto"

    def __post_init__(self) -> None:
        config, model, device = self.config, self.objective.model, self.processes.device
        training = config.training
        self.sampler = self.dataset.batch_sampler(training.batch_size, self.processes.rank, self.processes.world_size)
        self.skipped_records = SkippedRecords(config.data.max_bad_fraction, len(self.dataset))
        plan = plan_phases(config, len(self.sampler))
        self.plan: PhasePlan = within_budget(plan, config, self.dataset, self.sampler)
        self.latest_metrics: dict[str, torch.Tensor] = {}
        self.progress = Progress()
        self.scores: list[dict[str, float]] = []
        self.objective.to(device)
        sizes = model.config
        self.queue = FeatureQueue(
            config.objective.queue_size, sizes.embed_dim, sizes.max_seq_len, sizes.pooled_tokens
        ).to(device)
        self.average = WeightAverage(training.ema_decay) if training.ema_decay > 0 else None
        self.adapters = {f"model.{name}" for name in model.adapter_names()}
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision.name == "fp16")
        self.optimizer: torch.optim.Optimizer | None = None
        self.restored_moments: dict[str, Any] = {}
        self.wrapped: nn.Module = self.objective
        self.phase = 0
        self.stopped = False  # whether a signal came, in the last step or after it perhaps
        # Identical models on all ranks, then dropout and negatives of each rank's own.
        seed_everything(training.seed + self.processes.rank)
        if self.checkpoint is not None:
            restore(self, self.checkpoint)
        # Before the first step, while the base is what was loaded.
        self.base_hash = store_base(self)
        self.saved_at = self.progress.step if self.checkpoint is not None else -1

    # ---- the run ----

    def fit(self) -> bool:
        """Train to the last step, or until a signal says stop; whether the run is at its end.

        Raises:
            TrainingDiverged: the loss stayed non-finite.
            CheckpointError: a checkpoint could not be written.
        """
        progress, plan = self.progress, self.plan
        self.throughput = Throughput(self.processes.device)
        pin = self.processes.device.type == "cuda"
        self.batches = Batches(self.config, self.sampler, self.count_words, pin)
        # A validation that the earlier process owed when it was stopped.
        owed = self._validation_due() and progress.validated_at < progress.step
        # Before signals are held back: filling a cache may take hours, and a second attempt goes on where it stopped.
        self._prepare_cache(owed)
        with StopSignals() as stop:
            try:
                if progress.step < plan.total_steps:
                    self._enter_phase(plan.phase_at(progress.step))
                    self._start_loading()
                    self._start_epoch()
                if owed:
                    save(self, self._validate())
                self._keep_milestone()
                self._run(stop)
            finally:
                self.batches.stop()
            self.stopped = any(gather_objects(stop.received is not None, self.processes))
        return progress.step == self.plan.total_steps  # which a budget may have cut

    def _prepare_cache(self, owed: bool) -> None:
        """Fill the feature cache where phase 1, or a validation owed to it, will read it."""
        step, plan = self.progress.step, self.plan
        trains = step < plan.total_steps and plan.phase_at(step) == 1
        validates = owed and plan.phase_at(step - 1) == 1
        if self.cached is None or not (trains or validates):
            self.cached = None
        elif not self.cached.prepare(self.objective.model, self.processes, self.precision):
            self.cached = None

    def _run(self, stop: StopSignals) -> None:
        """All remaining steps, with what is due between them."""
        progress, plan = self.progress, self.plan
        while progress.step < plan.total_steps:
            if plan.phase_at(progress.step) != self.phase:
                self._enter_phase(plan.phase_at(progress.step))
                if self.cached is not None:  # from here on batches bring pixels
                    self._start_loading()
            drawn = self._draw()
            if self._exceeds_budget(drawn):
                self.plan = plan = replace(plan, total_steps=progress.step)
                if self.held_out is not None and progress.validated_at < progress.step:
                    save(self, self._validate())
                save(self)
                return
            if self._step(drawn, stop):
                save(self)
                logger.info("Stopped after step %d. Go on with:\n  %s", progress.step, self.resume_command)
                return
            is_best = self._validate() if self._validation_due() else False
            at_end = progress.step == plan.total_steps
            # Not amid skipped steps: retention must not push out the checkpoints from before them.
            is_due = progress.step % self.config.output.save_steps == 0 and not progress.nonfinite_in_row
            reached = milestone(progress.words_seen) if self.config.output.words_seen_checkpoints else 0
            is_milestone = reached > progress.milestone
            if is_milestone:
                progress.milestone, progress.milestone_step = reached, progress.step
            if at_end or is_best or is_due or is_milestone:
                save(self, is_best)
                self._keep_milestone()
            if progress.step % plan.steps_per_epoch == 0 and not at_end:
                self._start_epoch()

    def _keep_milestone(self) -> None:
        """Keep the checkpoint of a milestone just reached; also on resume, for a kill may have come in between."""
        progress = self.progress
        if progress.milestone and progress.milestone_step == progress.step:
            name = f"{REVISION_PREFIX}{progress.milestone}M"
            on_main(self.processes, lambda: self.store.has(progress.step) and self.store.keep_as(progress.step, name))

    def _start_epoch(self) -> None:
        plan, step = self.plan, self.progress.step
        epoch = plan.epoch_at(step)
        left = min(plan.steps_per_epoch, plan.total_steps - epoch * plan.steps_per_epoch)
        self.monitor.start_epoch(
            epoch, left, step - epoch * plan.steps_per_epoch, -(-plan.total_steps // plan.steps_per_epoch)
        )

    def _enter_phase(self, phase: int) -> None:
        """requires_grad -> unwrap -> wrap again -> new optimizer with the moments carried over by name.

        Parameters unfrozen after DistributedDataParallel wrapped the module would silently never be synchronised.
        """
        if self.cached is not None:
            if phase == 1:
                drop_base(self.objective.model)
            else:
                restore_base(self.objective.model, self.store.folder, self.base_hash)
        moments = state_by_name(self.optimizer) if self.optimizer is not None else self.restored_moments
        self.objective.model.set_adapters_trainable(phase == 2)
        self.optimizer = None
        if self.processes.is_distributed:
            self.wrapped = self.objective
            gc.collect()  # the old wrapper's hooks sit on the parameters until it is gone
            self.wrapped = DistributedDataParallel(
                self.objective,
                device_ids=[self.processes.device.index] if self.processes.device.type == "cuda" else None,
                broadcast_buffers=False,
                # A batch of text leaves out what sees images.
                find_unused_parameters=isinstance(self.dataset, TextAndPairs),
            )
        self.objective.train()
        self.optimizer = build_optimizer(self.objective, self.adapters, self.config)
        load_state_by_name(self.optimizer, moments)
        self.restored_moments = {}
        self.phase = phase
        announce_phase(self)

    # ---- one step ----

    def _start_loading(self) -> None:
        dataset, collate = self.dataset, self.collate
        if self.cached is not None and self.phase == 1:
            dataset, collate = self.cached.pairs, as_it_is
        self.batches.start(dataset, collate, self.progress.step, self.plan)

    def _draw(self) -> list[dict[str, Any]]:
        self.throughput.start_step()
        drawn = self.batches.draw()
        self.throughput.waited_for_data()
        return drawn

    def _exceeds_budget(self, drawn: list[dict[str, Any]]) -> bool:
        """Whether a step on these batches would take the run past ``max_words_seen``."""
        limit = self.config.training.max_words_seen
        if limit is None:
            return False
        words = sum(gather_objects(sum(batch["words"] for batch in drawn), self.processes))
        return self.progress.words_seen + words > limit

    def _step(self, drawn: list[dict[str, Any]], stop: StopSignals) -> bool:
        """One optimizer step; whether any rank was told to stop."""
        config, progress = self.config, self.progress
        self.objective.progress = progress.step / self.plan.total_steps
        rates = set_learning_rates(self.optimizer, progress.step, self.plan, config)
        outputs: list[Stage1Output] = []
        indices: list[torch.Tensor] = []
        words = samples = tokens = 0
        skipped: list[Skipped] = []
        for micro, batch in enumerate(drawn):
            skipped += batch.pop("skipped", [])
            words += batch.pop("words")
            samples += len(batch["input_ids"])
            tokens += batch["input_ids"].numel()
            indices.append(batch["indices"])
            outputs.append(self._forward_backward(batch, is_last=micro == len(drawn) - 1))
        self.scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, config.training.max_grad_norm)
        losses = torch.stack([output.loss.detach() for output in outputs])
        # With loss scaling an infinite gradient is an everyday event, which the scaler handles.
        checked = losses if self.scaler.is_enabled() else torch.cat((losses, norm[None]))
        finite = checked.isfinite().tolist()
        report = agree(self.processes, stop.received is not None, not all(finite), words, samples, len(skipped))

        if report.nonfinite:
            progress.skipped_steps += 1
            progress.nonfinite_in_row += 1
            warn_of_skipped_step(self, indices, finite)
        else:
            progress.nonfinite_in_row = 0
            self.scaler.step(self.optimizer)
            self.objective.clamp_temperature_()
            self._update_memory(outputs)
            if self.average is not None:
                self.average.update(self.objective.model, progress.step)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        progress.step += 1
        progress.samples_seen += report.samples
        progress.words_seen += report.words
        if report.skipped:
            self.skipped_records.add(skipped, progress, self.processes)
        self.throughput.end_step(report.samples, report.words)
        log_step(self, outputs, rates, norm.item(), tokens / samples)
        if progress.nonfinite_in_row >= config.training.max_nonfinite_steps:
            if self.store.newest is None:
                save(self)  # weights that no skipped step has touched, so that there is something to go back to
            raise diverged(self)
        return report.stop

    def _forward_backward(self, batch: dict[str, torch.Tensor], is_last: bool) -> Stage1Output:
        device = self.processes.device
        batch = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
        memory = self.objective.model.memory
        # Gradients of the earlier micro-steps stay local; the last backward averages their sum over the ranks.
        waits = not is_last and self.processes.is_distributed
        with self.wrapped.no_sync() if waits else contextlib.nullcontext():
            with self.precision.autocast():
                output = self.wrapped(batch, self.queue, memory.state if memory is not None else None)
            self.scaler.scale(output.loss / self.config.training.grad_accum_steps).backward()
        return output._replace(loss=output.loss.detach())

    def _update_memory(self, outputs: list[Stage1Output]) -> None:
        """Queue and running memory, after the loss and from detached values: no step sees its own."""
        for output in outputs:
            if output.entries is not None:
                self.queue.enqueue(gather_entries(QueueEntries(*output.entries), self.processes))
            if output.posterior is not None:
                self.objective.model.memory.consolidate_(output.posterior, self.config.memory.memory_alpha)

    # ---- validation ----

    def _validation_due(self) -> bool:
        step, plan = self.progress.step, self.plan
        if self.held_out is None or step == 0:
            return False
        ends = step % plan.steps_per_epoch == 0 or step == plan.total_steps or plan.is_boundary(step)
        return ends or step % self.config.output.eval_steps == 0

    def _validate(self) -> bool:
        """Validate on rank 0 while the others wait; whether the score is the best so far."""
        progress, model = self.progress, self.objective.model
        outcome: tuple[float | None, str | None] = (None, None)
        if self.processes.is_main:
            weights = self.average.swapped_in(model) if self.average is not None else contextlib.nullcontext()
            try:
                with random_state_kept(self.processes.device), weights:
                    # The phase of the step just taken: at the boundary this is what phase 1 has reached.
                    phase = self.plan.phase_at(progress.step - 1)
                    split = self.cached.held_out if self.cached is not None and phase == 1 else None
                    result = self.held_out(model, self.objective.log_temperature.exp().item(), split)
                    self.monitor.held_out(progress.step, phase, *result[:3])
                    outcome = (result.score, None)
            except ValueError as error:
                outcome = (None, str(error))
        score, message = from_main(outcome, self.processes)
        if message is not None:
            raise ValueError(message)
        self.objective.train()
        progress.validated_at = progress.step
        self.scores.append({"step": float(progress.step), "score": score})
        if progress.best_score is not None and score <= progress.best_score:
            return False
        progress.best_score, progress.best_step = score, progress.step
        return True
