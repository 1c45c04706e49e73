"""Numbers of connectors: gradients, precision, independence of neighbours, how they start, and equations once more."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from bitgen.vlm.connectors import KINDS
from bitgen.vlm.connectors.tac import TAC, similarity_weight
from support.connectors import features_for, small_connector


def move_from_start(connector: torch.nn.Module) -> None:
    """Gains and biases off their initial 1 and 0, so that nothing is unseen by accident."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in connector.parameters():
            if parameter.ndim < 2:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("frames", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_gets_a_finite_gradient(kind: str, frames: int) -> None:
    connector = small_connector(kind).train()
    move_from_start(connector)
    target = torch.randn(3, connector.tokens(frames), 32, generator=torch.Generator().manual_seed(2))
    (connector(features_for(connector, frames=frames)) * target).sum().backward()
    for name, parameter in connector.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("kind", KINDS)
def test_as_it_starts_every_parameter_gets_a_gradient_too(kind: str) -> None:
    connector = small_connector(kind).train()
    (connector(features_for(connector, frames=2)) ** 2).sum().backward()
    silent = [name for name, p in connector.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert silent == []


@pytest.mark.parametrize("frames", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_a_visual_alone_is_as_among_others(kind: str, frames: int) -> None:
    connector = small_connector(kind)
    features = features_for(connector, visuals=5, frames=frames)
    together = connector(features)
    alone = torch.cat([connector(features[row : row + 1]) for row in range(5)])
    assert (together - alone).abs().max() <= 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_near_float32(kind: str) -> None:
    connector = small_connector(kind)
    features = features_for(connector, frames=2)
    expected = connector(features)
    scale = expected.abs().max()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast = connector(features)
    half = connector.to(torch.bfloat16)(features.to(torch.bfloat16))
    assert half.dtype == torch.bfloat16 and half.isfinite().all()
    assert (autocast - expected).abs().max() < 0.05 * scale
    assert (half - expected).abs().max() < 0.08 * scale


@pytest.mark.parametrize("kind", KINDS)
def test_it_leaves_its_input_alone(kind: str) -> None:
    connector = small_connector(kind)
    features = features_for(connector, frames=2)
    before = features.clone()
    connector(features)
    assert torch.equal(features, before)


@pytest.mark.parametrize("token_std", [0.02, 0.14])
@pytest.mark.parametrize("kind", ["resampler", "perceiver"])
def test_learned_queries_start_with_the_norm_of_token_rows(kind: str, token_std: float) -> None:
    options = {"queries": 16, "token_std": token_std} | ({"depth": 2} if kind == "perceiver" else {})
    connector = small_connector(kind, vision_width=64, language_width=256, layers=1, options=options)
    norms = connector(features_for(connector, frames=2)).norm(dim=-1)
    assert norms.mean().item() == pytest.approx(token_std * math.sqrt(256), rel=0.1)


def test_the_resamplers_tokens_show_the_picture_from_the_start() -> None:
    """With queries of standard deviation 1 the tokens of two pictures are nearly the same."""

    def difference(std: float | None) -> float:
        connector = small_connector("resampler", language_width=256, options={"queries": 16})
        if std is not None:
            torch.nn.init.normal_(connector.get_parameter("queries"), std=std)
        first, second = connector(features_for(connector, visuals=2))
        return ((first - second).norm() / first.norm()).item()

    assert difference(None) > 0.5 > 3 * difference(1.0)


def test_linear_and_mlp_start_as_torch_starts_a_linear() -> None:
    for kind, names in (("linear", ["linear"]), ("mlp", ["linear_1", "linear_2", "linear_3"])):
        connector = small_connector(kind)
        torch.manual_seed(0)
        for name in names:
            module = connector.get_submodule(name)
            fresh = torch.nn.Linear(module.in_features, module.out_features)
            assert torch.equal(module.weight, fresh.weight) and torch.equal(module.bias, fresh.bias)


def test_the_mlp_is_transformers_projector_of_llava() -> None:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
    from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

    mlp = small_connector("mlp", options={})
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(hidden_size=12),
        text_config=LlamaConfig(hidden_size=32),
        vision_feature_layer=[-4, -3, -2, -1],
    )
    projector = LlavaMultiModalProjector(config)
    projector.load_state_dict(mlp.state_dict(), strict=True)
    features = features_for(mlp)
    expected = projector(torch.cat([features[:, 0, layer] for layer in range(4)], dim=-1))
    torch.testing.assert_close(mlp(features), expected, rtol=0, atol=0)


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_pixel_shuffle_joins_squares_of_neighbours(factor: int) -> None:
    connector = small_connector("pixel_shuffle", layers=1, options={"factor": factor})
    features = features_for(connector, visuals=1)
    weight = connector.get_parameter("linear.weight")
    expected = []
    for top in range(0, 4, factor):
        for left in range(0, 4, factor):
            square = [(row, column) for row in range(top, top + factor) for column in range(left, left + factor)]
            joined = torch.cat([features[0, 0, 0, 4 * row + column] for row, column in square])
            expected.append(weight @ joined)
    torch.testing.assert_close(connector(features)[0], torch.stack(expected))


def test_the_resampler_is_one_block_of_cross_attention() -> None:
    """Head by head, query by query."""
    connector = small_connector("resampler").double()
    move_from_start(connector)
    features = features_for(connector, visuals=1, frames=2).double()
    state = connector.state_dict()
    seen = [
        F.linear(features[0, frame, :, token].flatten(), state["vision_proj.weight"], state["vision_proj.bias"])
        for frame in (0, 1)
        for token in range(16)
    ]
    weights, biases = state["cross_attn.in_proj_weight"].chunk(3), state["cross_attn.in_proj_bias"].chunk(3)
    keys, values = (torch.stack([weights[i] @ x + biases[i] for x in seen]) for i in (1, 2))
    tokens = []
    for query in state["queries"]:
        asked, heads = weights[0] @ query + biases[0], []
        for head in range(4):
            part = slice(8 * head, 8 * head + 8)
            scores = torch.stack([asked[part] @ key[part] / math.sqrt(8) for key in keys])
            heads.append(scores.softmax(0) @ values[:, part])
        attended = state["cross_attn.out_proj.weight"] @ torch.cat(heads) + state["cross_attn.out_proj.bias"]
        hidden = F.layer_norm(query + attended, (32,), state["norm1.weight"], state["norm1.bias"])
        inner = F.gelu(F.linear(hidden, state["ffn.0.weight"], state["ffn.0.bias"]))
        hidden = hidden + F.linear(inner, state["ffn.2.weight"], state["ffn.2.bias"])
        tokens.append(F.layer_norm(hidden, (32,), state["norm2.weight"], state["norm2.bias"]))
    torch.testing.assert_close(connector(features)[0], torch.stack(tokens))


def test_one_picture_is_compared_with_itself() -> None:
    tac = small_connector("tac")
    move_from_start(tac)
    features = features_for(tac)
    torch.testing.assert_close(tac(features), tac(torch.cat([features, features], dim=1)), rtol=0, atol=1e-6)


def test_the_weight_of_a_prior() -> None:
    """1 for the same image, 0 for its negative, 2^-8 for an orthogonal one and for zeros, whatever their scale."""
    image = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    orthogonal = torch.tensor([[[-2.0, 1.0], [-4.0, 3.0]]])
    for prior, weight in ((image, 1.0), (7 * image, 1.0), (-image, 0.0), (orthogonal, 2**-8), (0 * image, 2**-8)):
        found = similarity_weight(image, prior)
        assert found.shape == (1, 1, 1) and found.item() == pytest.approx(weight, abs=1e-6)


def test_the_weight_of_a_prior_is_exact_in_bfloat16() -> None:
    image = torch.randn(1, 1369, 768, generator=torch.Generator().manual_seed(3)).to(torch.bfloat16)
    assert similarity_weight(image, image).item() == pytest.approx(1, abs=1e-5)


def test_a_prior_of_zeros_gives_numbers_and_gradients() -> None:
    tac = small_connector("tac")
    move_from_start(tac)
    features = features_for(tac, frames=2)
    features[:, 1] = 0
    features.requires_grad_()
    output = tac(features)
    output.sum().backward()
    assert output.isfinite().all()
    assert features.grad is not None and features.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in tac.parameters())


def test_both_images_share_the_layer_fusion() -> None:
    tac = small_connector("tac")
    assert isinstance(tac, TAC)
    features = features_for(tac, frames=2)
    fused = [tac.fuse_layers(features[:, frame]) for frame in (0, 1)]
    torch.testing.assert_close(tac(features), tac.fuse_images(*fused))


def test_dropout_acts_in_training_alone() -> None:
    tac = small_connector("tac", options={"dropout": 0.5})
    features = features_for(tac)
    assert torch.equal(tac(features), tac(features))
    tac.train()
    assert not torch.equal(tac(features), tac(features))
