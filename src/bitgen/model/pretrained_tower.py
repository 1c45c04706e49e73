"""Pretrained vision towers from the hub or a folder: configuration, weights, and how they see.

What a source may be: a tower that transformers saved; a whole CLIP or SigLIP, of which the half for images is taken; a
vision transformer of timm; or a model of open_clip whose half for images is one of timm's (such as BiomedCLIP).
"""

from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig
from transformers.image_processing_base import ImageProcessingMixin

from .frozen_tower import FrozenTower
from .image_settings import ImageSettings, from_preprocessor, normalisation
from .open_clip_files import open_clip_config, open_clip_images, open_clip_weights, timm_images, timm_vision_config
from .vision_towers import IMAGE_HALVES, TIMM, TOWER_KINDS, check_vision_config, square_sizes, tower_kind

logger = logging.getLogger(__name__)

# What transformers raises of a source that is missing, damaged, of an unknown type, or needs a package not installed.
_UNREADABLE = (RecursionError, OSError, ValueError, TypeError, KeyError, ImportError, StrictDataclassError)


def pretrained_vision_config(source: str, revision: str | None = None) -> dict[str, Any]:
    """The configuration of a tower on the hub or in a local folder.

    Raises:
        ValueError: neither is within reach, or it is no tower that fits; the message says what to do.
    """
    try:
        # Without a word about remote code transformers would stop and ask.
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    except _UNREADABLE as error:
        of_open_clip = open_clip_config(source, revision)
        if of_open_clip is None:
            raise ValueError(_unreachable(source, error)) from error
        vision_config = timm_vision_config(*_architecture(of_open_clip, source), source)
    else:
        vision_config = config.to_dict()
        if config.model_type in IMAGE_HALVES:
            vision_config = config.vision_config.to_dict()
        elif config.model_type == TIMM:
            images = timm_images(vision_config)
            arguments = vision_config.get("model_args") or {}
            vision_config = timm_vision_config(vision_config["architecture"], images.size, source, arguments)
    vision_config = square_sizes(vision_config)
    check_vision_config(vision_config, source)
    return vision_config


def pretrained_images(source: str, vision_config: dict[str, Any], revision: str | None = None) -> ImageSettings:
    """How a pretrained tower was taught to see: all of its image processor's settings.

    Where there are none, those of its kind, which the log then says.

    Raises:
        ValueError: the settings have another form than transformers writes; the message names them.
    """
    content, default = _preprocessing(source, vision_config, revision)
    try:
        return from_preprocessor(content, default)
    except ValueError as error:
        raise ValueError(f"{_file_of(source)}: {error}") from error


def pretrained_normalisation(source: str, vision_config: dict[str, Any], revision: str | None = None) -> ImageSettings:
    """As :func:`pretrained_images`, of a whole picture that is squashed to a square: mean, deviation and resampling."""
    content, default = _preprocessing(source, vision_config, revision)
    try:
        found = normalisation(content, default)
    except ValueError as error:
        raise ValueError(f"{_file_of(source)}: {error}") from error
    return ImageSettings(mean=found.mean, std=found.std, resample=found.resample)


def _preprocessing(
    source: str, vision_config: dict[str, Any], revision: str | None
) -> tuple[dict[str, Any], ImageSettings]:
    """What a source's image processor says, and what holds for what it leaves out."""
    default = tower_kind(vision_config).images
    try:
        content, _ = ImageProcessingMixin.get_image_processor_dict(source, revision=revision)
    except _UNREADABLE as error:
        if (Path(source) / "preprocessor_config.json").is_file():
            raise ValueError(f"{_file_of(source)} cannot be read ({_first_line(error)}). Download it again.") from error
        of_open_clip = open_clip_config(source, revision)
        if of_open_clip is not None:
            return {}, open_clip_images(of_open_clip, vision_config["image_size"])
        if vision_config.get("model_type") == TIMM:
            return {}, timm_images(_configuration(source, revision).to_dict())
        logger.warning(
            "%s has no preprocessor_config.json: its pictures are normalised as those of other %s towers, mean %s, "
            "std %s, %s",
            source, vision_config.get("model_type", "dinov2"), default.mean, default.std, default.resample,
        )  # fmt: skip
        return {}, default
    if not isinstance(content, dict):
        raise ValueError(f"{_file_of(source)} holds no object: download it again")
    return {**_defaults_of(content), **content}, default


def _defaults_of(content: dict[str, Any]) -> dict[str, Any]:
    """What transformers takes for the fields that the file leaves out: those of the image processor that it names."""
    import transformers

    name = str(content.get("image_processor_type") or content.get("feature_extractor_type") or "")
    kind = getattr(transformers, name.replace("FeatureExtractor", "ImageProcessor"), None)
    fields = ("image_mean", "image_std", "resample", "do_normalize", "do_center_crop", "size", "crop_size")
    found = {field: getattr(kind, field, None) for field in fields}
    if "size" in content:  # the class's crop belongs to the class's size
        found.pop("crop_size")
    return {field: value for field, value in found.items() if isinstance(value, (bool, int, list, tuple, dict))}


def _file_of(source: str) -> str:
    return f"vision_encoder={source!r}, preprocessor_config.json"


def _configuration(source: str, revision: str | None) -> Any:
    """Raises ``ValueError`` where there is none."""
    try:
        return AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    except _UNREADABLE as error:
        raise ValueError(_unreachable(source, error)) from error


def _architecture(config: dict[str, Any], source: str) -> tuple[str, int]:
    """The name of open_clip's half for images in timm, and its image size."""
    vision = config.get("model_cfg", {}).get("vision_cfg", {})
    name, size = vision.get("timm_model_name"), vision.get("image_size", 224)
    if not isinstance(name, str):
        raise ValueError(
            f"vision_encoder={source!r} is a model of open_clip whose half for images is not one of timm's: use the "
            "same model in transformers' format (its config.json says clip or siglip), or compute features beforehand."
        )
    return name, size


# ---------------------------------------------------------------- weights


@torch.no_grad()
def load_pretrained_weights(tower: FrozenTower, source: str, revision: str | None = None) -> int:
    """Copy pretrained weights into a tower, leaving LoRA's as they are; the number of tensors.

    Raises:
        ValueError: the weights cannot be read, or are not exactly those of this tower.
    """
    weights, lacking = _read_weights(tower, source, revision)
    # transformers fills what a file lacks with random numbers; a tower like that must not pass for a pretrained one.
    if needed := sorted(name for name in lacking if not name.startswith(tower.kind.unused)):
        raise ValueError(
            f"vision_encoder={source!r} lacks {len(needed)} weights, {needed[0]} among them. Download it again."
        )
    own = {name.replace(".base_layer.", "."): parameter for name, parameter in tower.tower_parameters()}
    shapes = [{name: tuple(p.shape) for name, p in tensors.items()} for tensors in (weights, own)]
    if shapes[0] != shapes[1]:
        name = next(n for n in sorted({*weights, *own}) if shapes[0].get(n) != shapes[1].get(n))
        raise ValueError(
            f"vision_encoder={source!r} does not fit this model: {name} is {shapes[0].get(name, 'absent')} there and "
            f"{shapes[1].get(name, 'absent')} here. Build the model from this encoder's own configuration."
        )
    for name, parameter in own.items():
        # The unused ones that a file lacks: the same on every rank and in every run.
        parameter.copy_(torch.zeros_like(parameter) if name in lacking else weights[name])
    logger.info("loaded %d pretrained vision tensors from %s", len(own), source)
    return len(own)


def _read_weights(tower: FrozenTower, source: str, revision: str | None) -> tuple[dict[str, torch.Tensor], set[str]]:
    """The weights of a source by their names in the tower, and the names of those that it lacks."""
    try:
        _configuration(source, revision)
    except ValueError:
        path = open_clip_weights(source, revision) if tower.tower.config.model_type == TIMM else None
        if path is None:
            raise
        return _trunk(path, source), set()
    try:
        # The tower's own class: of a whole CLIP or SigLIP it reads the half for images, which AutoModel would not.
        pretrained, loading = type(tower.tower).from_pretrained(
            source, revision=revision, dtype=torch.float32, output_loading_info=True
        )
    except _UNREADABLE as error:
        raise ValueError(_unreachable(source, error)) from error
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"vision_encoder={source!r}: its weights cannot be read ({_first_line(error)}). Download the folder again."
        ) from error
    assert isinstance(pretrained, nn.Module)
    return dict(pretrained.named_parameters()), set(loading["missing_keys"])


def _trunk(path: Path, source: str) -> dict[str, torch.Tensor]:
    """The half for images in a file of open_clip, under transformers' names."""
    try:
        if path.suffix == ".safetensors":
            weights = load_file(path)
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        raise ValueError(
            f"vision_encoder={source!r}: {path.name} cannot be read ({_first_line(error)}). Download it again."
        ) from error
    beginning = "visual.trunk."
    found = {name.removeprefix(beginning): w for name, w in weights.items() if name.startswith(beginning)}
    return {f"timm_model.{name}": tensor.float() for name, tensor in found.items()}


def _unreachable(source: str, error: Exception) -> str:
    looks_local = Path(source).exists() or source.startswith((".", "/", "~"))
    where = "that folder holds no usable model" if looks_local else "it is no local folder and the hub did not answer"
    wanted = "facebook/dinov2-base" if looks_local else source
    folder = wanted.rsplit("/", 1)[-1]
    return (
        f"vision_encoder={source!r} cannot be loaded: {where}. Where there is a network, run "
        f"`hf download {wanted} --local-dir {folder}`, copy that folder here and pass `--vision_encoder {folder}` (a "
        "folder with config.json, preprocessor_config.json and model.safetensors). Types that are known: "
        f"{', '.join([*TOWER_KINDS, *IMAGE_HALVES])}; docs/design.md, A vision encoder, says how to add one. To try "
        "everything without it: `make quickstart`, or "
        f"`--vision_encoder random`. ({type(error).__name__}: {_first_line(error)})"
    )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")[:200]
