"""How long a run is: the steps that are asked for, within budgets of passes and words as challenges limit them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

from bitgen.machine.ranks import Processes, gather_objects
from bitgen.protocols import Batch
from bitgen.stages import Group, Phase, Stage

logger = logging.getLogger(__name__)

MILLION = 1_000_000


class Measured(Protocol):
    """A source of batches that can say how much it shows."""

    @property
    def steps_per_epoch(self) -> int: ...

    def words_per_step(self, world_size: int) -> float | None: ...

    def steps_per_pass(self) -> float: ...


class Length(Protocol):
    """What a configuration says of a run's length: fields of ``TrainingSettings``."""

    max_steps: int | None
    num_epochs: int
    num_gpus: int
    max_epochs: int | None
    max_words_seen: int | None
    final_rate_ratio: float

    def warmup_of(self, steps: int) -> int: ...

    def cooldown_of(self, steps: int) -> int | None: ...


_ROUNDING = 1e-9  # by which a product may fall short of the whole number that it is


def planned(
    name: str, groups: tuple[Group, ...], source: Measured, training: Length, phases: tuple[Phase, ...] = (Phase(),)
) -> Stage:
    """The schedule that a configuration asks for, within its budgets, so that it ends with the run.

    Words are estimated from the captions and the corpus; :meth:`Trainer.fit` counts what batches really hold.

    Raises:
        ValueError: a budget allows no step.
    """
    steps = training.max_steps if training.max_steps is not None else training.num_epochs * source.steps_per_epoch
    for budget, most in _budgets(source, training).items():
        if most < 1:
            raise ValueError(f"{budget} allows no step at all: raise it, or use a smaller --batch_size.")
        if most < steps:
            logger.info("%s: the run is planned for %d steps instead of %d", budget, most, steps)
            steps = most
    warmup, cooldown = training.warmup_of(steps), training.cooldown_of(steps)
    if warmup >= steps:
        says = "the warm-up of %d steps is no shorter than the run, of %d: the rate never falls. Write fewer."
        logger.warning(says, warmup, steps)
    elif cooldown is not None:
        cooldown = min(cooldown, steps - warmup)  # else the rate would jump where the warm-up ends
    return Stage(name, groups, steps, source.steps_per_epoch, warmup, cooldown, training.final_rate_ratio, phases)


def _budgets(source: Measured, training: Length) -> dict[str, int]:
    """Steps that each budget allows."""
    found = {}
    if training.max_epochs is not None:
        found[f"max_epochs {training.max_epochs}"] = int(training.max_epochs * source.steps_per_pass() + _ROUNDING)
    if training.max_words_seen is not None:
        words, budget = source.words_per_step(training.num_gpus), f"max_words_seen {training.max_words_seen:,}"
        if words:
            found[budget] = int(training.max_words_seen / words)
        else:
            logger.warning("%s ends the run, but nobody knows when: the rate falls as if it did not.", budget)
    return found


def exceeds(max_words_seen: int | None, words_seen: int, drawn: Sequence[Batch], ranks: Processes) -> bool:
    """Whether a step on these batches would take the run past its budget of words. All ranks call it together.

    Raises:
        ValueError: the first step would.
    """
    if max_words_seen is None:
        return False
    words = sum(gather_objects(sum(batch.counts.words for batch in drawn), ranks))
    if words > max_words_seen and not words_seen:
        raise ValueError(
            f"max_words_seen {max_words_seen:,} allows no step at all, for the first has {words:,} words: raise it, or "
            "use a smaller --batch_size."
        )
    return words_seen + words > max_words_seen


def milestone(words: int, at_end: bool = False) -> int:
    """The last of 1, 2 ... 10, 20 ... 100, 200 ... 1000 million words that is reached, in millions; 0: none yet.

    Args:
        at_end: the run ends here. A budget of words ends it before the step that would exceed it, so a milestone of
            which less than a hundredth is missing counts as reached, or no run would ever reach its budget's.
    """
    millions = min(words * (100 if at_end else 99) // 99 // MILLION, 1000)
    unit = 1 if millions < 10 else 10 if millions < 100 else 100
    return millions // unit * unit
