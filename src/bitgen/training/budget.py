"""Budgets of a run: passes through the data and words seen, as challenges limit them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

from bitgen.machine.ranks import Processes, gather_objects
from bitgen.protocols import Batch
from bitgen.stages import Stage

logger = logging.getLogger(__name__)

MILLION = 1_000_000
REVISION_PREFIX = "chck_"  # of folders and Hub revisions, as BabyLM's evaluation names them


class Measured(Protocol):
    """A source of batches that can say how much it shows."""

    def words_per_step(self, world_size: int) -> float | None: ...

    def steps_per_pass(self) -> float: ...


def within_budget(
    stage: Stage, source: Measured, world_size: int, max_epochs: int | None, max_words_seen: int | None
) -> Stage:
    """The stage, cut to what its budgets allow, so that the schedule ends with the run.

    Words are estimated from the captions and the corpus; :meth:`Trainer.fit` counts what batches really hold.

    Raises:
        ValueError: a budget allows no step.
    """
    limits = {}
    if max_epochs is not None:
        limits[f"max_epochs {max_epochs}"] = int(max_epochs * source.steps_per_pass())
    if max_words_seen is not None:
        words = source.words_per_step(world_size)
        if words:
            limits[f"max_words_seen {max_words_seen:,}"] = int(max_words_seen / words)
    for name, steps in limits.items():
        if steps < 1:
            raise ValueError(f"{name} allows no step at all: raise it, or use a smaller --batch_size.")
        if steps < stage.steps:
            logger.info("%s: the run is planned for %d steps instead of %d", name, steps, stage.steps)
            stage = stage.cut(steps)
    return stage


def exceeds(max_words_seen: int | None, words_seen: int, drawn: Sequence[Batch], ranks: Processes) -> bool:
    """Whether a step on these batches would take the run past its budget of words. All ranks call it together."""
    if max_words_seen is None:
        return False
    words = sum(gather_objects(sum(batch.counts.words for batch in drawn), ranks))
    return words_seen + words > max_words_seen


def milestone(words: int) -> int:
    """The last of 1, 2 ... 10, 20 ... 100, 200 ... 1000 million words that is reached, in millions; 0: none yet."""
    millions = min(words // MILLION, 1000)
    unit = 1 if millions < 10 else 10 if millions < 100 else 100
    return millions // unit * unit
