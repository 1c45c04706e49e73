"""The counted operations against what torch counts around a real step."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bitgen.objectives.flops import pair_flops, text_flops
from support.stage1 import (
    forward,
    generator,
    make_batch,
    make_entries,
    make_objective,
    make_queue,
    make_text_batch,
    weights,
)

# What is left out is a few per cent in models of real size, and must stay small in these too.
SIZES = dict(
    embed_dim=64,
    vision_embed_dim=64,
    num_heads=4,
    ffn_dim=96,
    compressor_dim=80,
    memory_dim=64,
    memory_size=4,
    pseudoinverse_steps=2,
    vocab_size=120,
    max_seq_len=40,
)
FEATURES = dict(feature_dim=72, feature_tokens=25)
BATCH, LONGEST, TOLERANCE = 8, 20, 0.08
OFF = dict(contrastive_weight=0.0, itm_weight=0.0, memory_kl_weight=0.0, text_loss_weight=0.0)

# Settings of the losses, of the model.
LOSSES = {
    "contrast": (OFF | {"contrastive_weight": 1.0}, {}),
    "contrast_dropped": (OFF | {"contrastive_weight": 1.0, "token_dropout": 0.3}, {}),
    "matching": (OFF | {"itm_weight": 1.0}, {}),
    "contrast_matching": (OFF | {"contrastive_weight": 1.0, "itm_weight": 1.0}, {}),
    "captions": (OFF | {"text_loss_weight": 1.0}, {}),
    "contrast_captions": (OFF | {"contrastive_weight": 1.0, "text_loss_weight": 1.0}, {}),
    "contrast_memory": (OFF | {"contrastive_weight": 1.0, "memory_kl_weight": 0.1}, {}),
    "all": ({}, {}),
    "all_dropped": ({"token_dropout": 0.3}, {}),
    "all_without_memory": ({}, {"use_memory": False}),
    "wide_memory": ({}, {"memory_dim": 48}),
    "convolutions": ({}, {"compressor_convolutions": 2}),
    "likelihood": ({}, {"itm_likelihood": True}),
    "likelihood_dropped": ({"token_dropout": 0.3}, {"itm_likelihood": True}),
    "likelihood_silent": ({"text_loss_weight": 0.0}, {"itm_likelihood": True}),
    "likelihood_alone": (OFF | {"itm_weight": 1.0}, {"itm_likelihood": True}),
    "concat": ({}, {"fusion": "concat_mlp"}),
    "cross": ({}, {"fusion": "cross_attention"}),
    "rotary": ({}, {"positions": "rope", "feed_forward": "swiglu"}),
}


def counted(step, parameters) -> float:
    """What torch counts of one step that gives every parameter its gradient anew."""
    for parameter in parameters:
        parameter.grad = None
    counter = FlopCounterMode(display=False)
    # Written out as products: not every torch counts the fused kernel of a CPU.
    with counter, sdpa_kernel(SDPBackend.MATH):
        step()
    return counter.get_total_flops()


def step_flops(objective, batch, queue) -> float:
    def step() -> None:
        loss = forward(objective, batch, queue).loss
        if loss.requires_grad:
            loss.backward()

    return counted(step, objective.parameters())


def measure(losses: dict, adapting: bool = False, partners: int | None = None, **model) -> tuple[float, float]:
    """``measure(losses, adapting, **model)``: the formula's and torch's operations of a pair."""
    objective = make_objective(weights(**losses), **(SIZES | model))
    objective.model.set_adapters_trainable(adapting)
    config = objective.model.config
    batch = make_batch(config, BATCH, generator(1), longest=LONGEST)
    queue = make_queue(config, 64)
    if partners is not None:
        batch["image_ids"] = torch.full((BATCH,), 7)  # one image: every partner is drawn from the queue
        entries = make_entries(config, 16, generator(2))
        ids = make_batch(config, 16, generator(3), longest=partners)
        lengths = torch.full((16, 1), partners)
        mask = (torch.arange(partners)[None] < lengths).long()
        pad = (0, config.max_seq_len - partners)
        queue.enqueue(
            entries._replace(
                input_ids=torch.nn.functional.pad(ids["input_ids"], pad),
                attention_mask=torch.nn.functional.pad(mask, pad),
            )
        )
    total = pair_flops(objective.model, objective.settings, adapting, LONGEST, partners)
    return total, step_flops(objective, batch, queue) / BATCH


@pytest.mark.parametrize("name", LOSSES)
def test_the_passes_that_the_losses_make_are_counted(name):
    losses, model = LOSSES[name]
    expected, found = measure(losses, **FEATURES, **model)
    assert found == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize("likelihood", [False, True])
def test_longer_partners_make_the_matching_pass_longer(likelihood):
    expected, found = measure({}, partners=36, **FEATURES, itm_likelihood=likelihood)
    assert found == pytest.approx(expected, rel=TOLERANCE)
    assert expected > 1.3 * measure({}, **FEATURES, itm_likelihood=likelihood)[0]


@pytest.mark.parametrize("losses", ["contrast", "all", "likelihood"])
@pytest.mark.parametrize(
    "adapting, tower",
    [
        (False, {"vision_tuning": "frozen"}),
        (False, {"vision_tuning": "lora"}),
        (True, {"vision_tuning": "lora"}),
        (True, {"vision_tuning": "lora", "lora_layers": [2]}),
        (True, {"vision_tuning": "full"}),
    ],
)
def test_the_tower_runs_as_its_tuning_and_phase_say(losses, adapting, tower):
    vision = dict(model_type="dinov2", hidden_size=48, num_hidden_layers=3, num_attention_heads=4, patch_size=4)
    settings, model = LOSSES[losses]
    expected, found = measure(
        settings, adapting, vision_config=vision | {"image_size": 24}, image_size=24, **tower, **model
    )
    assert found == pytest.approx(expected, rel=TOLERANCE)


def test_cached_features_need_no_tower():
    vision = dict(model_type="dinov2", hidden_size=48, num_hidden_layers=3, num_attention_heads=4, patch_size=4)
    sizes = SIZES | {"vision_config": vision | {"image_size": 24}, "image_size": 24}
    objective = make_objective(weights(), **sizes)
    cached = pair_flops(objective.model, objective.settings, False, LONGEST, runs_tower=False)
    features = make_objective(weights(), **SIZES, feature_dim=48, feature_tokens=36)
    assert cached == pair_flops(features.model, features.settings, False, LONGEST)
    assert cached < pair_flops(objective.model, objective.settings, False, LONGEST)


@pytest.mark.parametrize("model", [{}, {"use_memory": False}, {"positions": "rope", "feed_forward": "swiglu"}])
def test_packed_text_is_one_pass(model):
    objective = make_objective(weights(), sees_pairs=False, **(SIZES | FEATURES | model))
    rows = [[list(range(3, 3 + length)) for length in (17, 9, 12)] for _ in range(BATCH)]
    batch = make_text_batch(rows, 40)
    found = step_flops(objective, batch, None) / BATCH
    assert found == pytest.approx(text_flops(objective.model, 40), rel=TOLERANCE)
