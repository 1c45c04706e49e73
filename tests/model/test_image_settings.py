"""How encoders see: what their files say, and that pictures come out as from transformers' own image processors."""

from __future__ import annotations

import json
import logging
import random

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BitImageProcessor, CLIPImageProcessor, SiglipImageProcessor, ViTImageProcessor

from bitgen.data.scenes.descriptions import random_scene
from bitgen.data.scenes.drawing import render_scene
from bitgen.model.configuration_bitgen import BitGenConfig
from bitgen.model.image_settings import (
    CLIP_MEAN,
    CLIP_STD,
    HALF,
    IMAGENET_MEAN,
    IMAGENET_STD,
    ImageSettings,
    from_preprocessor,
)
from bitgen.model.pretrained_tower import pretrained_images, pretrained_normalisation
from bitgen.model.processing_bitgen import BitGenProcessor

IMAGENET = {"image_mean": list(IMAGENET_MEAN), "image_std": list(IMAGENET_STD)}
CROPPED = {"size": {"shortest_edge": 64}, "crop_size": {"height": 56, "width": 56}}
# Saved by their own classes, with the settings of the published encoders at a smaller size.
PROCESSORS = {
    "clip": (CLIPImageProcessor(**CROPPED | {"size": {"shortest_edge": 56}}), "clip_vision_model"),
    "dinov2": (BitImageProcessor(**CROPPED, **IMAGENET), "dinov2"),
    "radiographs": (BitImageProcessor(**CROPPED, image_mean=[0.5307] * 3, image_std=[0.2583] * 3), "dinov2"),
    "siglip": (SiglipImageProcessor(size={"height": 56, "width": 56}), "siglip_vision_model"),
    "siglip2": (SiglipImageProcessor(size={"height": 56, "width": 56}, resample=2), "siglip_vision_model"),
    "vit": (ViTImageProcessor(size={"height": 56, "width": 56}), "vit"),
}  # fmt: skip


def prepared(settings: ImageSettings, picture: Image.Image) -> torch.Tensor:
    processor = BitGenProcessor(
        None, settings.size, image_mean=settings.mean, image_std=settings.std, image_resample=settings.resample,
        image_fit=settings.fit, image_shortest=settings.shortest,
    )  # fmt: skip
    return processor.image(picture)


def grey_levels_apart(ours: torch.Tensor, theirs: torch.Tensor, std: tuple[float, ...]) -> float:
    assert ours.shape == theirs.shape
    return float(((ours - theirs).abs() * 255 * torch.tensor(std)[:, None, None]).max())


def assert_as_theirs(kind: str, folder, picture: Image.Image) -> None:
    processor, model_type = PROCESSORS[kind]
    processor.save_pretrained(folder)
    settings = pretrained_images(str(folder), {"model_type": model_type, "image_size": 56})
    theirs = processor(picture, return_tensors="pt")["pixel_values"][0]
    assert grey_levels_apart(prepared(settings, picture), theirs, settings.std) <= 1


@pytest.mark.parametrize("shape", [(97, 131), (131, 97), (60, 300), (56, 56), (20, 33)])
@pytest.mark.parametrize("kind", PROCESSORS)
def test_a_drawn_picture_comes_out_as_theirs(kind, tmp_path, shape):
    rng = random.Random(1)
    scene = render_scene(random_scene(rng), 150, rng)
    assert_as_theirs(kind, tmp_path, scene.resize(shape[::-1]))


@pytest.mark.realdata
@pytest.mark.parametrize("kind", PROCESSORS)
def test_photographs_come_out_as_theirs(kind, tmp_path, shared_data):
    photographs = sorted((shared_data / "coco_sample").rglob("*.jpg"))[:3]
    assert photographs
    for path in photographs:
        assert_as_theirs(kind, tmp_path, Image.open(path).convert("RGB"))


def test_padding_adds_the_mean_colour_and_keeps_the_shape():
    grey = Image.new("RGB", (40, 20), (10, 200, 90))
    pixels = prepared(ImageSettings(40, CLIP_MEAN, CLIP_STD, "nearest", "pad"), grey)
    assert (pixels[:, :10].abs() < 0.02).all() and (pixels[:, 30:].abs() < 0.02).all()
    assert (pixels[:, 10:30] == pixels[:, 15:16, 5:6]).all() and pixels[0, 20, 20] < -1 < 1 < pixels[1, 20, 20]


# ---- what files say ----

DINOV3 = {"size": {"height": 224, "width": 224}, "crop_size": None, "do_center_crop": None, "resample": 2, **IMAGENET}
SAID = {
    "nothing": ({}, ImageSettings(None, HALF, HALF, "bicubic", "crop")),
    "a crop": ({**CROPPED, **IMAGENET}, ImageSettings(56, resample="bicubic", fit="crop", shortest=64)),
    "a square": (DINOV3, ImageSettings(224, resample="bilinear")),
    "early files": (
        {"size": 224, "crop_size": 224, "do_center_crop": True},
        ImageSettings(224, HALF, HALF, fit="crop", shortest=224),
    ),
    "one number": ({"image_mean": 0.5307, "image_std": [0.2583]}, ImageSettings(None, (0.5307,) * 3, (0.2583,) * 3,
                   fit="crop")),
    "no normalisation": ({"do_normalize": False}, ImageSettings(None, (0.0,) * 3, (1.0,) * 3, fit="crop")),
    "a square that is not cut": (
        {"size": {"height": 8, "width": 8}, "crop_size": {"height": 8, "width": 8}},
        ImageSettings(8, HALF, HALF),
    ),
}  # fmt: skip


@pytest.mark.parametrize("content, expected", SAID.values(), ids=SAID)
def test_what_a_file_says(content, expected):
    assert from_preprocessor(content, ImageSettings(mean=HALF, std=HALF, fit="crop")) == expected


@pytest.mark.parametrize(
    "content, named",
    [
        ({"image_mean": [0.5, 0.5]}, "image_mean"),
        ({"image_std": [0.5, 0.0, 0.5]}, "image_std"),
        ({"image_mean": "grey"}, "image_mean"),
        ({"resample": 9}, "resample"),
        ({"do_rescale": False}, "rescale"),
        ({"rescale_factor": 1 / 127.5}, "rescale"),
        ({"size": {"height": 8, "width": 16}}, "size"),
        ({"size": {"longest_edge": 8}}, "size"),
        ({"size": -3}, "size"),
        ({"size": {"height": 9, "width": 9}, "crop_size": 8}, "crop_size"),
    ],
)
def test_a_file_of_another_form_is_named_with_its_field(tmp_path, content, named):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"preprocessor_config.json: .*{named}") as caught:
        pretrained_images(str(tmp_path), {"model_type": "dinov2", "image_size": 8})
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_damaged_file_is_no_missing_file(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text("{ not")
    with pytest.raises(ValueError, match="preprocessor_config.json cannot be read"):
        pretrained_normalisation(str(tmp_path), {"model_type": "dinov2", "image_size": 8})


def test_what_a_file_leaves_out_is_as_its_own_class_has_it(tmp_path):
    """A BitImageProcessor has CLIP's mean, although DINOv2, whose processor it is, was trained with ImageNet's."""
    (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "BitImageProcessor"}')
    found = pretrained_normalisation(str(tmp_path), {"model_type": "dinov2", "image_size": 8})
    assert found.mean == pytest.approx(CLIP_MEAN) and found.std == pytest.approx(CLIP_STD)


@pytest.mark.parametrize(
    "kind, mean", [("dinov2", IMAGENET_MEAN), ("clip_vision_model", CLIP_MEAN), ("siglip_vision_model", HALF)]
)
def test_without_a_file_the_kind_decides_and_the_log_says_so(tmp_path, caplog, kind, mean):
    with caplog.at_level(logging.WARNING):
        found = pretrained_normalisation(str(tmp_path), {"model_type": kind, "image_size": 8})
    assert found.mean == mean and found.fit == "squash"
    assert "no preprocessor_config.json" in caplog.text and kind in caplog.text


# ---- before there was a choice ----


def test_models_from_before_see_as_they_did():
    config = BitGenConfig(feature_dim=4, feature_tokens=1)
    old = {name: value for name, value in config.to_dict().items() if name not in config.normalisation}
    again = BitGenConfig(**old).normalisation
    assert again == {"image_mean": list(IMAGENET_MEAN), "image_std": list(IMAGENET_STD), "image_resample": "bicubic"}
    as_now, as_then = BitGenProcessor(None, 28, **again), BitGenProcessor(None, 28)
    assert as_now.image_fingerprint == as_then.image_fingerprint
    assert as_then.image_fingerprint.endswith(f"whole, bicubic, 28, mean {IMAGENET_MEAN}, std {IMAGENET_STD}")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    assert torch.equal(as_now.image(picture), as_then.image(picture))


@pytest.mark.parametrize(
    "change", [{"image_mean": HALF}, {"image_resample": "bilinear"}, {"image_fit": "crop"}, {"max_image_pixels": 10**9}]
)
def test_features_of_other_pictures_are_other_features(change):
    """A feature cache is found by this."""
    assert BitGenProcessor(None, 28, **change).image_fingerprint != BitGenProcessor(None, 28).image_fingerprint


@pytest.mark.parametrize("change", [{"image_mean": [0.5]}, {"image_std": "x"}, {"image_resample": "sinc"}])
def test_a_model_of_impossible_pictures_is_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        BitGenConfig(feature_dim=4, feature_tokens=1, **change)
