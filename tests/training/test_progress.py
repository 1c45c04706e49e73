"""Which checkpoint of a run is the best."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest

from bitgen.training.progress import Progress


def best_of(scores: list[float], errors: list[float]) -> tuple[int | None, float | None]:
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
        ([float("-inf"), float("-inf"), 1], 0, 3),
    ],
)
def test_the_last_of_those_that_chance_cannot_tell_apart(scores: list[float], error: float, best: int) -> None:
    assert best_of(scores, [error] * len(scores)) == (best, scores[best - 1])


def test_a_checkpoint_from_before_the_rule_goes_on() -> None:
    kept = {name: value for name, value in asdict(Progress(step=7)).items() if name != "highest_score"}
    progress = replace(Progress(), **kept | {"best_score": 98.0, "best_step": 5})
    assert not progress.is_best(97.0, 0.5) and progress.best_step == 5
    assert progress.is_best(97.6, 0.5) and (progress.best_step, progress.best_score) == (7, 97.6)
    assert not progress.is_best(97.2, 0.5), "the highest is kept, though it is no longer the best's"
