"""Convolutions over the grid of image tokens."""

import pytest
import torch

from bitgen.model.configuration_bitgen import BitGenConfig
from bitgen.model.feature_compressor import LocalMixing
from support.models import tiny_config, tiny_model


def test_each_token_sees_its_neighbours_and_no_other() -> None:
    torch.manual_seed(0)
    mixing = LocalMixing(6)
    tokens = torch.randn(1, 25, 6, requires_grad=True)
    for row in range(5):
        for column in range(5):
            (seen,) = torch.autograd.grad(mixing(tokens)[0, 5 * row + column].square().sum(), tokens)
            reached = (seen[0].abs().sum(dim=1) > 0).view(5, 5)
            expected = torch.zeros(5, 5, dtype=torch.bool)
            expected[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2] = True
            assert torch.equal(reached, expected)


def test_it_is_the_convolution_written_out() -> None:
    torch.manual_seed(0)
    mixing = LocalMixing(3).double()
    grid = torch.randn(4, 4, 3, dtype=torch.double)
    padded = torch.zeros(6, 6, 3, dtype=torch.double)
    padded[1:5, 1:5] = grid
    weight, bias = mixing.neighbours.weight, mixing.neighbours.bias
    found = mixing(grid.view(1, 16, 3))[0].view(4, 4, 3)
    for y in range(4):
        for x in range(4):
            patch = padded[y : y + 3, x : x + 3]
            hidden = torch.stack([(weight[c] * patch.permute(2, 0, 1)).sum() + bias[c] for c in range(3)])
            expected = mixing.norm(grid[y, x] + mixing.output(torch.nn.functional.gelu(hidden)))
            torch.testing.assert_close(found[y, x], expected)


def test_a_model_has_as_many_as_it_is_told_and_none_without() -> None:
    model = tiny_model(compressor_convolutions=2)
    assert sum(isinstance(module, LocalMixing) for module in model.modules()) == 2
    assert {role.part for name, role in model.roles().items() if "convolutions" in name} == {"compressor"}
    assert not any("convolutions" in name for name in tiny_model().state_dict())


def test_features_that_form_no_square_are_refused() -> None:
    with pytest.raises(ValueError, match="an image's 6 features form no square grid. Write compressor_convolutions 0"):
        tiny_config((6, 4), compressor_convolutions=1)
    assert (
        BitGenConfig(vision_tuning="frozen", feature_dim=4, feature_tokens=9, compressor_convolutions=1).image_grid == 3
    )
