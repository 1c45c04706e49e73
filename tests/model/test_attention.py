"""Attention and token pooling against their formulas, written out."""

from __future__ import annotations

import pytest
import torch

from bitgen.model.attention import attend, split_heads
from bitgen.model.cross_modal_fusion import CrossAttention
from bitgen.model.feature_compressor import FeatureCompressor, TokenPooling
from bitgen.model.text_decoder import CausalSelfAttention


def eager(query, key, value, allowed=None):
    """``[B, H, T, d]`` heads -> ``[B, T, H * d]`` with softmax(q k^T / sqrt(d)) v."""
    scores = torch.einsum("bhqd,bhkd->bhqk", query, key) / query.shape[-1] ** 0.5
    if allowed is not None:
        scores = scores.masked_fill(~allowed, float("-inf"))
    mixed = torch.einsum("bhqk,bhkd->bqhd", scores.softmax(-1), value)
    return mixed.reshape(*mixed.shape[:2], -1)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_attend_equals_the_formula(dtype, tolerance):
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, length, 4, dtype=dtype) for length in (5, 5, 5))
    causal = torch.ones(5, 5, dtype=torch.bool).tril()
    exact = [part.double() for part in (query, key, value)]
    for arguments, allowed in (({}, None), ({"is_causal": True}, causal), ({"mask": causal}, causal)):
        attended = attend(query, key, value, **arguments)
        assert attended.dtype == dtype
        torch.testing.assert_close(attended.double(), eager(*exact, allowed), rtol=0, atol=tolerance)


def test_split_heads_keeps_each_heads_channels_together():
    projected = torch.arange(2 * 3 * 8).view(2, 3, 8)
    heads = split_heads(projected, 4)
    assert heads.shape == (2, 4, 3, 2)
    assert torch.equal(heads[1, 2], projected[1, :, 4:6])


def test_causal_self_attention_equals_the_formula():
    torch.manual_seed(0)
    layer = CausalSelfAttention(8, 2, 0).double()
    hidden = torch.randn(2, 5, 8, dtype=torch.float64)
    weights = layer.query_key_value.weight.chunk(3)
    heads = [(hidden @ weight.mT).view(2, 5, 2, 4).transpose(1, 2) for weight in weights]
    expected = layer.output(eager(*heads, torch.ones(5, 5, dtype=torch.bool).tril()))
    torch.testing.assert_close(layer(hidden), expected)


def test_cross_attention_equals_the_formula():
    torch.manual_seed(0)
    layer = CrossAttention(8, 2).double()
    hidden, image = torch.randn(2, 5, 8, dtype=torch.float64), torch.randn(2, 7, 8, dtype=torch.float64)
    key_weight, value_weight = layer.key_value.weight.chunk(2)
    projected = (hidden @ layer.query.weight.mT, image @ key_weight.mT, image @ value_weight.mT)
    heads = [part.unflatten(-1, (2, 4)).transpose(1, 2) for part in projected]
    torch.testing.assert_close(layer(hidden, image), layer.output(eager(*heads)))


def test_attention_pooling_weighs_each_head_by_itself():
    torch.manual_seed(0)
    pooling = TokenPooling(6, 3, "attention")
    tokens = torch.randn(2, 5, 6)
    pooled = pooling(tokens)
    for head in range(3):
        weights = (tokens @ pooling.scores.weight[head]).softmax(dim=1)
        expected = (weights[..., None] * tokens[..., 2 * head : 2 * head + 2]).sum(dim=1)
        torch.testing.assert_close(pooled[:, 2 * head : 2 * head + 2], expected)


def test_mean_pooling_has_no_parameters():
    pooling = TokenPooling(6, 3, "mean")
    tokens = torch.randn(2, 5, 6)
    torch.testing.assert_close(pooling(tokens), tokens.sum(dim=1) / 5)
    assert not list(pooling.parameters())


def test_compressor_has_the_designed_size_and_order():
    compressor = FeatureCompressor(768, 384, 128)
    assert sum(p.numel() for p in compressor.parameters()) == 344_832
    assert [type(layer).__name__ for layer in compressor] == ["Linear", "ReLU", "Dropout", "Linear", "LayerNorm"]
    assert compressor[2].p == 0.1
