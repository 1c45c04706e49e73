"""A run's schedule as data: which groups of parameters train, from which step on, and at what rate.

Steps are counted from 0: step ``s`` is the optimizer step that takes a model which has seen ``s`` updates. Everything
here is a function of the step, so that resuming asks the same question as training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple

FINAL_SHARE = 0.01  # a schedule ends at this share of the peak rate


class Role(NamedTuple):
    """What a parameter is.

    ``part`` of the network it belongs to; ``kind`` of parameter it is there; whether weight decay applies to it
    (``decays``); whether a loss that is on gives it a gradient (``reached``).
    """

    part: str
    kind: str
    decays: bool
    reached: bool = True

    @property
    def path(self) -> str:
        """``part/kind``, which the patterns of groups are matched against."""
        return f"{self.part}/{self.kind}"


@dataclass(frozen=True)
class Group:
    """Parameters that share a learning rate and a start. What no group names is frozen, and so is a group that has not
    started.

    Args:
        name: under which its rate is logged.
        roles: patterns of ``part/kind``, such as ``decoder/*``; the first group of a stage that matches has the
            parameter.
        rate: peak learning rate.
        factor: multiplies the rate, together with the group's own warm-up.
        ratio: multiplies it once more (LoRA+, arXiv 2402.12354: of B over A).
        start: the step from which the group trains.
        warmup: steps of a linear warm-up of its own from ``start`` on, on top of the stage's schedule.
        decay: weight decay of those of its parameters that take it.
        schedule: ``cosine``: the stage's warm-up and fall; ``constant``: neither.
        optimizer: ``adamw``, or ``muon`` or ``normuon`` for matrices.
    """

    name: str
    roles: tuple[str, ...]
    rate: float
    factor: float = 1.0
    ratio: float = 1.0
    start: int = 0
    warmup: int = 0
    decay: float = 0.0
    schedule: Literal["cosine", "constant"] = "cosine"
    optimizer: Literal["adamw", "muon", "normuon"] = "adamw"

    def takes(self, role: Role) -> bool:
        """Whether a parameter of this role belongs here."""
        return any(fnmatchcase(role.path, pattern) for pattern in self.roles)


class Phase(NamedTuple):
    """What follows from the starts of groups: from ``start`` on the log says ``says``, and ``note`` where there is
    one."""

    start: int = 0
    says: str = "Training"
    note: str = ""


@dataclass(frozen=True)
class Stage:
    """One run: its groups and its length.

    Args:
        groups: in the order in which the optimizer holds them. Gradient norms are summed in it, so it is part of what
            makes two runs equal to the last bit.
        steps: optimizer steps of the whole run.
        steps_per_epoch: optimizer steps an epoch; micro-batches left over at its end are dropped.
        warmup: steps of the linear warm-up.
        cooldown: the last steps, over which the rate falls linearly from its peak; None: it falls as a cosine, from the
            warm-up on.
        phases: numbered from 1, by rising start, the first of which is 0.
    """

    name: str
    groups: tuple[Group, ...]
    steps: int
    steps_per_epoch: int
    warmup: int = 0
    cooldown: int | None = None
    final_share: float = FINAL_SHARE
    phases: tuple[Phase, ...] = (Phase(),)

    def __post_init__(self) -> None:
        starts = [phase.start for phase in self.phases]
        assert starts and starts[0] == 0 and starts == sorted(starts), f"phases start at {starts}"
        lost = {group.name for group in self.groups if group.start not in starts}
        assert not lost, f"groups {lost} start within a phase: the optimizer is rebuilt where phases begin"

    def phase_at(self, step: int) -> int:
        """The phase, counted from 1, that ``step`` belongs to."""
        return sum(phase.start <= step for phase in self.phases)

    def begins_phase(self, step: int) -> bool:
        """Whether a phase begins at ``step`` after one of at least one step."""
        return step > 0 and any(phase.start == step for phase in self.phases)

    def epoch_at(self, step: int) -> int:
        """The epoch, counted from 0, that ``step`` belongs to."""
        return step // self.steps_per_epoch

    def cut(self, steps: int) -> Stage:
        """The same stage with another length."""
        return replace(self, steps=steps)

    def group_of(self, role: Role) -> Group | None:
        """The group that trains parameters of this role; None: they are frozen throughout."""
        if not role.reached:
            return None
        return next((group for group in self.groups if group.takes(role)), None)

    def trains(self, role: Role, step: int) -> bool:
        """Whether parameters of this role train at ``step``."""
        group = self.group_of(role)
        return group is not None and group.start <= step

    def rate_at(self, group: Group, step: int) -> float:
        """The learning rate of a group at ``step``: no state, so that it cannot fall back at a phase or on resume.

        A group that starts late warms up once more: what it adds must not arrive at the full rate with empty moments.
        """
        rate = group.rate
        if group.schedule == "cosine":
            if self.cooldown is None:
                rate *= warmup_cosine(step, self.warmup, self.steps, self.final_share)
            else:
                rate *= warmup_cooldown(step, self.warmup, self.cooldown, self.steps, self.final_share)
        ramp = min(1.0, (step - group.start + 1) / max(1, group.warmup))
        return rate * (group.factor * ramp) * group.ratio


def warmup_cosine(step: int, warmup_steps: int, total_steps: int, final_share: float = FINAL_SHARE) -> float:
    """Share of the peak rate at ``step``: linear from 1/warmup_steps to 1, then a cosine to ``final_share``."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - 1 - warmup_steps))
    return final_share + (1 - final_share) * 0.5 * (1 + math.cos(math.pi * progress))


def warmup_cooldown(
    step: int, warmup_steps: int, cooldown_steps: int, total_steps: int, final_share: float = FINAL_SHARE
) -> float:
    """Share of the peak rate at ``step``: linear from 1/warmup_steps to 1, then 1, and over the last steps linear to
    ``final_share`` (warmup-stable-decay; Hägele et al., arXiv 2405.18392, section 3)."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    left = max(0, total_steps - 1 - step)
    return 1.0 if left >= cooldown_steps else final_share + (1 - final_share) * left / cooldown_steps
