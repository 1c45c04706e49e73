"""Where a run is, in numbers."""

from __future__ import annotations

from dataclasses import dataclass, field


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
    milestone: int = 0  # millions of words at the last chck_*M checkpoint, and its step
    milestone_step: int = 0
    bad_records: dict[str, int] = field(default_factory=dict)  # replaced samples by reason
