"""Which layers get adapters, with which options, and under which component each parameter is counted."""

from __future__ import annotations

from collections import Counter

import pytest
from torch import nn

from bitgen.model.modeling_bitgen import BitGenModel
from bitgen.model.vision_encoder import VisionEncoder, resolve_lora_targets
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
