"""Tiny models of BitGen, from configuration alone."""

from __future__ import annotations

from typing import Any

import torch

from bitgen.model.configuration_bitgen import BitGenConfig
from bitgen.model.factory import random_vision_config
from bitgen.model.modeling_bitgen import BitGenModel

TOWER = random_vision_config(hidden_size=32, layers=2, heads=2, patch_size=14, image_size=28)
# What most tests read of images computed earlier: tokens an image, width of a token.
FEATURES = (9, 6)


def tiny_config(features: tuple[int, int] | None = None, **changes: Any) -> BitGenConfig:
    """A model that builds in milliseconds: on a DINOv2 of two layers, or ``features`` (tokens, width) of an image."""
    sizes: dict[str, Any] = dict(
        image_size=28,
        lora_rank=4,
        lora_alpha=8,
        embed_dim=16,
        vision_embed_dim=16,
        num_layers=2,
        num_heads=2,
        ffn_dim=32,
        compressor_dim=24,
        vocab_size=50,
        max_seq_len=12,
        memory_size=4,
        memory_dim=16,
    )
    if features is None:
        sizes["vision_config"] = TOWER
    else:
        sizes |= dict(feature_tokens=features[0], feature_dim=features[1], vision_tuning="frozen")
    return BitGenConfig(**(sizes | changes))


def open_gates(model: torch.nn.Module) -> None:
    """Opens every gate: closed, as at the start, it hides image and memory from a test that looks for them."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gate"):
                parameter.copy_(torch.linspace(0.5, 1.5, parameter.numel()).view_as(parameter))


def tiny_model(features: tuple[int, int] | None = FEATURES, seed: int = 0, **changes: Any) -> BitGenModel:
    """A model of :func:`tiny_config` with random weights and open gates."""
    torch.manual_seed(seed)
    model = BitGenModel(tiny_config(features, **changes))
    open_gates(model)
    return model
