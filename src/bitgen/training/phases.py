"""Which phase a step belongs to: a pure function of the step, so that resuming asks the same question as training."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from bitgen.config import Config


@dataclass(frozen=True)
class PhasePlan:
    """The two-phase schedule of one run, fixed at its start and saved with every checkpoint.

    Steps are counted from 0: step ``s`` is the optimizer step that takes a model which has seen ``s`` updates.

    Args:
        steps_per_epoch: optimizer steps an epoch; micro-batches left over at its end are dropped.
        total_steps: optimizer steps of the whole run.
        boundary: the first step of phase 2; None when the run has nothing to unfreeze.
        reason: why there is no phase 2, for the log; empty when there is one.
    """

    steps_per_epoch: int
    total_steps: int
    boundary: int | None
    reason: str = ""

    def phase_at(self, step: int) -> int:
        """1 while the adapters are frozen, 2 from ``boundary`` on."""
        return 1 if self.boundary is None or step < self.boundary else 2

    def epoch_at(self, step: int) -> int:
        """The epoch, counted from 0, that step ``step`` belongs to."""
        return step // self.steps_per_epoch

    def is_boundary(self, step: int) -> bool:
        """Whether phase 2 starts at ``step`` after a phase 1 of at least one step."""
        return self.boundary is not None and step == self.boundary > 0

    def to_dict(self) -> dict[str, int | str | None]:
        """Plain values for the checkpoint."""
        return asdict(self)


def plan_phases(config: Config, batches_per_epoch: int) -> PhasePlan:
    """The schedule that a configuration asks for.

    Args:
        batches_per_epoch: micro-batches an epoch on each process.

    Raises:
        ValueError: an epoch has fewer micro-batches than one optimizer step takes.
    """
    training, lora = config.training, config.lora
    steps_per_epoch = batches_per_epoch // training.grad_accum_steps
    if steps_per_epoch < 1:
        raise ValueError(
            f"grad_accum_steps is {training.grad_accum_steps}, but the training data gives {batches_per_epoch} batches "
            f"an epoch: use --grad_accum_steps {max(batches_per_epoch, 1)} or less, or a smaller --batch_size."
        )
    total = training.max_steps if training.max_steps is not None else training.num_epochs * steps_per_epoch

    vision = config.vision
    if config.data.train_data is None and config.data.text_data is not None:
        return PhasePlan(steps_per_epoch, total, None, "there is text alone, and no image to look at")
    if vision.vision_encoder == "features":
        return PhasePlan(
            steps_per_epoch, total, None, "images are features computed earlier, so there is nothing to unfreeze"
        )
    if vision.vision_tuning == "frozen":
        return PhasePlan(steps_per_epoch, total, None, "vision_tuning is 'frozen'")
    if lora.lora_warmup_steps is not None:
        boundary = lora.lora_warmup_steps
    else:
        boundary = round(lora.lora_warmup_epochs * steps_per_epoch)
    return PhasePlan(steps_per_epoch, total, boundary)
