"""Building a model: which weights it starts from, and what a user reads when they are not to be had."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel

from bitgen.model.configuration_bitgen import BitGenConfig
from bitgen.model.factory import DINOV2_BASE, build_model, random_vision_config
from bitgen.model.modeling_bitgen import BitGenModel
from bitgen.model.pretrained_tower import pretrained_vision_config
from support.models import tiny_config


@pytest.fixture
def folder(tower_folder, tmp_path):
    """A copy of the saved tower, to be damaged."""
    for file in tower_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_a_folders_configuration_builds_the_model_that_its_weights_fit(tower_folder):
    config = tiny_config(vision_config=pretrained_vision_config(str(tower_folder)))
    pixels = torch.randn(1, 3, 28, 28)
    expected = AutoModel.from_pretrained(tower_folder).eval()(pixels).last_hidden_state[:, 1:]
    model = build_model(config, str(tower_folder)).eval()
    assert torch.equal(model.vision_encoder(pixels).patches, expected)
    assert not torch.equal(build_model(config).eval().vision_encoder(pixels).patches, expected)


@pytest.mark.parametrize("source", ["facebook/no-such-encoder", "./no/such/folder"])
def test_an_encoder_out_of_reach_is_named_with_the_remedy(source):
    for attempt in (lambda: pretrained_vision_config(source), lambda: build_model(tiny_config(), source)):
        with pytest.raises(ValueError, match="cannot be loaded") as caught:
            attempt()
        assert source in str(caught.value)
        assert "hf download" in str(caught.value) and "--vision_encoder" in str(caught.value)


@pytest.mark.parametrize("damage", ["empty folder", "no weights", "no model_type", "broken json"])
def test_a_folder_without_a_usable_model_is_refused(folder, damage):
    if damage in ("empty folder", "no weights"):
        (folder / "model.safetensors").unlink()
    if damage == "empty folder":
        (folder / "config.json").unlink()
    elif damage == "no model_type":
        (folder / "config.json").write_text("{}")
    elif damage == "broken json":
        (folder / "config.json").write_text("{ not")
    with pytest.raises(ValueError, match="holds no usable model"):
        build_model(tiny_config(), str(folder))
    if damage != "no weights":
        with pytest.raises(ValueError, match="holds no usable model"):
            pretrained_vision_config(str(folder))


@pytest.mark.parametrize(
    "damage",
    ["tensors missing", "wrong shapes", "cut short"],
)
def test_a_folder_with_damaged_weights_is_refused(folder, damage):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    if damage == "tensors missing":
        save_file({name: t for name, t in tensors.items() if "layer.1." not in name}, file, metadata={"format": "pt"})
    elif damage == "wrong shapes":
        save_file(
            {n: t[:5].clone() if t.dim() == 2 else t for n, t in tensors.items()}, file, metadata={"format": "pt"}
        )
    else:
        file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match="vision_encoder="):
        build_model(tiny_config(), str(folder))


def save_tower(folder, **sizes) -> str:
    shape = dict(hidden_size=32, layers=2, heads=2, patch_size=14, image_size=28) | sizes
    AutoModel.from_config(AutoConfig.for_model(**random_vision_config(**shape))).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    "sizes",
    [
        {"hidden_size": 16},
        {"layers": 1},
        {"patch_size": 7},
        {"image_size": 42},
        {"layers": 3},
    ],
)
def test_weights_of_another_shape_are_refused(tmp_path, sizes):
    with pytest.raises(ValueError, match="does not fit this model"):
        build_model(tiny_config(), save_tower(tmp_path, **sizes))


def test_save_and_reload_give_the_same_network(tower_folder, tmp_path):
    """Through transformers, which builds on the meta device: nothing may be initialised anew."""
    model = build_model(tiny_config(lora_layers=[1]), str(tower_folder)).eval()
    with torch.no_grad():
        model.memory.state.normal_()
        for name, parameter in model.named_parameters():
            if "lora_B" in name or name.endswith("gate"):
                parameter.normal_()
    model.save_pretrained(tmp_path)
    reloaded = BitGenModel.from_pretrained(tmp_path).eval()
    state, again = model.state_dict(), reloaded.state_dict()
    assert state.keys() == again.keys()
    assert [name for name in state if not torch.equal(state[name], again[name])] == []
    pixels = torch.randn(1, 3, 28, 28)
    torch.testing.assert_close(reloaded.encode_image(pixels).image_features, model.encode_image(pixels).image_features)
    written_by_saving = {"architectures": None, "dtype": None, "_name_or_path": None}
    assert reloaded.config.to_dict() | written_by_saving == model.config.to_dict() | written_by_saving


def test_the_real_shapes_have_the_designed_number_of_parameters():
    with torch.device("meta"):
        model = BitGenModel(BitGenConfig(vision_config=DINOV2_BASE))
    counted: dict[str, int] = {}
    roles = model.roles()
    for name, parameter in model.named_parameters():
        component = roles[name].part
        counted[component] = counted.get(component, 0) + parameter.numel()
    assert (counted["vision_base"], counted["lora"], counted["compressor"]) == (86_580_480, 589_824, 344_832)
    assert counted["embeddings"] == (50_257 + 256) * 128
    assert sum(counted.values()) - counted["vision_base"] < 50_000_000
    assert model.config.image_tokens == 256


def test_configuration_survives_json_and_the_empty_one_builds():
    config = tiny_config(lora_layers=[0], init_lora_weights="gaussian")
    again = BitGenConfig.from_dict(json.loads(config.to_json_string(use_diff=False)))
    assert again.to_dict() == config.to_dict()
    BitGenConfig()  # transformers does this to find the defaults


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_heads": 3}, "num_heads is 3, which does not divide embed_dim 16. Write 2"),
        ({"vision_embed_dim": 8}, "vision_embed_dim is 8 and embed_dim 16"),
        ({"image_size": 30}, "image_size is 30, which is no multiple of patch_size 14. Write 28"),
        ({"fusion": "late"}, "fusion='late' is unknown"),
        ({"image_pooling": "max"}, "image_pooling='max' is unknown"),
        ({"vision_tuning": "half"}, "vision_tuning='half' is unknown"),
        ({"positions": "relative"}, "positions='relative' is unknown"),
        ({"feed_forward": "relu"}, "feed_forward='relu' is unknown"),
        ({"positions": "rope", "embed_dim": 6, "vision_embed_dim": 6}, "make heads of 3"),
        ({"vision_config": None, "feature_dim": 6}, "feature_tokens"),
    ],
)
def test_sizes_that_cannot_fit_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**changes)


@pytest.mark.parametrize(
    "tokens, pooled, grid", [(1, 1, 1), (49, 49, 7), (50, 49, None), (256, 49, 16), (60, 49, None)]
)
def test_token_counts(tokens, pooled, grid):
    config = tiny_config((tokens, 6))
    assert (config.image_tokens, config.pooled_tokens, config.image_grid) == (tokens, pooled, grid)
    assert config.vision_feature_dim == 6 and config.takes_features
    assert config.hidden_size == 16
