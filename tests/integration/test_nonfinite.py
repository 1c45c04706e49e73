"""A loss that is not finite: its records are named, its step leaves no trace, and too many of them end the run."""

from __future__ import annotations

import logging

import pytest
import torch

from bitgen.checkpoint.format import checkpoint_folders, find_checkpoint
from bitgen.training.reporting import TrainingDiverged


def poison(trainer, steps: set[int]) -> None:
    """Make the loss NaN in the last micro-batch of the given steps (counted from 1)."""
    forward = trainer.objective.forward
    calls = []

    def poisoned(*arguments):
        output = forward(*arguments)
        calls.append(1)
        step, micro = divmod(len(calls) - 1, trainer.config.training.grad_accum_steps)
        is_bad = step + 1 in steps and micro == 1
        return output._replace(loss=output.loss * torch.nan) if is_bad else output

    trainer.objective.forward = poisoned


def everything(trainer) -> list[torch.Tensor]:
    tensors = [*trainer.objective.state_dict().values(), *trainer.objective.queue.entries]
    return [tensor.detach().clone() for tensor in tensors]


def test_a_bad_step_changes_no_weight_no_memory_and_no_queue(build, caplog) -> None:
    trainer = build()
    poison(trainer, {3})
    states = {}
    step = trainer._step

    def spy(*arguments) -> bool:
        told_to_stop = step(*arguments)
        states[trainer.progress.step] = everything(trainer)
        return told_to_stop

    trainer._step = spy
    with caplog.at_level(logging.WARNING):
        trainer.fit()
    assert all(torch.equal(a, b) for a, b in zip(states[2], states[3], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(states[3], states[4], strict=True))
    assert trainer.progress.step == 8 and trainer.progress.skipped_steps == 1
    assert all(tensor.isfinite().all() for tensor in everything(trainer))
    [line] = [record.getMessage() for record in caplog.records if "skipped" in record.getMessage()]
    assert "step 3 skipped" in line
    assert line.count("scene-train-") == 8, "the records of the bad micro-batch, and of that one alone"


def test_too_many_in_a_row_stop_the_run_and_leave_the_good_checkpoints(build) -> None:
    trainer = build(max_nonfinite_steps=3, save_steps=1, max_checkpoints_to_keep=2)
    poison(trainer, {4, 5, 6})
    with pytest.raises(TrainingDiverged, match="3 steps in a row .* after step 6.*step-00000003"):
        trainer.fit()
    assert [folder.name for folder in checkpoint_folders(trainer.store.folder)] == ["step-00000003", "step-00000002"]
    assert build(max_nonfinite_steps=3, save_steps=1, resume="auto").progress.step == 3


def test_the_count_is_of_steps_in_a_row(build) -> None:
    trainer = build(max_nonfinite_steps=2)
    poison(trainer, {2, 4, 6, 8})
    trainer.fit()
    assert trainer.progress.skipped_steps == 4


def test_with_no_checkpoint_yet_the_untouched_weights_are_saved(build) -> None:
    trainer = build(max_nonfinite_steps=2)
    poison(trainer, {1, 2, 3})
    with pytest.raises(TrainingDiverged):
        trainer.fit()
    assert find_checkpoint("auto", trainer.store.folder).step == 2
    assert all(tensor.isfinite().all() for tensor in everything(trainer))


def test_a_gradient_that_is_not_finite_is_skipped_too(build, caplog) -> None:
    trainer = build(max_steps=3)
    weight = trainer.objective.model.itm_head.weight
    calls = []

    def explode(gradient: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return gradient * torch.inf if len(calls) == 4 else gradient

    weight.register_hook(explode)
    with caplog.at_level(logging.WARNING):
        trainer.fit()
    assert trainer.progress.skipped_steps == 1
    assert "its gradient is not finite" in caplog.text
    assert weight.isfinite().all()


def test_nan_in_an_image_goes_all_the_way_through_and_is_skipped(build, caplog) -> None:
    """Every part of the forward must carry a NaN to the loss instead of raising on it: drawing, solving, attention."""
    trainer = build(max_steps=3)
    collate, calls = trainer.source.collate, []

    def broken(samples: list[dict]) -> dict:
        batch = collate(samples)
        calls.append(1)
        if len(calls) == 3:
            batch["pixel_values"][0, 0, 0, 0] = torch.nan
        return batch

    trainer.source.collate = broken
    with caplog.at_level(logging.WARNING):
        trainer.fit()
    assert trainer.progress.step == 3 and trainer.progress.skipped_steps == 1
    assert all(tensor.isfinite().all() for tensor in everything(trainer))


def test_gradients_that_no_scale_makes_finite_end_a_run_too(build) -> None:
    """A run in half precision halves its scale at each of them, and stood still without a word until its end."""
    trainer = build(max_steps=60, max_nonfinite_steps=3)
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    trainer.objective.model.itm_head.weight.register_hook(lambda gradient: gradient * torch.nan)
    with pytest.raises(TrainingDiverged, match="3 steps in a row .* after step 7"):  # of which four halve 16 to 1
        trainer.fit()
    assert trainer.progress.skipped_steps == 3
