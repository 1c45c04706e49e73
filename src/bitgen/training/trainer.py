"""The training loop: one step at a time, everything about a step a function of its number."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from bitgen.checkpoint.format import REVISION_PREFIX, Checkpoint
from bitgen.checkpoint.store import CheckpointStore
from bitgen.machine.devices import Precision
from bitgen.machine.parallel import Parallel
from bitgen.machine.randomness import random_state_kept, seed_everything
from bitgen.machine.ranks import agree, from_main, gather_objects
from bitgen.machine.stopping import StopSignals
from bitgen.protocols import Batch, Output, Run
from bitgen.show.monitor import Monitor
from bitgen.training.accumulation import Share, loss_shares
from bitgen.training.averaging import average_of, warn_if_none
from bitgen.training.budget import exceeds, milestone
from bitgen.training.loop_settings import LoopSettings
from bitgen.training.optimizer import build_optimizer, freeze_and_unfreeze, set_learning_rates
from bitgen.training.progress import Progress, restored
from bitgen.training.reporting import Reporter
from bitgen.training.skipped_records import SkippedRecords, TooManyBadRecords
from bitgen.training.snapshot import Snapshots, on_main
from bitgen.training.throughput import Throughput

logger = logging.getLogger(__name__)


class Trainer:
    """Trains a run's objective on its batches; see :meth:`fit`.

    Args:
        run: what a task built; the same on all ranks.
        checkpoint: resume from it; None: start anew.
        resume_command: what to write to go on after a stop.

    Raises:
        CheckpointError: the checkpoint belongs to another run.
    """

    def __init__(
        self,
        run: Run,
        settings: LoopSettings,
        monitor: Monitor,
        store: CheckpointStore,
        parallel: Parallel,
        precision: Precision,
        checkpoint: Checkpoint | None = None,
        resume_command: str = "the same command with --resume auto",
    ) -> None:
        self.run, self.settings, self.monitor, self.store = run, settings, monitor, store
        self.parallel, self.ranks, self.precision = parallel, parallel.ranks, precision
        assert isinstance(run.objective, nn.Module)  # which its protocol cannot say
        self.objective, self.source, self.stage = run.objective, run.source, run.stage
        self.resume_command = resume_command
        self.progress = Progress()
        self.scores: list[dict[str, Any]] = []
        self.phase, self.stopped = 0, 0  # stopped: the signal that came, perhaps in the last step
        self.optimizer: torch.optim.Optimizer | None = None
        self.restored_moments: dict[str, Any] = {}
        device = self.ranks.device
        self.objective.to(device)
        self.wrapped: nn.Module = self.objective
        self.average = average_of(settings.ema_decay, settings.average_last, run.stage.steps)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision.name == "fp16")
        self.skipped_records = SkippedRecords(self.source.max_bad_fraction, self.source.size)
        self.throughput = Throughput(device, precision.name)
        self.reporter = Reporter(run, monitor, self.ranks, self.throughput, settings.log_steps)
        self.snapshots = Snapshots(run, store, parallel, settings.started_from)
        # Identical models on all ranks, then dropout and other draws of each rank's own.
        seed_everything(settings.seed + self.ranks.rank)
        if checkpoint is not None:
            self._restore(checkpoint)
        # Before the first step, while the weights that no run changes are what was loaded.
        self.snapshots.store_base()

    # ---- the run ----

    def fit(self) -> bool:
        """Train to the last step, or until a signal says stop; whether the run is at its end.

        Raises:
            TrainingDiverged: the loss stayed non-finite.
            CheckpointError: a checkpoint could not be written.
        """
        progress = self.progress
        owed = self._validation_due() and progress.validated_at < progress.step  # since the earlier process was stopped
        # Before signals are held back: it may take hours, and a second attempt goes on where it stopped.
        self.source.prepare(self.stage, progress.step, owed)
        with StopSignals() as stop:
            try:
                if progress.step < self.stage.steps:
                    self._enter_phase()
                    self.reporter.epoch(progress.step)
                if owed:
                    self.save(self._validate())
                self._keep_milestone()
                self._train(stop)
            except TooManyBadRecords:  # its steps are good
                self.save()
                raise
            finally:
                self.source.stop()
            self.stopped = max(gather_objects(int(stop.received or 0), self.ranks))
        return progress.step >= self.stage.steps  # which a budget may have cut

    def _train(self, stop: StopSignals) -> None:
        """All remaining steps, with what is due between them."""
        progress = self.progress
        while progress.step < self.stage.steps:
            if self.stage.phase_at(progress.step) != self.phase:
                self._enter_phase()
            self.throughput.start_step()
            drawn = self.source.draw()
            self.throughput.waited_for_data()
            if exceeds(self.settings.max_words_seen, progress.words_seen, drawn, self.ranks):
                self.stage, self.throughput.began = self.stage.cut(progress.step), None
                warn_if_none(self.average, progress.step)
                self.save(progress.validated_at < progress.step and self._validation_due() and self._validate())
                return
            stopped, reached = self._step(drawn, stop), self._milestone_reached()
            if stopped:
                self.save()
                logger.info("Stopped after step %d. Go on with:\n  %s", progress.step, self.resume_command)
                return
            is_best = self._validate() if self._validation_due() else False
            if any((progress.step == self.stage.steps, is_best, reached, self._checkpoint_due())):
                self.save(is_best)
            if progress.step % self.stage.steps_per_epoch == 0 and progress.step < self.stage.steps:
                self.reporter.epoch(progress.step)

    def _enter_phase(self) -> None:
        """Freeze and unfreeze -> wrap again -> new optimizer with the moments carried over by name.

        Parameters unfrozen after DistributedDataParallel wrapped the module would silently never be synchronised.
        """
        step, roles = self.progress.step, self.objective.roles()
        self.phase = self.stage.phase_at(step)
        self.source.enter(self.phase)
        moments = self._moments()
        freeze_and_unfreeze(self.objective, roles, self.stage, step)
        self.optimizer, self.restored_moments = None, {}
        self.wrapped = self.objective  # nothing may hold the old wrapper
        self.wrapped = self.parallel.wrap(self.objective, self.source.steady)
        self.objective.train()
        self.optimizer = build_optimizer(self.objective, roles, self.stage)
        self.parallel.load_moments(self.optimizer, moments)
        self.reporter.phase(self.phase)
        self.source.start(self.stage, step)

    # ---- one step ----

    def _step(self, drawn: list[Batch], stop: StopSignals) -> bool:
        """One optimizer step; whether any rank was told to stop."""
        settings, progress, optimizer = self.settings, self.progress, self.optimizer
        assert optimizer is not None
        self.objective.begin(progress.step / self.stage.steps, self.reporter.logs(progress.step + 1))
        rates = set_learning_rates(optimizer, self.stage, progress.step)
        shares = loss_shares([batch.counts for batch in drawn], self.ranks)
        outputs = [
            self._forward_backward(batch.inputs, share, is_last=micro == len(drawn) - 1)
            for micro, (batch, share) in enumerate(zip(drawn, shares, strict=True))
        ]
        self.scaler.unscale_(optimizer)
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        norm = self.parallel.clip(parameters, settings.max_grad_norm)
        losses = torch.stack([output.loss for output in outputs])
        # With loss scaling an infinite gradient is an everyday event, which the scaler handles by a smaller scale.
        checked = losses if self.scaler.get_scale() > 1.0 else torch.cat((losses, norm[None]))
        finite = checked.isfinite().tolist()
        words, samples = (sum(getattr(batch.counts, name) for batch in drawn) for name in ("words", "samples"))
        skipped = [record for batch in drawn for record in batch.skipped]
        report = agree(self.ranks, stop.received is not None, not all(finite), words, samples, len(skipped))
        if report.nonfinite:
            progress.skipped_steps += 1
            progress.nonfinite_in_row += 1
            self.reporter.skipped(progress, drawn, finite)
        else:
            progress.nonfinite_in_row = 0
            self.scaler.step(optimizer)
            self.objective.advance([output.update for output in outputs], self.ranks)
            if self.average is not None:
                self.average.update(self.objective.model, progress.step)
        self.scaler.update()
        optimizer.zero_grad(set_to_none=True)
        progress.step += 1
        progress.samples_seen += report.samples
        progress.words_seen += report.words
        if report.skipped:
            self.skipped_records.add(skipped, progress, self.ranks)
        self.throughput.end_step(report.samples, report.words, self._flops(drawn))
        self.reporter.step(progress, self.phase, outputs, shares, rates, norm.item())
        if progress.nonfinite_in_row >= settings.max_nonfinite_steps:
            if self.store.newest is None:
                self.save()  # weights that no skipped step has touched, so that there is something to go back to
            raise self.reporter.diverged(progress, self.store.newest)
        return report.stop

    def _forward_backward(self, inputs: dict[str, Any], share: Share, is_last: bool) -> Output:
        inputs = {name: tensor.to(self.ranks.device, non_blocking=True) for name, tensor in inputs.items()}
        with self.parallel.accumulating(self.wrapped, is_last):
            with self.precision.autocast():
                output = self.wrapped(inputs)
            self.scaler.scale(share(output.loss)).backward()
        return output._replace(loss=output.loss.detach())

    def _flops(self, drawn: list[Batch]) -> float | None:
        each = [self.objective.flops(batch.inputs) if self.throughput.peak else None for batch in drawn]
        return None if None in each else sum(flops or 0.0 for flops in each)

    # ---- validation and checkpoints ----

    def _validation_due(self) -> bool:
        step, stage = self.progress.step, self.stage
        if self.run.validator is None or step == 0:
            return False
        ends = step % stage.steps_per_epoch == 0 or step == stage.steps or stage.begins_phase(step)
        return ends or step % self.settings.eval_steps == 0

    def _validate(self) -> bool:
        """Validate, where ranks are replicas on rank 0 while the others wait; whether this checkpoint is now best."""
        progress = self.progress
        outcome: tuple[float | None, float, str | None] = (None, 0.0, None)
        if self.ranks.is_main or not self.parallel.replicated:
            weights = self.average.swapped_in(self.objective.model) if self.average else contextlib.nullcontext()
            try:
                with random_state_kept(self.ranks.device), weights:
                    # The phase of the step just taken: where one begins this is what the one before has reached.
                    phase = self.stage.phase_at(progress.step - 1)
                    assert (validator := self.run.validator) is not None
                    result = self.parallel.call(self.wrapped, lambda: validator(self.objective, phase))
                    self.monitor.held_out(progress.step, phase, *result[:3])
                    outcome = (result.score, result.error, None)
            except ValueError as error:
                outcome = (None, 0.0, str(error))
        score, uncertain, message = from_main(outcome, self.ranks)
        if message is not None:  # held-out data that cannot be read must not cost the steps since the last checkpoint
            self.save()
            raise ValueError(message)
        self.objective.train()
        progress.validated_at = progress.step
        self.scores.append({"step": float(progress.step), "score": score})
        return progress.is_best(score, uncertain)

    def _checkpoint_due(self) -> bool:
        # Not amid skipped steps: retention must not push out the checkpoints from before them.
        return self.progress.step % self.settings.save_steps == 0 and not self.progress.nonfinite_in_row

    def _milestone_reached(self) -> bool:
        """Whether the step just taken reached a milestone of words; each is reached once."""
        progress = self.progress
        reached = milestone(progress.words_seen, at_end=progress.step == self.stage.steps)
        if is_new := self.settings.words_seen_checkpoints and reached > progress.milestone:
            progress.milestone, progress.milestone_step = reached, progress.step
        return is_new

    def _keep_milestone(self) -> None:
        """Keep the checkpoint of a milestone just reached; also on resume, for a kill may have come in between."""
        progress, store = self.progress, self.store
        if progress.milestone and progress.milestone_step == progress.step:
            name = f"{REVISION_PREFIX}{progress.milestone}M"
            on_main(self.ranks, lambda: store.keep_as(progress.step, name) if store.has(progress.step) else None)

    def save(self, is_best: bool = False) -> None:
        """A checkpoint of this moment, unless there is one; kept besides where it is a milestone's, also of a step that
        ended the run. Errors as of :meth:`Snapshots.save`."""
        self._milestone_reached()
        loop = {
            "phase": self.phase,
            "progress": asdict(self.progress),
            "scores": self.scores,
            **self.reporter.state(),
            "optimizer": self._moments(),
            "scaler": self.scaler.state_dict(),
        }
        self.snapshots.save(self.progress.step, self.stage, loop, self.average, is_best)
        self._keep_milestone()
        self.monitor.flush()

    def _moments(self) -> dict[str, Any]:
        """The optimizer's state by parameters' names; before there is one, what a checkpoint had of it."""
        return self.parallel.moments(self.optimizer) if self.optimizer is not None else self.restored_moments

    def _restore(self, checkpoint: Checkpoint) -> None:
        state = self.snapshots.restore(checkpoint, self.average)
        self.progress = restored(state["progress"])
        self.scores = list(state["scores"])
        self.reporter.load_state(state)
        self.restored_moments = state["optimizer"]
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
