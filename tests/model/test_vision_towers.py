"""Every kind of model that ``vision_encoder`` may name: those that fit work, the others are refused with a remedy."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    CLIPConfig,
    CLIPModel,
    SiglipConfig,
    SiglipModel,
    ViTConfig,
    ViTForImageClassification,
)

from bitgen.model import vision_towers
from bitgen.model.factory import build_model
from bitgen.model.modeling_bitgen import BitGenModel
from bitgen.model.pretrained_tower import pretrained_vision_config
from support.models import tiny_config

SIZES = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, patch_size=14, image_size=28)
MLP = {"intermediate_size": 48}
# By a name for the test: model type, settings beside SIZES, tokens before the patches.
FITTING = {
    "dinov2": ("dinov2", {}, 1),
    "swiglu": ("dinov2", {"use_swiglu_ffn": True}, 1),
    "registers": ("dinov2_with_registers", {"num_register_tokens": 4}, 5),
    "two_registers": ("dinov2_with_registers", {"num_register_tokens": 2}, 3),
    "dinov3": ("dinov3_vit", MLP | {"num_register_tokens": 4, "key_bias": True}, 5),
    "dinov3_plain": ("dinov3_vit", MLP | {"num_register_tokens": 0}, 1),
    "vit": ("vit", MLP, 1),
    "vit_without_bias": ("vit", MLP | {"qkv_bias": False}, 1),
    "clip": ("clip_vision_model", MLP, 1),
    "siglip": ("siglip_vision_model", MLP, 0),
}
INTERPOLATES_WHEN_TOLD = ("vit", "clip_vision_model", "siglip_vision_model")

# Model type to the sizes of a tiny one.
UNFIT = {
    "resnet": dict(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=2),
    "swin": dict(embed_dim=8, depths=[1, 1], num_heads=[1, 1], window_size=2, image_size=28, patch_size=7),
    "bert": dict(SIZES, **MLP, vocab_size=40),
    "convnext": dict(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2),
    "dinov3_convnext": dict(hidden_sizes=[8, 16, 16, 16], depths=[1, 1, 1, 1]),
    "siglip2_vision_model": dict(SIZES, **MLP, num_patches=4),
    "gpt2": dict(n_embd=16, n_layer=1, n_head=2, vocab_size=40),
    "deit": dict(SIZES, **MLP),
    "beit": dict(SIZES, **MLP),
}


def save_model(model: torch.nn.Module, folder: Path) -> str:
    with torch.no_grad():
        for parameter in model.parameters():  # nothing at its initial zero or one, or a wrong copy could go unseen
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(params=FITTING)
def tower(request, tmp_path) -> tuple[str, str, int]:
    """A saved tower's folder, its model type and the number of tokens before its patches."""
    torch.manual_seed(7)
    kind, settings, prefix = FITTING[request.param]
    model = AutoModel.from_config(AutoConfig.for_model(kind, **SIZES, **settings))
    return save_model(model, tmp_path / "tower"), kind, prefix


@pytest.fixture
def build(tower):
    """``build(**changes)``: a model around the saved tower, in eval mode."""

    def make(**changes) -> BitGenModel:
        torch.manual_seed(0)
        config = tiny_config(vision_config=pretrained_vision_config(tower[0]), **changes)
        return build_model(config, tower[0]).eval()

    return make


def images(size: int = 28) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def open_adapters(model: BitGenModel) -> None:
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.normal_(std=0.3)


# ---- towers that fit ----


@pytest.mark.parametrize("size", [28, 42])
def test_patches_alone_reach_the_compressor(build, tower, size):
    """Also where the image has another size than the tower was trained with."""
    folder, kind, prefix = tower
    plain = AutoModel.from_pretrained(folder).eval()
    told = {"interpolate_pos_encoding": True} if kind in INTERPOLATES_WHEN_TOLD and size != 28 else {}
    expected = plain(images(size), **told).last_hidden_state
    model = build(image_size=size)
    features = model.vision_encoder(images(size))
    assert expected.shape[1] == prefix + (size // 14) ** 2
    torch.testing.assert_close(features.patches, expected[:, prefix:], rtol=0, atol=0)
    if prefix:
        torch.testing.assert_close(features.cls, expected[:, 0], rtol=0, atol=0)
    else:
        assert features.cls is None
    assert model.encode_image(images(size)).image_tokens.shape == (2, (size // 14) ** 2, 16)


def test_lora_adapts_query_and_value_of_the_layers_asked_for(build):
    for layers, expected in ((None, {"0", "1"}), ([1], {"1"})):
        names = [name for name, _ in build(lora_layers=layers).vision_encoder.adapter_parameters()]
        assert len(names) == 4 * len(expected)  # query and value, A and B
        assert {next(part for part in name.split(".") if part.isdigit()) for name in names} == expected
        assert {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in names} in (
            {"q_proj", "v_proj"},
            {"query", "value"},
        )
    for layers in ([7], [1, 7], []):  # also where one of several is missing
        with pytest.raises(ValueError, match="lora_layers"):
            build(lora_layers=layers)


@pytest.mark.parametrize("size", [28, 42])
@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_exactly_what_is_unfrozen_gets_a_gradient(build, tuning, size):
    encoder = build(vision_tuning=tuning, image_size=size).vision_encoder
    open_adapters(encoder)
    encoder.set_adapters_trainable(True)
    unfrozen = {name for name, p in encoder.named_parameters() if p.requires_grad and p.numel()}
    assert unfrozen == {name for name, p in encoder.adapter_parameters() if p.numel()}
    if tuning == "full":
        encoder.requires_grad_(True)
    weights = torch.randn(32, generator=torch.Generator().manual_seed(5))
    (encoder(images(size)).patches * weights).tanh().sum().backward()
    gradients = {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None and p.numel()}
    assert {name for name, gradient in gradients.items() if gradient.abs().max() > 1e-5} == unfrozen


def test_gradient_checkpointing_changes_memory_alone(build):
    outputs, gradients = [], []
    for checkpointing in (False, True):
        model = build(use_gradient_checkpointing=checkpointing, lora_dropout=0.0).train()
        encoder = model.vision_encoder
        torch.manual_seed(1)
        open_adapters(encoder)
        encoder.set_adapters_trainable(True)
        outputs.append(encoder(images()).patches)
        outputs[-1].square().sum().backward()
        gradients.append({name: p.grad for name, p in encoder.adapter_parameters()})
    torch.testing.assert_close(outputs[0], outputs[1])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_nothing_is_dropped_in_training(tower):
    """The tower's own dropout stays off, under whichever name its configuration has it."""
    noisy = pretrained_vision_config(tower[0])
    noisy |= {name: 0.5 for name in noisy if "dropout" in name or name == "drop_path_rate"}
    for checkpointing in (False, True):
        config = tiny_config(vision_config=noisy, lora_dropout=0.0, use_gradient_checkpointing=checkpointing)
        encoder = build_model(config, tower[0]).train().vision_encoder
        encoder.set_adapters_trainable(True)
        assert torch.equal(encoder(images()).patches, encoder(images()).patches)


def test_reloading_through_transformers_gives_the_same_features(build, tmp_path):
    """It builds on the meta device; DINOv3's frequencies and CLIP's positions are in no file."""
    model = build()
    open_adapters(model)
    model.save_pretrained(tmp_path / "saved")
    again = BitGenModel.from_pretrained(tmp_path / "saved").eval()
    torch.testing.assert_close(again.vision_encoder(images()).patches, model.vision_encoder(images()).patches)
    state, loaded = model.state_dict(), again.state_dict()
    assert [name for name in state if not torch.equal(state[name], loaded[name])] == []


def test_many_layers_are_adapted_by_name():
    """PEFT shortens long lists of names to what they end in; others may end so too."""
    config = tiny_config().vision_config | {"num_hidden_layers": 24}
    layers = [n for n in range(24) if n not in (3, 13)]
    model = BitGenModel(tiny_config(vision_config=config, lora_layers=layers))
    names = [name for name, _ in model.vision_encoder.adapter_parameters()]
    adapted = {int(next(part for part in name.split(".") if part.isdigit())) for name in names}
    assert adapted == set(layers) and len(names) == 4 * len(layers)


def test_a_classifier_lends_its_tower(tmp_path):
    """It has no pooler, which the patches do not pass through; what stands there must not depend on chance."""
    folder = save_model(ViTForImageClassification(ViTConfig(**SIZES, **MLP)), tmp_path)
    config = tiny_config(vision_config=pretrained_vision_config(folder), vision_tuning="full")
    one, other = build_model(config, folder), build_model(config, folder)
    weights, again = (dict(model.vision_encoder.tower_parameters()) for model in (one, other))
    assert [name for name in weights if not torch.equal(weights[name], again[name])] == []


def test_weights_in_half_precision_are_trained_in_full(tmp_path):
    model = AutoModel.from_config(AutoConfig.for_model("clip_vision_model", **SIZES, **MLP)).half()
    folder = save_model(model, tmp_path)
    built = build_model(tiny_config(vision_config=pretrained_vision_config(folder)), folder)
    assert {p.dtype for p in built.parameters()} == {torch.float32}


def test_sizes_given_as_two_equal_numbers_are_one(tmp_path):
    sizes = SIZES | {"image_size": [28, 28], "patch_size": [14, 14]}
    folder = save_model(AutoModel.from_config(AutoConfig.for_model("dinov2", **sizes)), tmp_path)
    model = build_model(tiny_config(vision_config=pretrained_vision_config(folder)), folder)
    assert model.config.image_tokens == 4


TEXT = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=40, **MLP)


@pytest.mark.parametrize("config, model", [(CLIPConfig, CLIPModel), (SiglipConfig, SiglipModel)])
def test_of_a_model_of_images_and_text_the_half_for_images_is_taken(tmp_path, config, model):
    folder = save_model(model(config(text_config=TEXT, vision_config=SIZES | MLP)), tmp_path)
    vision_config = pretrained_vision_config(folder)
    with pytest.raises(ValueError, match=f"a {config.model_type} model, .* {vision_config['model_type']}"):
        tiny_config(vision_config=AutoConfig.from_pretrained(folder).to_dict())
    encoder = build_model(tiny_config(vision_config=vision_config), folder).eval().vision_encoder
    both = model.from_pretrained(folder).eval()
    theirs, ours = dict(both.vision_model.named_parameters()), dict(encoder.tower_parameters())
    plain = {name.replace(".base_layer.", "."): tensor for name, tensor in ours.items()}
    assert plain.keys() == theirs.keys()
    assert [name for name in plain if not torch.equal(plain[name], theirs[name])] == []
    expected = both.vision_model(images()).last_hidden_state[:, encoder.prefix_tokens :]
    torch.testing.assert_close(encoder(images()).patches, expected, rtol=0, atol=0)


# ---- towers that do not fit ----


@pytest.mark.parametrize("kind", UNFIT)
def test_another_kind_of_model_is_refused_at_the_start(tmp_path, kind):
    folder = save_model(AutoModel.from_config(AutoConfig.for_model(kind, **UNFIT[kind])), tmp_path)
    with pytest.raises(ValueError) as caught:
        pretrained_vision_config(folder)
    message = str(caught.value)
    assert folder in message and f"a {kind} model" in message
    assert all(supported in message for supported, _, _ in FITTING.values())
    assert "--vision_encoder facebook/dinov2-base" in message and "--vision_encoder features" in message
    with pytest.raises(ValueError, match=f"a {kind} model"):
        tiny_config(vision_config=AutoConfig.from_pretrained(folder).to_dict())


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"image_size": [28, 42]}, "image_size=.*must be square"),
        ({"patch_size": [14, 7]}, "patch_size=.*must be square"),
        ({"num_channels": 1}, "1 channels"),
    ],
)
def test_towers_for_other_images_are_refused(tmp_path, changes, message):
    folder = save_model(AutoModel.from_config(AutoConfig.for_model("dinov2", **SIZES | changes)), tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        pretrained_vision_config(folder)
    assert folder in str(caught.value)


@pytest.mark.parametrize(
    "config", ['{"model_type": "no_such"}', '{"model_type": "dinov2", "hidden_size": "wide"}', "[]"]
)
def test_a_configuration_that_cannot_be_read_is_refused(tmp_path, config):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError, match="cannot be loaded") as caught:
        pretrained_vision_config(str(tmp_path))
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("field", ["hidden_size", "patch_size", "image_size"])
def test_a_configuration_in_part_is_refused(field):
    part = {name: value for name, value in tiny_config().vision_config.items() if name != field}
    with pytest.raises(ValueError, match=f"vision_config lacks {field}"):
        tiny_config(vision_config=part)


def test_other_patches_than_computed_are_an_error_before_training(tower_folder, monkeypatch):
    kind = vision_towers.TOWER_KINDS["dinov2"]
    monkeypatch.setitem(vision_towers.TOWER_KINDS, "dinov2", kind._replace(cls_tokens=0))
    with pytest.raises(ValueError, match="gives 5 patches of width 32 .* and 4 of width 32 were expected") as caught:
        build_model(tiny_config(), str(tower_folder))
    assert str(tower_folder) in str(caught.value)


def test_a_size_that_the_tower_cannot_look_at_is_named(tower_folder, monkeypatch):
    kind = vision_towers.TOWER_KINDS["dinov2"]
    monkeypatch.setitem(vision_towers.TOWER_KINDS, "vit", kind)  # as if it need not be told to interpolate
    vision_config = AutoConfig.for_model("vit", **SIZES, **MLP).to_dict()
    with pytest.raises(ValueError, match="image_size=42 .*image_size=28"):
        build_model(tiny_config(vision_config=vision_config, image_size=42))
