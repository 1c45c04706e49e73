"""Towers for a language model against a plain loop over transformers' hidden states."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from PIL import Image
from transformers import AutoConfig, AutoModel, BitImageProcessor, CLIPConfig, CLIPModel

from bitgen.model.frozen_tower import resolve_lora_targets
from bitgen.vlm.vision import build_tower, image_processor, layers_of, open_tower

SIZES = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, patch_size=14, image_size=28)
MLP = {"intermediate_size": 48}
# Model type, settings beside SIZES, tokens before the patches, names of register tokens.
KINDS = {
    "dinov2": ({}, 1),
    "dinov2_with_registers": ({"num_register_tokens": 4}, 5),
    "dinov3_vit": (MLP | {"num_register_tokens": 3}, 4),
    "vit": (MLP, 1),
    "clip_vision_model": (MLP, 1),
    "siglip_vision_model": (MLP, 0),
}
SELECTED = {-1: [3], -2: [2], 1: [1], (-2, -1): [2, 3], (3, 1): [3, 1], "all": [1, 2, 3]}


def pixels(size: int = 28, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(2))


@pytest.fixture(params=KINDS)
def folder(request, tmp_path) -> tuple[str, int]:
    """A saved encoder with random weights, and its tokens before the patches."""
    torch.manual_seed(7)
    settings, prefix = KINDS[request.param]
    AutoModel.from_config(AutoConfig.for_model(request.param, **SIZES, **settings)).save_pretrained(tmp_path)
    return str(tmp_path), prefix


# ---- features ----


@pytest.mark.parametrize("select_layer", SELECTED)
def test_features_are_the_raw_hidden_states_of_the_patches(folder, select_layer):
    name, prefix = folder
    plain = AutoModel.from_pretrained(name).eval()
    with torch.no_grad():
        states = plain(pixels(), output_hidden_states=True).hidden_states
    tower = open_tower(name, list(select_layer) if isinstance(select_layer, tuple) else select_layer)
    found = tower(pixels())
    expected = torch.stack([states[layer][:, prefix:] for layer in SELECTED[select_layer]], dim=1)
    assert found.shape == (2, len(SELECTED[select_layer]), 4, 32)
    assert torch.equal(found, expected) and not found.requires_grad
    assert (tower.spec.tokens, tower.spec.width, tower.spec.layers, tower.spec.prefix_tokens) == (4, 32, 3, prefix)
    assert tower.spec.features == "raw"
    # As LLaVA counts: hidden_states[select_layer].
    if isinstance(select_layer, int):
        assert torch.equal(found[:, 0], states[select_layer][:, prefix:])


def test_the_table_says_which_last_hidden_states_are_normed(folder):
    """What stage 1 reads is that; a tower for a language model never is."""
    plain = AutoModel.from_pretrained(folder[0]).eval()
    with torch.no_grad():
        output = plain(pixels(), output_hidden_states=True)
    is_raw = torch.equal(output.last_hidden_state, output.hidden_states[-1])
    assert is_raw != open_tower(folder[0], -1).kind.normed


def test_pictures_of_another_size_have_other_tokens(folder):
    name, prefix = folder
    tower = open_tower(name, -2, image_size=42)
    assert (tower.spec.image_size, tower.spec.tokens) == (42, 9)
    told = {"interpolate_pos_encoding": True} if tower.kind.asks_to_interpolate else {}
    plain = AutoModel.from_pretrained(name).eval()
    with torch.no_grad():
        expected = plain(pixels(42), output_hidden_states=True, **told).hidden_states[-2][:, prefix:]
    assert torch.equal(tower(pixels(42))[:, 0], expected)


@pytest.mark.parametrize("kind", ["dinov2_with_registers", "dinov3_vit"])
def test_registers_are_never_among_the_patches(kind):
    tower = build_tower({"model_type": kind, **SIZES, **KINDS[kind][0]}, -1)
    embeddings = tower.tower.embeddings
    with torch.no_grad():
        embeddings.register_tokens.fill_(777.0)
        embeddings.cls_token.fill_(777.0)
        embedded = embeddings(pixels())
    away = (embedded > 700).all(dim=-1)
    assert away[:, : tower.prefix_tokens].all() and not away[:, tower.prefix_tokens :].any()
    assert embedded.shape[1] == tower.prefix_tokens + tower.spec.tokens


def test_blocks_after_the_last_one_asked_for_are_not_computed(folder):
    for select_layer, expected in ((-1, 3), (-2, 2), ([1, 2], 2), (1, 1), ("all", 3)):
        tower, calls = open_tower(folder[0], select_layer), []
        blocks = tower._blocks[0]
        for block in blocks:
            block.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        before = tower(pixels())
        assert len(calls) == expected
        assert torch.equal(tower(pixels()), before)
        assert not any(block._forward_pre_hooks for block in blocks)
        # transformers' own forward still runs to the end.
        tower.tower(pixels())
        assert len(calls) == 2 * expected + 3


@pytest.mark.parametrize("checkpointing", [False, True])
def test_adapters_train_and_nothing_else_does(folder, checkpointing):
    torch.manual_seed(0)
    tower = open_tower(folder[0], [-2, 1])
    plain = tower(pixels())
    if checkpointing:
        tower._checkpointing = True
        tower.enable_checkpointing()
    base = {name: p.detach().clone() for name, p in tower.tower_parameters()}
    inject_adapter_in_model(
        LoraConfig(r=2, lora_dropout=0.5, target_modules=resolve_lora_targets(tower.tower)), tower.tower
    )
    tower.requires_grad_(False)
    assert torch.equal(tower.train()(pixels()), plain)  # frozen: nothing is dropped
    adapters = {name: p.requires_grad_(True) for name, p in tower.named_parameters() if "lora_" in name}
    optimizer = torch.optim.SGD(adapters.values(), lr=0.5)
    for _ in range(2):  # A gets a gradient once B is not zero
        tower.train()(pixels()).square().mean().backward()
        optimizer.step()
    last = "2"  # the last block, which neither layer needs
    reached = {name for name, p in adapters.items() if p.grad is not None and p.grad.any()}
    assert reached == {name for name in adapters if f".{last}." not in name}
    assert all(torch.equal(base[n.replace(".base_layer.", ".")], p) for n, p in tower.tower_parameters())
    assert not torch.equal(tower.eval()(pixels()), plain)


# ---- layers ----


@pytest.mark.parametrize("select_layer", [0, 4, -4, [], [1, 1], [-1, 3], "last", None, 1.5, [True], ["1"]])
def test_a_layer_that_there_is_not_is_named_with_those_that_there_are(select_layer):
    with pytest.raises(ValueError, match="layers 1 to 3, or -3 to -1"):
        layers_of(select_layer, 3)


# ---- where it comes from ----


def test_a_tower_is_rebuilt_from_what_is_stored_of_it(folder, tmp_path):
    BitImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28}).save_pretrained(folder[0])
    tower = open_tower(folder[0], "all", revision=None)
    assert tower.spec.source == folder[0] and (tower.spec.fit, tower.spec.shortest) == ("crop", 32)
    stored = json.loads(json.dumps(tower.vision_config))
    again = build_tower(stored, "all")
    assert again.spec.to_dict() | {"weights": None} == tower.spec.to_dict() | {"weights": None}
    assert again.spec.weights == tower.spec.weights is not None
    assert not torch.equal(again(pixels()), tower(pixels()))
    again.load_state_dict(tower.state_dict())
    assert torch.equal(again(pixels()), tower(pixels()))
    picture = Image.linear_gradient("L").convert("RGB").resize((50, 90))
    same = [image_processor(one.spec).images([picture]) for one in (tower, again)]
    assert torch.equal(*same) and same[0].shape == (1, 3, 28, 28)


def test_other_weights_have_another_hash(folder):
    first = open_tower(folder[0], -1).spec.weights
    assert open_tower(folder[0], -2).spec.weights == first
    other = AutoModel.from_pretrained(folder[0])
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1
    other.save_pretrained(folder[0])
    assert open_tower(folder[0], -1).spec.weights != first


def test_the_half_of_a_whole_clip_is_its_vision_model(tmp_path):
    text = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=40, **MLP)
    both = CLIPModel(CLIPConfig(text_config=text, vision_config=SIZES | MLP)).eval()
    both.save_pretrained(tmp_path)
    tower = open_tower(str(tmp_path), -2)
    theirs = dict(both.vision_model.named_parameters())
    ours = dict(tower.tower_parameters())
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    with torch.no_grad():
        expected = both.vision_model(pixels(), output_hidden_states=True).hidden_states[-2][:, 1:]
    assert torch.equal(tower(pixels())[:, 0], expected)


def test_the_built_in_tower_needs_nothing():
    tower = open_tower("random", [-2, -1], image_size=28)
    assert tower(pixels()).shape == (2, 2, tower.spec.tokens, tower.spec.width) and tower.spec.tokens == 4
    given = open_tower("random", -1, random_config={"model_type": "dinov2", **SIZES})
    assert given(pixels()).shape == (2, 1, 4, 32) and given.spec.source == "random"


@pytest.mark.parametrize("shape, layers", [((2, 6, 5), 1), ((2, 3, 6, 5), 3), ((2, 5), 1)])
def test_features_computed_earlier_take_the_towers_place(shape, layers):
    tokens = shape[-2] if len(shape) > 2 else 1
    config = {"model_type": "features", "feature_tokens": tokens, "feature_dim": 5, "feature_layers": layers}
    stored = build_tower(config, "all")
    features = torch.randn(shape)
    assert torch.equal(stored(features), features.reshape(2, layers, tokens, 5))
    assert build_tower(json.loads(json.dumps(stored.vision_config)), "all").spec == stored.spec
    with pytest.raises(ValueError, match="features of a picture are"):
        stored(torch.randn(2, tokens, 4))
    with pytest.raises(ValueError, match="take no pictures"):
        image_processor(stored.spec)
    with pytest.raises(ValueError, match="write feature_tokens"):
        build_tower({"model_type": "features", "feature_dim": 5}, "all")


@pytest.mark.parametrize("change", [{"mean": [0.5]}, {"fit": "stretch"}, {"resample": None}, {"shortest": -1}])
def test_stored_settings_of_impossible_pictures_are_refused(change):
    with pytest.raises(ValueError, match=f"image_{next(iter(change))}"):
        build_tower({"model_type": "dinov2", **SIZES, "bitgen": change}, -1)


@pytest.mark.parametrize("source", ["facebook/no-such-encoder", "./no/such/folder"])
def test_what_is_out_of_reach_is_named_with_what_to_download_and_where_to_put_it(source):
    with pytest.raises(ValueError, match="hf download .* --local-dir .*copy that folder here") as caught:
        open_tower(source, -2)
    assert source in str(caught.value) and "\n" not in str(caught.value)
    if not source.startswith("."):
        assert f"hf download {source} --local-dir no-such-encoder" in str(caught.value)


def test_of_an_unknown_type_it_is_said_which_are_known_and_how_to_add_one(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "beit"}')
    for attempt in (lambda: open_tower(str(tmp_path), -2), lambda: build_tower({"model_type": "beit"}, -2)):
        with pytest.raises(ValueError, match="a beit model") as caught:
            attempt()
        assert all(kind in str(caught.value) for kind in KINDS) and "TOWER_KINDS" in str(caught.value)


def test_a_size_that_the_encoder_cannot_look_at_is_named():
    with pytest.raises(ValueError, match="pictures of 7 pixels a side .*image_size=28"):
        build_tower({"model_type": "dinov2", **SIZES, "bitgen": {"image_size": 7}}, -1)
