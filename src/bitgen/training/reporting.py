"""What a training loop says of its steps: scalars, phases, and what went wrong."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from bitgen.guards.failures import of_worker
from bitgen.machine.ranks import Processes, gather_objects, mean_over_ranks
from bitgen.protocols import Batch, Output, Run
from bitgen.show.monitor import Monitor
from bitgen.training.accumulation import Share
from bitgen.training.progress import Progress
from bitgen.training.throughput import Throughput

logger = logging.getLogger(__name__)


class TrainingDiverged(RuntimeError):
    """Too many steps in a row had a loss or a gradient that is not finite."""


def message_of(error: Exception) -> str:
    """What an error says, without the traceback that a data worker's error carries in front of it."""
    return of_worker(str(error)).strip()


class Reporter:
    """Tells the monitor and the log how a run goes.

    Args:
        log_steps: optimizer steps between logged scalars.
    """

    def __init__(self, run: Run, monitor: Monitor, ranks: Processes, throughput: Throughput, log_steps: int) -> None:
        self.run, self.monitor, self.ranks, self.throughput, self.log_steps = run, monitor, ranks, throughput, log_steps
        self.latest: dict[str, torch.Tensor] = {}
        self.weights: dict[str, float] = {}  # of these values among those of all ranks; 1 where there is none

    def state(self) -> dict[str, Any]:
        """For a checkpoint: the newest value of each scalar, of every rank. All ranks call it together."""
        each = gather_objects({name: value.cpu() for name, value in self.latest.items()}, self.ranks)
        return {"latest_metrics": each[0], **({"latest_metrics_of_ranks": each} if len(each) > 1 else {})}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """What :meth:`state` gave, of this rank; a checkpoint of an earlier version holds the main process's alone."""
        each = state.get("latest_metrics_of_ranks")
        self.latest = dict(each[self.ranks.rank] if each else state.get("latest_metrics", {}))

    def phase(self, number: int) -> None:
        """The lines of the log that say which phase begins and what trains in it."""
        phase, objective = self.run.stage.phases[number - 1], self.run.objective
        assert isinstance(objective, nn.Module)
        count = sum(p.numel() for p in objective.parameters() if p.requires_grad)
        logger.info("Phase %d", number)
        logger.info("%s | Trainable params: %s", phase.says, f"{count:,}")
        if phase.note:
            logger.info("%s", phase.note)

    def epoch(self, step: int) -> None:
        """A new epoch begins, or goes on after a resume, at ``step``."""
        stage = self.run.stage
        epoch, per_epoch = stage.epoch_at(step), stage.steps_per_epoch
        left = min(per_epoch, stage.steps - epoch * per_epoch)
        self.monitor.start_epoch(epoch, left, step - epoch * per_epoch, -(-stage.steps // per_epoch))

    def logs(self, step: int) -> bool:
        """Whether a step's scalars are logged: every ``log_steps``, and the last."""
        return step % self.log_steps == 0 or step == self.run.stage.steps

    def step(
        self,
        progress: Progress,
        phase: int,
        outputs: list[Output],
        shares: Sequence[Share],
        rates: dict[str, float],
        grad_norm: float,
    ) -> None:
        """A finished step, with its scalars every ``log_steps``.

        Args:
            outputs: of its micro-batches, and ``shares``, how they count in its loss and so in what is logged of it.
            rates: learning rates by group.
        """
        self._take(outputs, [share.weight for share in shares])
        if not self.logs(progress.step):
            self.monitor.step(progress.step, phase)
            return
        means = {name: value.item() for name, value in self.latest.items()}
        scalars = {f"train/{name}": value for name, value in mean_over_ranks(self.ranks, means, self.weights).items()}
        scalars["train/grad_norm"] = grad_norm
        scalars |= {f"train/lr/{group}": rate for group, rate in rates.items()}
        scalars |= {"train/samples_seen": progress.samples_seen, "train/words_seen": progress.words_seen}
        scalars["train/epoch"] = progress.step / self.run.stage.steps_per_epoch
        scalars["train/skipped_steps"] = progress.skipped_steps
        scalars["train/bad_records"] = sum(progress.bad_records.values())
        self.monitor.step(progress.step, phase, {**scalars, **self.throughput.report()})

    def _take(self, outputs: list[Output], weights: list[float | None]) -> None:
        """A step's own values, not a window's, so that a resumed run logs the same numbers; of a loss that this step
        did not take (text or pairs), those of the last step that did."""
        known = [weight for weight in weights if weight is not None]
        self.weights = dict.fromkeys(self.latest, 0.0) if known else {}
        for name in sorted({name for output in outputs for name in output.metrics}):
            taken = [number for number, output in enumerate(outputs) if name in output.metrics]
            values = torch.stack([outputs[number].metrics[name].float() for number in taken])
            total = self.weights[name] = sum(known[number] for number in taken) if known else 1.0
            if known and total and len(taken) > 1:
                each = values.new_tensor([known[number] for number in taken])
                self.latest[name] = (values * each).sum() / total
            else:
                self.latest[name] = values.mean()

    def skipped(self, progress: Progress, drawn: list[Batch], finite: list[bool]) -> None:
        """Name the records of a step that all ranks agreed to skip.

        Args:
            finite: of each micro-batch's loss, and then of the gradient's norm.
        """
        bad = [batch.indices for batch, ok in zip(drawn, finite, strict=False) if not ok]
        bad = bad or [batch.indices for batch in drawn]
        if all(finite):
            what = "loss on another process"
        else:
            what = "gradient" if all(finite[: len(drawn)]) else "loss"
        logger.warning(
            "step %d skipped, its %s is not finite (%d in a row). Its records: %s",
            progress.step + 1,
            what,
            progress.nonfinite_in_row,
            "; ".join(self.run.source.name_of(index) for part in bad for index in part.tolist()),
        )

    @staticmethod
    def diverged(progress: Progress, newest: object) -> TrainingDiverged:
        """The error that ends a run whose loss stays non-finite; ``newest``: the last checkpoint."""
        return TrainingDiverged(
            f"{progress.nonfinite_in_row} steps in a row had a loss or gradient that is not finite, so training "
            f"stopped after step {progress.step}. The last good checkpoint is {newest}. The log names the records: "
            "check them, or try a lower --learning_rate, a smaller --max_grad_norm or --precision fp32."
        )
