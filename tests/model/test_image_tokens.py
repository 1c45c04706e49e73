"""Image tokens on their way into the network: shapes accepted, pooling to 7 x 7 and rounding."""

from __future__ import annotations

import math

import pytest
import torch

from bitgen.model.modeling_bitgen import BitGenModel
from support.models import tiny_config


def on_features(tokens: int, **changes) -> BitGenModel:
    return BitGenModel(tiny_config((tokens, 6), **changes)).eval()


def rounded(tokens: torch.Tensor) -> torch.Tensor:
    return tokens.to(torch.bfloat16).float()


@pytest.mark.parametrize("side", [8, 13, 16])
def test_square_grids_are_averaged_over_the_cells_that_each_output_covers(side):
    tokens = torch.randn(2, side * side, 16)
    pooled = on_features(side * side).pool_image_tokens(tokens)
    grid = tokens.view(2, side, side, 16)
    for row in range(7):
        for column in range(7):
            rows = slice(math.floor(row * side / 7), math.ceil((row + 1) * side / 7))
            columns = slice(math.floor(column * side / 7), math.ceil((column + 1) * side / 7))
            expected = rounded(grid[:, rows, columns].mean(dim=(1, 2)))
            torch.testing.assert_close(pooled[:, 7 * row + column], expected, rtol=1e-2, atol=1e-6)
    assert torch.equal(pooled, rounded(pooled))


@pytest.mark.parametrize("tokens", [1, 5, 16, 48, 49])
def test_few_tokens_are_only_rounded(tokens):
    image_tokens = torch.randn(2, tokens, 16)
    pooled = on_features(tokens).pool_image_tokens(image_tokens)
    assert torch.equal(pooled, rounded(image_tokens))
    assert not torch.equal(pooled, image_tokens)


@pytest.mark.parametrize("tokens", [50, 98, 197])
def test_tokens_that_form_no_square_are_averaged_in_order(tokens):
    image_tokens = torch.randn(2, tokens, 16)
    pooled = on_features(tokens).pool_image_tokens(image_tokens)
    for index in range(49):
        covered = slice(math.floor(index * tokens / 49), math.ceil((index + 1) * tokens / 49))
        expected = image_tokens[:, covered].mean(dim=1)
        torch.testing.assert_close(pooled[:, index], expected, rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("tokens", [1, 49, 64, 98])
def test_pooling_again_changes_nothing_and_gradient_passes(tokens):
    """The queue's tokens come through once more; ITM trains the compressor through the rounding."""
    model = on_features(tokens)
    image_tokens = torch.randn(2, tokens, 16, requires_grad=True)
    pooled = model.pool_image_tokens(image_tokens)
    assert torch.equal(model.pool_image_tokens(pooled), pooled)
    assert pooled.shape[1] == model.config.pooled_tokens
    pooled.sum().backward()
    torch.testing.assert_close(image_tokens.grad.sum(), torch.tensor(pooled.numel()).float(), rtol=1e-2, atol=0)


@pytest.mark.parametrize("fusion", ["concat_mlp", "cross_attention", "backbone"])
@pytest.mark.parametrize("tokens", [1, 5, 64])
def test_one_vector_or_any_number_of_features_an_image(fusion, tokens):
    model = on_features(tokens, fusion=fusion)
    features = torch.randn(3, tokens, 6)
    with torch.no_grad():
        images = model.encode_image(vision_features=features)
        assert images.image_tokens.shape == (3, tokens, 16)
        torch.testing.assert_close(images.image_features.norm(dim=-1), torch.ones(3))
        if tokens == 1:
            assert torch.equal(model.encode_image(vision_features=features[:, 0]).image_tokens, images.image_tokens)
        ids = torch.randint(3, 50, (3, 4))
        assert model.match(model.pool_image_tokens(images.image_tokens), ids, torch.ones_like(ids)).shape == (3, 2)


def test_wrong_inputs_are_refused_with_what_was_expected():
    model = on_features(5)
    for arguments, message in (
        ({}, "either"),
        ({"pixel_values": torch.zeros(1, 3, 28, 28), "vision_features": torch.zeros(1, 5, 6)}, "either"),
        ({"pixel_values": torch.zeros(1, 3, 28, 28)}, "vision_features"),
        ({"vision_features": torch.zeros(1, 4, 6)}, r"\(4, 6\).*\(5, 6\)"),
        ({"vision_features": torch.zeros(1, 5, 7)}, r"\(5, 7\).*\(5, 6\)"),
        ({"vision_features": torch.zeros(1, 6)}, r"\(1, 6\).*\(5, 6\)"),
    ):
        with pytest.raises(ValueError, match=message):
            model.encode_image(**arguments)
    with pytest.raises(ValueError, match="expects"):
        BitGenModel(tiny_config()).encode_image(pixel_values=torch.zeros(1, 3, 42, 42))
