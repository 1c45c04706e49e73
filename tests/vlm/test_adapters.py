"""Adapters on language models: what they go on, what trains, saving, loading, merging, checkpointing."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from bitgen.config import ConfigError
from bitgen.model.causal_lm_bitgen import BitGenForCausalLM
from bitgen.vlm.adapter_config import AdapterConfig
from bitgen.vlm.adapter_folder import CONFIG, RECORD, WEIGHTS, Base
from bitgen.vlm.adapters import (
    adapted_layers,
    adapter_state,
    attach,
    enable_checkpointing,
    load_adapter,
    merge,
    renorm,
    save_adapter,
    targets_of,
)
from support.language_models import ADAPTED, tiny_lm
from support.models import tiny_config

SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FUSED = ["o_proj", "qkv_proj", "gate_up_proj", "down_proj"]
KINDS = [AdapterConfig("lora", 4, 8.0, 0.0), AdapterConfig("dora", 4, 8.0, 0.0)]
KINDS += [AdapterConfig("lora", 4, 8.0, 0.0, rslora=True, targets="q_proj,v_proj", layers=(1,))]
IDS = torch.tensor([[5, 9, 22, 41, 3, 7]])


def randomised(lm, seed: int = 1):
    """The model, its adapter no longer at the start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return lm


def last_names(names: list[str]) -> list[str]:
    return list(dict.fromkeys(name.rsplit(".", 1)[-1] for name in names))


@pytest.mark.parametrize("family", ADAPTED)
def test_all_linear_is_the_decoder_without_its_head(family: str) -> None:
    names = targets_of(tiny_lm(family))
    expected = {"phi3": FUSED, "gpt2": ["c_attn", "c_proj", "c_fc"]}.get(family, SEVEN)
    assert sorted(last_names(names)) == sorted(expected)
    assert len(names) == 2 * (4 if family in ("phi3", "gpt2") else 7)
    assert not any("lm_head" in name for name in names)


def test_of_bitgen_the_text_stack_alone_has_targets() -> None:
    lm = BitGenForCausalLM(tiny_config()).eval()
    names = targets_of(lm)
    assert targets_of(lm, "feed_forward.1", (1,)) == ["decoder.blocks.1.feed_forward.1"]
    assert all(name.startswith("decoder.blocks.") for name in names) and len(names) == 14
    assert last_names(names) == ["query_key_value", "output", "query", "key_value", "1", "3"]
    with torch.no_grad():
        before = lm(input_ids=IDS).logits
    attach(lm, AdapterConfig("dora", 2, 4.0, 0.0))
    trained = {name for name, parameter in lm.named_parameters() if parameter.requires_grad}
    assert trained and all(name.startswith("decoder.") for name in trained), "the tower's own adapters are frozen"
    with torch.no_grad():
        torch.testing.assert_close(lm(input_ids=IDS).logits, before, rtol=0, atol=1e-5)


def test_targets_by_name_and_layer_are_full_names() -> None:
    lm = tiny_lm()
    assert targets_of(lm, "v_proj, q_proj", (1,)) == [
        f"model.layers.1.self_attn.{name}" for name in ("q_proj", "v_proj")
    ]
    assert targets_of(lm, ["down_proj"]) == [f"model.layers.{layer}.mlp.down_proj" for layer in (0, 1)]


@pytest.mark.parametrize(
    ("targets", "layers", "said"),
    [
        ("q_proj,lm_head", None, "no linear layer named 'lm_head'.*all-linear, or some of q_proj, k_proj"),
        ("query", None, "named 'query'"),
        (" , ", None, "targets are empty"),
        ("all-linear", (2,), "no layer 2; the decoder has 0 to 1"),
    ],
)
def test_unknown_targets_name_those_there_are(targets, layers, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        targets_of(tiny_lm(), targets, layers)


@pytest.mark.parametrize("change", [{"kind": "lokr"}, {"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}, {"init": "pissa"}])
def test_settings_out_of_range_are_named(change) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        AdapterConfig(**change)


@pytest.mark.parametrize("family", ADAPTED)
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_attaching_changes_nothing_but_what_trains(family: str, kind: str) -> None:
    lm = tiny_lm(family)
    before, bits = lm(input_ids=IDS).logits, {name: p.clone() for name, p in lm.named_parameters()}
    names = attach(lm, AdapterConfig(kind, 4, 8.0, 0.0))
    torch.testing.assert_close(lm(input_ids=IDS).logits, before, rtol=0, atol=1e-5)
    trained = [name for name, parameter in lm.named_parameters() if parameter.requires_grad]
    assert len(trained) == len(names) * (3 if kind == "dora" else 2)
    assert all("lora_" in name for name in trained)
    after = {name.replace(".base_layer", ""): p for name, p in lm.named_parameters() if name not in trained}
    assert bits.keys() == after.keys() and all(torch.equal(bits[name], after[name]) for name in bits)
    generated = lm.generate(inputs_embeds=lm.get_input_embeddings()(IDS), max_new_tokens=3, do_sample=False)
    assert generated.shape[0] == 1


def test_kind_none_freezes_and_adds_nothing() -> None:
    lm = tiny_lm()
    count = len(list(lm.parameters()))
    assert attach(lm, AdapterConfig("none")) == []
    assert count == len(list(lm.parameters())) and not any(p.requires_grad for p in lm.parameters())


def test_adapters_of_a_bf16_model_are_float32() -> None:
    lm = tiny_lm().bfloat16()
    attach(lm, AdapterConfig("dora", 4))
    assert {p.dtype for p in lm.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in lm.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert lm(input_ids=IDS).logits.dtype == torch.bfloat16
    for layer in adapted_layers(lm).values():  # which bfloat16 rounds by up to 0.2%
        magnitude = layer.lora_magnitude_vector["default"].weight
        torch.testing.assert_close(magnitude, layer.get_base_layer().weight.float().norm(dim=1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("config", KINDS, ids=["lora", "dora", "rslora of layer 1"])
@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2"])
def test_what_is_saved_is_loaded_by_us_and_by_peft(tmp_path, family: str, config: AdapterConfig) -> None:
    if family != "llama" and config.targets != "all-linear":
        pytest.skip("these names are Llama's")
    lm = tiny_lm(family)
    attach(lm, config)
    randomised(lm)
    expected = lm(input_ids=IDS).logits
    assert (expected - tiny_lm(family)(input_ids=IDS).logits).abs().max() > 1e-3
    save_adapter(lm, tmp_path / "adapter", Base("its-base", None, "0" * 64))
    plain = PeftModel.from_pretrained(tiny_lm(family), tmp_path / "adapter").eval()
    torch.testing.assert_close(plain(input_ids=IDS).logits, expected, rtol=0, atol=1e-6)
    ours = tiny_lm(family)
    loaded = load_adapter(ours, tmp_path / "adapter")
    assert (loaded.kind, loaded.rank, loaded.scale) == (config.kind, config.rank, config.scale)
    assert torch.equal(ours(input_ids=IDS).logits, expected)
    assert adapter_state(ours).keys() == load_file(tmp_path / "adapter" / WEIGHTS).keys()
    assert json.loads((tmp_path / "adapter" / RECORD).read_text())["base_sha256"] == "0" * 64


@pytest.mark.parametrize("left_out", [None, ["layers.0.self_attn.q_proj"], r"model\.layers\.\d\.self_attn\.v_proj"])
def test_what_peft_saved_is_loaded(tmp_path, left_out: list[str] | str | None) -> None:
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights="gaussian", exclude_modules=left_out
    )
    plain = randomised(get_peft_model(tiny_lm(), settings))
    plain.save_pretrained(tmp_path / "adapter")
    ours = tiny_lm()
    assert load_adapter(ours, tmp_path / "adapter").init == "gaussian"
    torch.testing.assert_close(ours(input_ids=IDS).logits, plain.eval()(input_ids=IDS).logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["target_modules", "exclude_modules"])
@pytest.mark.parametrize(("value", "said"), [(5, "5 is no list of names"), ("(", "is no pattern of names")])
def test_names_of_layers_that_are_none_are_named(tmp_path, name: str, value: object, said: str) -> None:
    path = saved(tmp_path / "adapter") / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    with pytest.raises(ValueError, match=said):
        load_adapter(tiny_lm(), tmp_path / "adapter")


def saved(folder, config: AdapterConfig = KINDS[0]):
    lm = tiny_lm()
    attach(lm, config)
    save_adapter(randomised(lm), folder, Base("its-base"))
    return folder


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop(min(t)), "down_proj has no lora_A"),
        (
            lambda t: [t.pop(k) for k in list(t) if "layers.1.mlp.down_proj" in k],
            "nothing for model.layers.1.mlp.down_proj",
        ),
        (
            lambda t: t.update({f"base_model.model.x.lora_{p}.weight": torch.ones(4, 4) for p in "AB"}),
            "has x, which is no",
        ),
        (
            lambda t: t.update({"base_model.model.lm_head.weight": torch.ones(2)}),
            "holds base_model.model.lm_head.weight",
        ),
        (lambda t: t.update({min(t): torch.ones(4, 7)}), r"down_proj has \[out, in\] \[32, 48\] in the model"),
        (lambda t: t.update({min(t): torch.ones(5, 48)}), r"with r 4 they are"),
    ],
)
def test_a_tensor_too_few_too_many_or_of_another_shape_is_named(tmp_path, change, said: str) -> None:
    path = saved(tmp_path / "adapter") / WEIGHTS
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    with pytest.raises(ValueError, match=said):
        load_adapter(tiny_lm(), tmp_path / "adapter")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"peft_type": "IA3"}, "IA3 adapter"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
        ({"bias": "all"}, "bias"),
        ({"init_lora_weights": "pissa"}, "changes the base's weights"),
        ({"r": "many"}, "adapter_config.json"),
    ],
)
def test_other_adapters_are_refused(tmp_path, settings, said: str) -> None:
    path = saved(tmp_path / "adapter") / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    with pytest.raises(ValueError, match=said):
        load_adapter(tiny_lm(), tmp_path / "adapter")


def test_missing_and_damaged_files_and_full_folders_are_named(tmp_path) -> None:
    with pytest.raises(ValueError, match="Name the folder that holds adapter_config.json"):
        load_adapter(tiny_lm(), tmp_path / "nowhere")
    folder = saved(tmp_path / "adapter")
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-8])
    with pytest.raises(ValueError, match="adapter_model.safetensors is damaged"):
        load_adapter(tiny_lm(), folder)
    with pytest.raises(ValueError, match="name a new folder"):
        saved(folder)
    with pytest.raises(ValueError, match="no adapter to save"):
        save_adapter(tiny_lm(), tmp_path / "new", Base(""))
    lm = tiny_lm()
    attach(lm, KINDS[0])
    for again in (lambda: attach(lm, KINDS[0]), lambda: load_adapter(lm, folder)):
        with pytest.raises(ConfigError, match="has an adapter already"):
            again()


@pytest.mark.parametrize("config", KINDS[:2], ids=["lora", "dora"])
@pytest.mark.parametrize("family", ADAPTED)
def test_merging_keeps_the_outputs_and_leaves_a_plain_model(family: str, config: AdapterConfig) -> None:
    lm, plain = tiny_lm(family), tiny_lm(family)
    attach(lm, config)
    expected = randomised(lm)(input_ids=IDS).logits
    assert (expected - plain(input_ids=IDS).logits).abs().max() > 1e-3
    merge(lm)
    torch.testing.assert_close(lm(input_ids=IDS).logits, expected, rtol=0, atol=1e-5)
    assert lm.state_dict().keys() == plain.state_dict().keys()
    with pytest.raises(ValueError, match="no adapter to merge"):
        merge(lm)
    assert attach(lm, config)


@pytest.mark.parametrize("config", KINDS[:2], ids=["lora", "dora"])
@pytest.mark.parametrize("family", ADAPTED)
def test_weights_that_are_loaded_under_a_new_adapter_answer_as_before(family: str, config: AdapterConfig) -> None:
    lm, other = tiny_lm(family), randomised(tiny_lm(family))
    attach(lm, config)
    bases = {name.replace(".base_layer.", "."): tensor for name, tensor in lm.state_dict().items()}
    with torch.no_grad():
        for name, tensor in other.state_dict().items():
            bases[name].copy_(tensor)
    renorm(lm)
    torch.testing.assert_close(lm.eval()(input_ids=IDS).logits, other.eval()(input_ids=IDS).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("config", KINDS[:2], ids=["lora", "dora"])
@pytest.mark.parametrize("family", ["llama", "phi3", "bitgen"])
def test_checkpointing_leaves_the_gradients_equal(family: str, config: AdapterConfig) -> None:
    """With embeddings that need no gradient, as a frozen connector gives them."""
    gradients = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        lm = tiny_lm(family) if family != "bitgen" else BitGenForCausalLM(tiny_config((9, 6), dropout=0.0))
        attach(lm, config)
        randomised(lm).train()
        if checkpointed:
            enable_checkpointing(lm)
        embedded = lm.get_input_embeddings()(IDS).detach()
        lm(inputs_embeds=embedded, use_cache=False).logits.square().mean().backward()
        gradients.append({name: p.grad for name, p in lm.named_parameters() if p.requires_grad})
    plain, checkpointed = gradients
    for name, gradient in plain.items():
        if gradient is None:  # BitGen's fusion has nothing to do without an image
            assert checkpointed[name] is None and ".fusion." in name
            continue
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-6, atol=1e-8)
    assert any(gradient is not None and gradient.abs().max() > 0 for gradient in plain.values())
