"""Vision transformers of timm, and the half for images of an open_clip model, such as BiomedCLIP's."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from bitgen.model import open_clip_files
from bitgen.model.factory import build_model
from bitgen.model.modeling_bitgen import BitGenModel
from bitgen.model.pretrained_tower import pretrained_images, pretrained_normalisation, pretrained_vision_config
from bitgen.vlm.vision import build_tower, image_processor, open_tower
from support.models import tiny_config

# Of six blocks, 64 wide: timm keeps it for tests.
NAME, SIDE = "test_vit", 160
MEAN, STD = (0.48, 0.45, 0.40), (0.26, 0.27, 0.28)


@pytest.fixture(scope="module")
def timm():
    return pytest.importorskip("timm")


@pytest.fixture(scope="module")
def open_clip():
    return pytest.importorskip("open_clip")


@pytest.fixture(scope="module")
def biomed(open_clip, tmp_path_factory):
    """A folder as BiomedCLIP's is, with a small trunk and random weights; and the model in open_clip."""
    torch.manual_seed(5)
    vision = {"timm_model_name": NAME, "timm_model_pretrained": False, "timm_pool": "", "timm_proj": "linear"}
    text = {"context_length": 8, "vocab_size": 40, "width": 16, "heads": 2, "layers": 1}
    sizes = {"embed_dim": 16, "vision_cfg": {**vision, "image_size": SIDE}, "text_cfg": text}
    model = open_clip.CustomTextCLIP(**sizes).eval()
    folder = tmp_path_factory.mktemp("biomed")
    config = {"model_cfg": sizes, "preprocess_cfg": {"mean": MEAN, "std": STD}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    return folder, model


def pixels(side: int = SIDE) -> torch.Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(2))


def test_the_trunk_of_open_clip_gives_its_raw_blocks(biomed):
    folder, model = biomed
    with torch.no_grad():
        expected = model.visual.trunk.forward_intermediates(
            pixels(), norm=False, output_fmt="NLC", intermediates_only=True
        )
    assert torch.equal(open_tower(str(folder), "all")(pixels()), torch.stack(expected, dim=1))
    tower = open_tower(str(folder), -2)
    assert torch.equal(tower(pixels())[:, 0], expected[-2])
    assert (tower.spec.tokens, tower.spec.prefix_tokens, tower.spec.width, tower.spec.layers) == (100, 1, 64, 6)
    theirs = dict(model.visual.trunk.named_parameters())
    ours = {name.removeprefix("timm_model."): p for name, p in tower.tower_parameters()}
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_pictures_are_prepared_as_open_clip_does(biomed, open_clip):
    folder, _ = biomed
    tower = open_tower(str(folder), -1)
    assert (tower.spec.mean, tower.spec.std, tower.spec.fit) == (MEAN, STD, "crop")
    theirs = open_clip.image_transform(SIDE, is_train=False, mean=MEAN, std=STD)
    picture = Image.radial_gradient("L").convert("RGB").resize((320, 460))  # the crop leaves an even number of rows
    difference = image_processor(tower.spec).image(picture) - theirs(picture)
    assert float((difference.abs() * 255 * torch.tensor(STD)[:, None, None]).max()) < 1.01


def test_stage_one_trains_adapters_in_it(biomed, tmp_path):
    folder, model = str(biomed[0]), biomed[1]
    vision_config = pretrained_vision_config(folder)
    assert pretrained_normalisation(folder, vision_config).mean == MEAN
    built = build_model(tiny_config(vision_config=vision_config, image_size=SIDE, lora_dropout=0.0), folder)
    encoder = built.train().vision_encoder
    with torch.no_grad():
        expected = model.visual.trunk.forward_features(pixels())
    torch.testing.assert_close(encoder(pixels()).patches, expected[:, 1:], rtol=0, atol=0)
    torch.testing.assert_close(encoder(pixels()).cls, expected[:, 0], rtol=0, atol=0)
    built.set_adapters_trainable(True)
    adapters = dict(encoder.adapter_parameters())
    assert len(adapters) == 2 * 6  # A and B of one projection a layer
    optimizer = torch.optim.SGD(adapters.values(), lr=0.1)
    for _ in range(2):
        built.encode_image(pixels()).image_tokens.square().mean().backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.any() for p in adapters.values())
    built.save_pretrained(tmp_path)
    again = BitGenModel.from_pretrained(tmp_path).eval().vision_encoder
    torch.testing.assert_close(again(pixels()).patches, encoder.eval()(pixels()).patches)


def test_the_published_trunk_of_biomedclip_has_its_published_size(timm):
    config = open_clip_files.timm_vision_config("vit_base_patch16_224", 224, "BiomedCLIP")
    with torch.device("meta"):
        tower = build_tower(config | {"patch_size": 16, "image_size": 224}, "all")
    assert sum(p.numel() for p in tower.parameters()) == 85_798_656
    assert (tower.spec.tokens, tower.spec.prefix_tokens, tower.spec.width, tower.spec.layers) == (196, 1, 768, 12)


def test_a_folder_of_timm_says_itself_how_it_sees(timm, tmp_path):
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = timm.create_model(NAME, num_classes=0).eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    seen = {"input_size": [3, SIDE, SIDE], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 0.9}
    seen |= {"interpolation": "bicubic"}
    content = {"architecture": NAME, "num_classes": 0, "pretrained_cfg": seen}
    (tmp_path / "config.json").write_text(json.dumps(content))
    tower = open_tower(str(tmp_path), [-1])
    with torch.no_grad():
        (expected,) = model.forward_intermediates(
            pixels(), indices=[5], norm=False, output_fmt="NLC", intermediates_only=True
        )
    assert torch.equal(tower(pixels())[:, 0], expected)
    images = pretrained_images(str(tmp_path), pretrained_vision_config(str(tmp_path)))
    assert (images.size, images.mean, images.fit, images.shortest) == (SIDE, (0.5,) * 3, "crop", 177)
    theirs = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=seen))
    picture = Image.radial_gradient("L").convert("RGB").resize((500, 600))
    difference = image_processor(tower.spec).image(picture) - theirs(picture)
    assert float(difference.abs().max()) * 255 * 0.5 < 1.01


# ---- what cannot be ----


def test_without_timm_it_is_said_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    config = {"model_cfg": {"vision_cfg": {"timm_model_name": NAME}}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="pip install timm") as caught:
        pretrained_vision_config(str(tmp_path))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["resnet18", "no_such_model"])
def test_what_is_no_vision_transformer_is_refused(timm, tmp_path, name):
    config = {"model_cfg": {"vision_cfg": {"timm_model_name": name}}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"{name} of timm, which is no vision transformer that fits"):
        pretrained_vision_config(str(tmp_path))


@pytest.mark.parametrize(
    "change, named",
    [
        ({"architecture": "hf-hub:someone/something"}, "architecture='hf-hub"),
        ({"architecture": None}, "architecture=None"),
        ({"model_args": {"checkpoint_path": "weights.bin"}}, "'checkpoint_path' in model_args"),
    ],
)
def test_a_configuration_by_which_timm_would_load_something_is_refused(change, named):
    sizes = {"hidden_size": 64, "patch_size": 16, "image_size": SIDE, "num_hidden_layers": 6}
    with pytest.raises(ValueError, match=named):
        build_tower({"model_type": "timm_wrapper", "architecture": NAME, **sizes, **change}, -1)


def test_a_half_that_is_open_clips_own_is_refused_with_the_remedy(tmp_path):
    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": {"vision_cfg": {"layers": 12, "width": 768}}}')
    with pytest.raises(ValueError, match="not one of timm's: use the same model in transformers' format"):
        pretrained_vision_config(str(tmp_path))


@pytest.mark.parametrize("damage", ["cut short", "missing", "other"])
def test_damaged_weights_are_refused(biomed, tmp_path, damage):
    folder, _ = biomed
    weights = "open_clip_pytorch_model.bin"
    for file in folder.iterdir():
        Path(tmp_path / file.name).write_bytes(file.read_bytes())
    if damage == "cut short":
        (tmp_path / weights).write_bytes((folder / weights).read_bytes()[:5000])
    elif damage == "missing":
        (tmp_path / weights).unlink()
    else:
        torch.save({"visual.trunk.cls_token": torch.zeros(1, 1, 64)}, tmp_path / weights)
    with pytest.raises(ValueError, match="vision_encoder=") as caught:
        open_tower(str(tmp_path), -1)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
