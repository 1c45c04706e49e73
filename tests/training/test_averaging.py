"""The moving average of weights: its arithmetic, and that evaluating with it leaves no trace."""

import torch
from torch import nn

from bitgen.training.averaging import WeightAverage


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
