"""Published encoders by their published sizes, on the meta device: parameters, tokens, prefix, width and layers."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig

from bitgen.vlm.vision import VisionTower, build_tower

BASE = dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12)
LARGE = dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
SO400M = dict(hidden_size=1152, num_hidden_layers=27, num_attention_heads=16, intermediate_size=4304)
MLP = {"intermediate_size": 3072}
# Type, configuration as published, then what the published weights have: parameters, tokens, prefix, width, layers.
REAL = {
    "facebook/dinov2-base": ("dinov2", BASE | dict(patch_size=14, image_size=518), 86_580_480, 1369, 1, 768, 12),
    "microsoft/rad-dino": ("dinov2", BASE | dict(patch_size=14, image_size=518), 86_580_480, 1369, 1, 768, 12),
    "facebook/dinov2-with-registers-base": (
        "dinov2_with_registers",
        BASE | dict(patch_size=14, image_size=518, num_register_tokens=4),
        86_580_480 + 4 * 768,
        1369,
        5,
        768,
        12,
    ),
    "openai/clip-vit-large-patch14-336": (
        "clip_vision_model", LARGE | dict(patch_size=14, image_size=336), 303_507_456, 576, 1, 1024, 24
    ),
    "openai/clip-vit-large-patch14": (
        "clip_vision_model", LARGE | dict(patch_size=14, image_size=224), 303_179_776, 256, 1, 1024, 24
    ),
    "openai/clip-vit-base-patch16": (
        "clip_vision_model", BASE | MLP | dict(patch_size=16, image_size=224), 85_799_424, 196, 1, 768, 12
    ),
    "google/siglip-so400m-patch14-384": (
        "siglip_vision_model", SO400M | dict(patch_size=14, image_size=384), 428_225_600, 729, 0, 1152, 27
    ),
    "google/siglip2-base-patch16-224": (
        "siglip_vision_model", BASE | MLP | dict(patch_size=16, image_size=224), 92_884_224, 196, 0, 768, 12
    ),
    "facebook/dinov3-vitb16-pretrain-lvd1689m": (
        "dinov3_vit",
        BASE | MLP | dict(patch_size=16, image_size=224, num_register_tokens=4),
        85_660_416,
        196,
        5,
        768,
        12,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_sizes_are_the_published_ones(name: str) -> None:
    kind, settings, parameters, *shape = REAL[name]
    with torch.device("meta"):
        tower = build_tower(AutoConfig.for_model(kind, **settings).to_dict(), "all")
    assert isinstance(tower, VisionTower)
    assert sum(p.numel() for p in tower.parameters()) == parameters
    spec = tower.spec
    assert [spec.tokens, spec.prefix_tokens, spec.width, spec.layers] == shape


def test_dinov2_gives_the_tokens_of_the_size_that_its_processor_makes() -> None:
    """Its position table is for 518 pixels, its processor cuts 224: 256 tokens and not 1369."""
    settings = AutoConfig.for_model("dinov2", **BASE, patch_size=14, image_size=518).to_dict()
    with torch.device("meta"):
        tower = build_tower(settings | {"bitgen": {"image_size": 224}}, -1)
    assert tower.spec.tokens == 256
