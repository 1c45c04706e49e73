"""Averages of weights: their arithmetic, and that evaluating with them leaves no trace."""

import pytest
import torch
from torch import nn

from bitgen.training.averaging import EvenAverage, WeightAverage, average_of, warn_if_none


def test_it_averages_trainable_parameters_only() -> None:
    model = nn.Linear(2, 1)
    model.bias.requires_grad_(False)
    average = WeightAverage(decay=0.5)
    with torch.no_grad():
        model.weight.fill_(1.0)
        average.update(model, step=1000)
        model.weight.fill_(3.0)
        average.update(model, step=1001)
    assert set(average.tensors) == {"weight"}
    assert torch.equal(average.tensors["weight"], torch.full((1, 2), 2.0))


def test_a_parameter_joins_with_its_value_when_it_is_unfrozen() -> None:
    model = nn.Linear(2, 1)
    model.bias.requires_grad_(False)
    average = WeightAverage(decay=0.9)
    average.update(model, step=0)
    model.bias.requires_grad_(True)
    with torch.no_grad():
        model.bias.fill_(7.0)
    average.update(model, step=1)
    assert average.tensors["bias"].item() == 7.0


def test_an_even_average_is_the_mean_of_the_last_steps_that_were_taken() -> None:
    model = nn.Linear(2, 1)
    average = average_of(ema_decay=0.0, average_last=0.5, steps=10)
    taken = [0, 1, 2, 3, 4, 5, 7, 8, 9]  # the loss of step 6 was not finite
    for step in taken:
        with torch.no_grad():
            model.weight.fill_(float(step**2))
        average.update(model, step)
        assert bool(average.tensors) == (step >= 5)
    assert torch.allclose(average.tensors["weight"], torch.full((1, 2), (25 + 49 + 64 + 81) / 4))


def test_an_even_average_goes_on_from_its_own_steps_and_not_from_a_moving_one() -> None:
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(8.0)
    saved = {"weight": torch.full((1, 2), 4.0)}
    for start, steps, expected in ((10, 3, (3 * 4.0 + 8.0) / 4), (20, 0, 8.0)):
        average = EvenAverage(start)
        average.load(saved, torch.device("cpu"), 20, steps)
        average.update(model, step=20)
        assert torch.equal(average.tensors["weight"], torch.full((1, 2), expected))
    moving = WeightAverage(decay=0.5)
    moving.load(saved, torch.device("cpu"), 20, 3)
    assert moving.steps == 0  # a later run with average_last must not take it for a mean of steps


def test_a_longer_plan_forgets_what_a_shorter_one_averaged() -> None:
    model = nn.Linear(2, 1, bias=False)
    average = average_of(ema_decay=0.0, average_last=0.2, steps=20)  # of a run that was planned for 10 steps
    average.load({"weight": torch.full((1, 2), 4.0)}, torch.device("cpu"), 10, 2)
    assert average.tensors  # a validation that the earlier process owes is of what its checkpoint holds
    for step in range(10, 20):
        with torch.no_grad():
            model.weight.fill_(float(step))
        average.update(model, step)
        assert bool(average.tensors) == (step >= 16)
    assert torch.equal(average.tensors["weight"], torch.full((1, 2), (16.0 + 17 + 18 + 19) / 4))


def test_a_mean_that_began_earlier_goes_on_and_says_so(caplog) -> None:
    average = average_of(ema_decay=0.0, average_last=0.5, steps=12)  # of a run that was planned for 10 steps
    average.load({"weight": torch.full((1, 2), 4.0)}, torch.device("cpu"), 10, 5)
    assert average.steps == 5 and "is of 5 steps before this one" in caplog.text


def test_averaging_can_be_switched_on_at_a_resume_until_it_is_to_begin() -> None:
    average = EvenAverage(start=20)
    average.load(None, torch.device("cpu"), 20, 0)
    assert not average.tensors and not average.steps
    moving = {"weight": torch.full((1, 2), 4.0)}
    for saved in (None, moving):
        with pytest.raises(ValueError, match="since step 20, .* smaller --average_last, which begins at step 21"):
            average.load(saved, torch.device("cpu"), 21, 0)
    average.load({}, torch.device("cpu"), 21, 0)  # the one step so far was skipped
    with pytest.raises(ValueError, match="holds no averaged weights .* --ema_decay 0"):
        WeightAverage(decay=0.5).load(None, torch.device("cpu"), 20, 0)


def test_a_run_that_ends_before_averaging_begins_says_so(caplog) -> None:
    average = EvenAverage(start=20)
    warn_if_none(average, 21)
    warn_if_none(WeightAverage(decay=0.5), 3)
    warn_if_none(None, 3)
    assert not caplog.records
    warn_if_none(average, 20)
    assert "ends after step 20, and averaging was to begin after step 20" in caplog.text


@pytest.mark.parametrize("last, start", [(0.2, 80), (0.999, 0), (0.001, 99)])
def test_an_even_average_is_of_at_least_one_step(last: float, start: int) -> None:
    average = average_of(ema_decay=0.0, average_last=last, steps=100)
    assert isinstance(average, EvenAverage) and average.start == start
    assert average_of(0.0, 0.0, 100) is None and type(average_of(0.9, 0.0, 100)) is WeightAverage


def test_swapping_in_gives_the_averages_and_returns_the_weights_bit_for_bit() -> None:
    model = nn.Linear(3, 3)
    average = WeightAverage(decay=0.9)
    average.update(model, step=0)
    own = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    average.tensors["weight"].fill_(0.25)
    with average.swapped_in(model):
        assert (model.weight == 0.25).all()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, own[name])
