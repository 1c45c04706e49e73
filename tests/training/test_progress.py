"""Which checkpoint of a run is the best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

import pytest

from bitgen.training.progress import Progress, restored


def best_of(scores: Sequence[float], errors: Sequence[float]) -> tuple[int | None, float | None]:
    """The best step and its score, of validations after each step, each resumed from what a checkpoint keeps."""
    progress = Progress()
    for step, (score, error) in enumerate(zip(scores, errors, strict=True), start=1):
        progress = replace(Progress(), **asdict(progress))
        progress.step = step
        assert progress.is_best(score, error) == (progress.best_step == step)
    return progress.best_step, progress.best_score


@pytest.mark.parametrize(
    ("scores", "error", "best"),
    [
        ([50, 60, 55], 0, 2),
        ([50, 60, 60], 0, 2),  # exact scores: the first of equal ones
        ([50, 60, 60], 1, 3),
        ([50, 98.1, 97.5, 97.8, 97.2], 0.8, 4),  # the last that is less than one error below the highest
        ([50, 98, 97.5, 97, 96.5], 0.8, 3),  # below the highest of all, and not below the best so far: no drift
        ([50, 98, 97, 99, 98.5], 0.8, 5),
        ([-3, -2.5], 1, 2),
        ([100, 100], 0.5, 2),
        ([float("-inf"), float("-inf"), 1], 0, 3),
    ],
)
def test_the_last_of_those_that_are_less_than_one_error_below_the_highest(
    scores: list[float], error: float, best: int
) -> None:
    assert best_of(scores, [error] * len(scores)) == (best, scores[best - 1])


def test_the_error_is_that_of_the_score_itself() -> None:
    assert best_of([98, 97.5], [0.1, 0.8])[0] == 2
    assert best_of([98, 97.5], [0.8, 0.1])[0] == 1


def test_no_checkpoint_whose_score_is_no_number_is_the_best() -> None:
    nan = float("nan")
    assert best_of([nan, 50, nan, 49.5], [0, 0, 0, 0]) == (2, 50)
    assert best_of([50, 60, 59.5], [nan, 1, nan]) == (2, 60)


def from_before(score: float, step: int) -> Progress:
    """As a checkpoint from before scores had errors kept it."""
    kept = {name: value for name, value in asdict(Progress(step=7)).items() if name != "highest_score"}
    return replace(Progress(), **kept | {"best_score": score, "best_step": step})


def test_a_run_from_before_scores_had_errors_goes_on() -> None:
    progress = from_before(98.0, 5)
    assert not progress.is_best(98.0) and progress.is_best(98.1)
    # Its scores were counted otherwise where they have an error now: the first begins anew.
    progress = from_before(98.0, 5)
    assert progress.is_best(92.0, 0.5) and (progress.best_step, progress.highest_score) == (7, 92.0)
    assert not progress.is_best(91.4, 0.5) and progress.is_best(91.6, 0.5)
    assert not progress.is_best(91.3, 0.5), "the highest is kept, though it is no longer the best's"


def test_milestones_that_a_run_went_past_are_past() -> None:
    """Or a run whose ``words_seen_checkpoints`` is switched on at a resume would keep a model of 15.3M words as 10M."""
    assert restored({"step": 9, "words_seen": 15_300_000}).milestone == 10
    kept = asdict(Progress(step=9, words_seen=15_300_000, milestone=10, milestone_step=4))
    assert asdict(restored(kept)) == kept
    at_the_end = asdict(Progress(step=9, words_seen=99_990_000, milestone=100, milestone_step=9))
    assert asdict(restored(at_the_end)) == at_the_end
