"""Where a run is, in numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from bitgen.training.budget import milestone


@dataclass
class Progress:
    """Where a run is; saved with every checkpoint."""

    step: int = 0
    samples_seen: int = 0
    words_seen: int = 0
    skipped_steps: int = 0
    nonfinite_in_row: int = 0
    validated_at: int = -1
    best_score: float | None = None
    best_step: int | None = None
    highest_score: float | None = None
    milestone: int = 0  # millions of words at the last chck_*M checkpoint, and its step
    milestone_step: int = 0
    bad_records: dict[str, int] = field(default_factory=dict)  # replaced samples by reason

    def is_best(self, score: float, error: float = 0.0) -> bool:
        """Note this step's held-out score; whether its checkpoint is the best from now on. NaN never is.

        The highest of many uncertain scores is often luck. Of the checkpoints whose score is less than its own standard
        error below the highest, the best is therefore the last, which has been trained the longest (after Breiman et
        al., Classification and Regression Trees, 1984, who choose the simplest tree within one error of the best).

        Args:
            error: the score's standard error; 0: only a higher score is better.
        """
        # A score with an error was counted otherwise before there were errors, so the first one begins anew.
        highest = self.best_score if self.highest_score is None and not error else self.highest_score
        if math.isnan(score) or (highest is not None and not score > highest - error):
            return False
        self.highest_score = score if highest is None else max(highest, score)
        self.best_score, self.best_step = score, self.step
        return True


def restored(saved: Mapping[str, Any]) -> Progress:
    """The progress of a checkpoint. Milestones that its run went past without keeping them are past: no model of that
    moment is there to be kept when ``words_seen_checkpoints`` is switched on at a resume."""
    progress = Progress(**saved)
    return replace(progress, milestone=max(progress.milestone, milestone(progress.words_seen)))
