"""Which layers get adapters, with which options, and under which component each parameter is counted."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

from bitgen.config import Config
from bitgen.model.modeling_bitgen import BitGenModel
from bitgen.model.vision_encoder import VisionEncoder, resolve_lora_targets
from bitgen.tasks.stage1_parts import build_untrained, model_config_of, vision_config_of
from support.models import tiny_config


class FakeAttention(nn.Module):
    def __init__(self, *names: str) -> None:
        super().__init__()
        for name in names:
            self.add_module(name, nn.Linear(2, 2))


def test_query_and_value_are_found_under_both_spellings():
    for names, expected in (
        (("query", "key", "value", "dense"), ["0.query", "0.value"]),
        (("q_proj", "k_proj", "v_proj", "o_proj"), ["0.q_proj", "0.v_proj"]),
    ):
        tower = nn.Sequential(FakeAttention(*names), nn.LayerNorm(2))
        assert resolve_lora_targets(tower) == expected
    adapted = {
        name.split(".lora_")[0] for name, _ in VisionEncoder(tiny_config()).named_parameters() if "lora_" in name
    }
    assert len(adapted) == 4
    assert {name.rsplit(".", 1)[-1] for name in adapted} in ({"query", "value"}, {"q_proj", "v_proj"})


def test_a_tower_without_known_projections_is_refused_with_what_it_has():
    with pytest.raises(ValueError, match="in_proj"):
        resolve_lora_targets(nn.Sequential(FakeAttention("in_proj", "value")))


def test_lora_options_reach_the_adapters():
    def adapters(**changes):
        tower = VisionEncoder(tiny_config(**changes)).tower
        return {name: module for name, module in tower.named_modules() if hasattr(module, "lora_A")}

    default = adapters()
    assert len(default) == 4
    for layer in default.values():
        assert layer.r["default"] == 4
        assert layer.scaling["default"] == 8 / 4
        assert layer.lora_dropout["default"].p == 0.1
        assert not layer.lora_B["default"].weight.any() and layer.lora_A["default"].weight.any()
    assert all(layer.lora_dropout["default"].p == 0.3 for layer in adapters(lora_dropout=0.3).values())
    assert all(layer.scaling["default"] == 8 / 2 for layer in adapters(use_rslora=True).values())
    assert all(layer.lora_B["default"].weight.any() for layer in adapters(init_lora_weights=False).values())
    assert all("default" in layer.lora_magnitude_vector for layer in adapters(use_dora=True).values())
    assert not any("default" in layer.lora_magnitude_vector for layer in default.values())
    one = adapters(lora_layers=[1])
    assert len(one) == 2 and all(".1." in name for name in one)


def test_without_lora_no_adapter_is_built():
    for tuning in ("frozen", "full"):
        encoder = VisionEncoder(tiny_config(vision_tuning=tuning))
        assert not any("lora" in name for name, _ in encoder.named_parameters())


def test_component_names_cover_every_parameter():
    model = BitGenModel(tiny_config(vision_tuning="lora"))
    counted = Counter(role.part for role in model.roles().values())
    assert counted.keys() == {
        "vision_base", "lora", "compressor", "fusion", "memory", "decoder", "embeddings", "heads"
    }  # fmt: skip
    assert counted["lora"] == 8
    assert counted["vision_base"] == len(list(model.vision_encoder.base_parameters()))
    assert model.adapter_names() == {name for name, _ in model.named_parameters() if "lora_" in name}


def test_dora_of_a_random_tower_has_the_norms_of_its_own_weights():
    """Else phase 2 would begin with queries and values a fifth as large as in phase 1."""
    config = Config().replace(vision_encoder="random", use_dora=True, image_size=28, vision_hidden_size=16)
    config = config.replace(vision_num_heads=2, vision_num_layers=1, vision_patch_size=14, vocab_size=40)
    tower = vision_config_of(config)
    encoder = build_untrained(config, tower, model_config_of(config, tower)).vision_encoder
    layers = [module for module in encoder.tower.modules() if hasattr(module, "lora_magnitude_vector")]
    assert layers
    for layer in layers:
        torch.testing.assert_close(layer.lora_magnitude_vector["default"].weight, layer.base_layer.weight.norm(dim=1))
