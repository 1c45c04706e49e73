"""Counts of adapters on published models, exact, on the meta device: nothing is downloaded or computed."""

from __future__ import annotations

import json

import pytest
import torch

from bitgen.config import ConfigError
from bitgen.vlm.adapter_config import AdapterConfig
from bitgen.vlm.adapter_counts import adapted, base_bytes, base_parameters, cost, empty_model
from bitgen.vlm.adapters import attach
from support.models import tiny_config
from vlm.published import MODELS

SEVEN = "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"


def model_of(name: str, folder):
    (folder / "config.json").write_text(json.dumps(MODELS[name].config().to_dict()))
    return empty_model(folder)


@pytest.mark.parametrize("name", MODELS)
def test_published_models_count_exactly(tmp_path, name: str) -> None:
    published, lm = MODELS[name], model_of(name, tmp_path)
    assert {parameter.device.type for parameter in lm.parameters()} == {"meta"}
    assert base_parameters(lm) == published.base
    layers = adapted(lm)
    assert {rank: cost(lm, layers, rank).parameters for rank in published.lora} == published.lora
    assert cost(lm, layers, 16, "dora").parameters == published.dora_16
    if name not in ("Phi-3-mini", "Qwen3-8B", "SmolLM2-135M"):
        return
    # peft's own modules, on the same shapes.
    attach(lm, AdapterConfig("dora", 16, dropout=0.0))
    assert sum(parameter.numel() for parameter in lm.parameters() if parameter.requires_grad) == published.dora_16


@pytest.mark.parametrize(
    ("targets", "rank", "count"),
    [
        ("q_proj,v_proj", 4, 2_097_152),
        ("q_proj,v_proj", 8, 4_194_304),
        ("q_proj,k_proj,v_proj,o_proj", 16, 16_777_216),
        (SEVEN, 16, 39_976_960),
        (SEVEN, 64, 159_907_840),
    ],
)
def test_targets_of_llama_2(tmp_path, targets: str, rank: int, count: int) -> None:
    lm = model_of("LLaMA-2-7B", tmp_path)
    found = cost(lm, adapted(lm, targets), rank)
    assert found.parameters == count
    assert (found.weights, found.gradients, found.optimizer) == (4 * count, 4 * count, 8 * count)
    assert found.share == pytest.approx(count / 6_738_415_616)
    if (targets, rank) == ("q_proj,v_proj", 8):
        assert base_parameters(lm) + count == 6_742_609_920


def test_layers_are_some_of_them(tmp_path) -> None:
    lm = model_of("SmolLM2-135M", tmp_path)
    assert 10 * cost(lm, adapted(lm, layers=(0, 7, 29)), 8).parameters == 2_442_240
    assert [each.layers for each in adapted(lm)] == [30] * 7


def test_bytes_of_the_base_are_what_bitsandbytes_holds(tmp_path) -> None:
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

    sizes = dict(hidden_size=64, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4, vocab_size=70)
    LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(tmp_path)
    expected = base_bytes(empty_model(tmp_path))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert expected["bf16"] == sum(p.numel() * p.element_size() for p in plain.parameters())
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=["lm_head"])
    held = 0
    few_bits = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=settings, dtype=torch.bfloat16)
    for parameter in few_bits.parameters():
        held += parameter.numel() * parameter.element_size()
        state = getattr(parameter, "quant_state", None)
        held += 0 if state is None else state.absmax.numel() * state.absmax.element_size()
    assert expected["4-bit"] == held


def test_of_several_parts_the_language_model_is_counted(tmp_path) -> None:
    from transformers import CLIPVisionConfig, LlavaConfig

    text = MODELS["SmolLM2-135M"].config()
    (tmp_path / "config.json").write_text(
        json.dumps(LlavaConfig(vision_config=CLIPVisionConfig(), text_config=text).to_dict())
    )
    assert base_parameters(empty_model(tmp_path / "config.json")) == 134_515_008
    (tmp_path / "config.json").write_text(json.dumps(tiny_config((9, 6)).to_dict()))
    assert [each.name for each in adapted(empty_model(tmp_path))][0] == "query_key_value"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "no JSON"),
        ('{"hidden_size": 3}', "no model_type"),
        ('{"model_type": "nothing"}', "nothing"),
        ('{"model_type": "vit"}', "no causal language model"),
    ],
)
def test_other_configurations_are_refused(tmp_path, content: str, said: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=said):
        empty_model(tmp_path)


def test_a_missing_model_is_named(tmp_path) -> None:
    with pytest.raises(ConfigError, match="Name a folder with a config.json"):
        empty_model(tmp_path / "nowhere")
