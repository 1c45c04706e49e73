"""The tower and its adapters against plain DINOv2 and against LoRA's formula."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel

from bitgen.model.factory import build_model
from bitgen.model.modeling_bitgen import BitGenModel
from bitgen.model.vision_encoder import VisionEncoder
from support.models import tiny_config

PIXELS = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def plain_tower(tower_folder):
    return AutoModel.from_pretrained(tower_folder).eval()


@pytest.fixture
def encoder(tower_folder):
    """``encoder(trained=..., **changes)``: an encoder with the saved tower's weights; ``trained``: LoRA B not 0."""

    def build(trained: bool = False, **changes) -> VisionEncoder:
        torch.manual_seed(0)
        built = build_model(tiny_config(**changes), str(tower_folder)).vision_encoder
        if trained:
            fill_lora_b(built)
        return built.eval()

    return build


@torch.no_grad()
def fill_lora_b(encoder: VisionEncoder) -> None:
    for name, parameter in encoder.named_parameters():
        if "lora_B" in name:
            parameter.normal_(std=0.3)


def plain_name(name: str) -> str:
    return name.removeprefix("tower.").replace(".base_layer.", ".")


def assert_base_is(encoder: VisionEncoder, plain: nn.Module) -> None:
    """Every base weight of the encoder equals the plain tower's, bit for bit, and none is missing."""
    weights = dict(plain.named_parameters())
    found = {plain_name(name): parameter for name, parameter in encoder.base_parameters()}
    assert found.keys() == weights.keys()
    assert [name for name in weights if not torch.equal(found[name], weights[name])] == []


def train_a_little(model: BitGenModel, steps: int = 3) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05, weight_decay=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        encoding = model.encode_image(PIXELS)
        (encoding.image_features[:, 0].sum() + encoding.image_tokens.square().mean()).backward()
        optimizer.step()


# --- base weights ------------------------------------------------------------------------------------------------


def test_building_the_network_around_it_leaves_the_tower_as_transformers_made_it():
    config = tiny_config()
    torch.manual_seed(0)
    plain = AutoModel.from_config(AutoConfig.for_model(**config.vision_config))
    torch.manual_seed(0)
    assert_base_is(BitGenModel(config).vision_encoder, plain)


@pytest.mark.parametrize("tuning", ["frozen", "lora", "full"])
@pytest.mark.parametrize("phase", [1, 2])
def test_base_weights_are_bit_equal_after_loading_and_training(tower_folder, plain_tower, tuning, phase):
    model = build_model(tiny_config(vision_tuning=tuning), str(tower_folder)).train()
    assert_base_is(model.vision_encoder, plain_tower)
    model.set_adapters_trainable(phase == 2)
    before = {name: p.detach().clone() for name, p in model.vision_encoder.adapter_parameters()}
    train_a_little(model)
    moved = {name for name, p in model.vision_encoder.adapter_parameters() if not torch.equal(p, before[name])}
    if phase == 2 and tuning == "full":
        assert moved == before.keys()
    else:
        assert_base_is(model.vision_encoder, plain_tower)
        assert bool(moved) == (phase == 2 and tuning == "lora")


def test_gaussian_adapters_start_as_the_identity(encoder, plain_tower):
    built = encoder(init_lora_weights="gaussian")
    assert_base_is(built, plain_tower)
    torch.testing.assert_close(built(PIXELS).patches, plain_tower(PIXELS).last_hidden_state[:, 1:])


# --- features ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tuning", ["frozen", "lora", "full"])
@pytest.mark.parametrize("trainable", [False, True])
def test_features_at_the_start_are_plain_dinov2s(encoder, plain_tower, tuning, trainable):
    built = encoder(vision_tuning=tuning)
    built.set_adapters_trainable(trainable)
    hidden = plain_tower(PIXELS).last_hidden_state
    features = built(PIXELS)
    torch.testing.assert_close(features.patches, hidden[:, 1:], rtol=0, atol=0)
    torch.testing.assert_close(features.cls, hidden[:, 0], rtol=0, atol=0)
    assert features.patches.shape == (2, 4, 32)


def test_dora_starts_phase_two_as_plain_dinov2(encoder, plain_tower):
    built = encoder(use_dora=True)
    built.set_adapters_trainable(True)
    expected = plain_tower(PIXELS).last_hidden_state[:, 1:]
    torch.testing.assert_close(built(PIXELS).patches, expected, rtol=1e-4, atol=1e-5)


def test_other_image_sizes_interpolate_the_position_table(tower_folder, plain_tower):
    pixels = torch.randn(1, 3, 42, 42)
    built = build_model(tiny_config(image_size=42), str(tower_folder)).eval()
    expected = plain_tower(pixels).last_hidden_state[:, 1:]
    assert torch.equal(built.vision_encoder(pixels).patches, expected)
    assert built.encode_image(pixels).image_tokens.shape == (1, 9, 16)


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("use_rslora", [False, True])
def test_trained_adapters_equal_merged_weights(encoder, plain_tower, trainable, use_rslora):
    """W + scale B A in a plain DINOv2; also where the adapters are frozen, as after loading for evaluation."""
    built = encoder(trained=True, use_rslora=use_rslora)
    built.set_adapters_trainable(trainable)
    scale = 8 / math.sqrt(4) if use_rslora else 8 / 4
    parameters, weights = dict(built.named_parameters()), dict(plain_tower.named_parameters())
    merged = 0
    with torch.no_grad():
        for name, lora_a in parameters.items():
            if "lora_A" in name:
                lora_b = parameters[name.replace("lora_A", "lora_B")]
                weights[plain_name(name).replace("lora_A.default.", "")].add_(scale * lora_b @ lora_a)
                merged += 1
    assert merged == 4  # query and value of two layers
    expected = plain_tower(PIXELS).last_hidden_state[:, 1:]
    torch.testing.assert_close(built(PIXELS).patches, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("way", ["load_state_dict", "assign", "copy", "optimizer"])
def test_frozen_adapters_act_as_soon_as_their_weights_change(encoder, plain_tower, way):
    """The identity is looked at again after every kind of write, also when it was found true before."""
    built, source = encoder(), encoder(trained=True)
    plain = built(PIXELS).patches
    if way == "optimizer":
        built.set_adapters_trainable(True)
        parameters = [p for _, p in built.adapter_parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=0.1)
        built(PIXELS).patches.square().sum().backward()
        optimizer.step()
        built.set_adapters_trainable(False)
    elif way == "copy":
        fill_lora_b(built)
    else:
        built.load_state_dict(source.state_dict(), assign=way == "assign")
    changed = built(PIXELS).patches
    assert (changed - plain).abs().max() > 1e-3
    if way in ("load_state_dict", "assign"):
        torch.testing.assert_close(changed, source(PIXELS).patches, rtol=0, atol=0)
        built.load_state_dict(encoder().state_dict())
        assert torch.equal(built(PIXELS).patches, plain)


def test_skipping_the_identity_leaves_the_adapters_switched_on(encoder):
    built = encoder()
    frozen = built(PIXELS).patches
    built.set_adapters_trainable(True)
    built(PIXELS).patches.square().sum().backward()
    gradients = {name: p.grad for name, p in built.adapter_parameters() if "lora_B" in name}
    assert len(gradients) == 4 and all(g is not None and g.abs().max() > 0 for g in gradients.values())
    built.set_adapters_trainable(False)
    assert torch.equal(built(PIXELS).patches, frozen)


# --- what is trained ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tuning", ["frozen", "lora", "full"])
def test_trainable_sets(encoder, tuning):
    built = encoder(vision_tuning=tuning)
    assert not any(p.requires_grad for p in built.parameters())
    names = {name for name, _ in built.adapter_parameters()}
    assert names == {
        name
        for name, _ in built.named_parameters()
        if tuning == "full"
        and not name.endswith(("mask_token", "k_proj.bias", "key.bias"))
        or tuning == "lora"
        and "lora_" in name
    }
    assert len(names) == {"frozen": 0, "lora": 8}.get(tuning, len(names)) and (tuning != "full" or len(names) > 30)
    built.set_adapters_trainable(True)
    assert {name for name, p in built.named_parameters() if p.requires_grad} == names
    assert built(PIXELS).patches.requires_grad == bool(names)
    with torch.no_grad():
        assert not built(PIXELS).patches.requires_grad
    built.set_adapters_trainable(False)
    assert not any(p.requires_grad for p in built.parameters())
    assert not built(PIXELS).patches.requires_grad


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_every_unfrozen_weight_gets_a_gradient(encoder, tuning):
    built = encoder(vision_tuning=tuning, trained=True)
    built.set_adapters_trainable(True)
    built(PIXELS).patches.square().sum().backward()
    assert [name for name, p in built.adapter_parameters() if p.grad is None or not p.grad.any()] == []


# --- dropout and checkpointing -----------------------------------------------------------------------------------

NOISY_TOWER = {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5, "drop_path_rate": 0.5}


@pytest.mark.parametrize("use_gradient_checkpointing", [False, True])
@pytest.mark.parametrize("tuning", ["frozen", "lora", "full"])
def test_the_base_never_drops_anything(tuning, use_gradient_checkpointing):
    config = tiny_config(
        vision_config=tiny_config().vision_config | NOISY_TOWER,
        vision_tuning=tuning,
        lora_dropout=0.0,
        use_gradient_checkpointing=use_gradient_checkpointing,
    )
    built = BitGenModel(config).train().vision_encoder
    fill_lora_b(built)
    for trainable in (False, True):
        built.set_adapters_trainable(trainable)
        features = built(PIXELS).patches
        assert torch.equal(features, built(PIXELS).patches)
        torch.testing.assert_close(features, built.eval()(PIXELS).patches)
        built.train()


def test_adapter_dropout_follows_train_mode_once_unfrozen(encoder):
    built = encoder(trained=True, lora_dropout=0.5)
    built.set_adapters_trainable(True)
    assert torch.equal(built(PIXELS).patches, built(PIXELS).patches)
    built.train()
    assert not torch.equal(built(PIXELS).patches, built(PIXELS).patches)


def test_two_training_forwards_of_phase_one_are_equal(encoder):
    built = encoder(lora_dropout=0.5).train()
    assert torch.equal(built(PIXELS).patches, built(PIXELS).patches)


@pytest.mark.parametrize("tuning", ["lora", "full"])
@pytest.mark.parametrize("lora_dropout", [0.0, 0.5])
def test_gradient_checkpointing_changes_memory_alone(encoder, tuning, lora_dropout):
    outputs, gradients, calls = [], [], []
    for checkpointing in (False, True):
        built = encoder(
            trained=True, vision_tuning=tuning, lora_dropout=lora_dropout, use_gradient_checkpointing=checkpointing
        ).train()
        built.set_adapters_trainable(True)
        count = []
        norm = next(module for name, module in built.named_modules() if name.endswith("layer.1.norm1"))
        norm.register_forward_hook(lambda *_, count=count: count.append(1))
        torch.manual_seed(3)
        outputs.append(built(PIXELS).patches)
        outputs[-1].square().sum().backward()
        gradients.append({name: p.grad for name, p in built.adapter_parameters()})
        calls.append(len(count))
    assert calls == [1, 2]  # it really was computed again
    torch.testing.assert_close(outputs[0], outputs[1])
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert gradient.any(), name
        torch.testing.assert_close(gradients[1][name], gradient)


def test_compiling_leaves_the_state_dict_as_it_is(encoder):
    built = encoder()
    before = built.state_dict().keys()
    built.compile()  # lazy: nothing is compiled until the first forward
    assert built.state_dict().keys() == before


def test_a_copy_has_adapters_of_its_own(encoder):
    original = encoder()
    plain = original(PIXELS).patches
    copied = copy.deepcopy(original)
    fill_lora_b(copied)
    assert (copied(PIXELS).patches - plain).abs().max() > 1e-3
    assert torch.equal(original(PIXELS).patches, plain)
