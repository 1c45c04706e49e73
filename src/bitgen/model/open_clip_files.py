"""What timm and open_clip keep beside their weights: which vision transformer it is, and how it sees."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from typing import Any

import torch
from transformers.utils import cached_file

from .image_settings import CLIP_MEAN, CLIP_STD, CROP, PAD, SQUASH, ImageSettings
from .vision_towers import TIMM, check_timm

_CONFIG = "open_clip_config.json"
_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
# open_clip's words for how a picture becomes a square.
_FITS = {"shortest": CROP, "squash": SQUASH, "longest": PAD}


def _file(source: str, name: str, revision: str | None) -> Path | None:
    try:
        found = cached_file(source, name, revision=revision)
    except (OSError, ValueError):
        return None
    return Path(found) if found is not None else None


def open_clip_config(source: str, revision: str | None = None) -> dict[str, Any] | None:
    """``open_clip_config.json`` of a folder or hub id; None: it has none that can be read."""
    path = _file(source, _CONFIG, revision)
    if path is None:
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and isinstance(content.get("model_cfg"), dict) else None


def open_clip_weights(source: str, revision: str | None = None) -> Path | None:
    """The file of weights that open_clip wrote; None: there is none."""
    return next((path for name in _WEIGHTS if (path := _file(source, name, revision)) is not None), None)


def open_clip_images(config: dict[str, Any], size: int) -> ImageSettings:
    """How open_clip prepares pictures; what ``preprocess_cfg`` leaves out is as in its source (transform.py)."""
    given = config.get("preprocess_cfg")
    given = given if isinstance(given, dict) else {}
    return ImageSettings(
        size,
        tuple(given.get("mean") or CLIP_MEAN),
        tuple(given.get("std") or CLIP_STD),
        "bilinear" if given.get("interpolation") == "bilinear" else "bicubic",
        _FITS.get(given.get("resize_mode") or "shortest", CROP),
    )


def timm_images(config: dict[str, Any]) -> ImageSettings:
    """How a model of timm sees, by the ``pretrained_cfg`` in its configuration (timm/data/config.py)."""
    given = config.get("pretrained_cfg")
    given = given if isinstance(given, dict) else config
    size, share = given.get("input_size") or (3, 224, 224), given.get("crop_pct") or 0.875
    squashes = given.get("crop_mode") == "squash"
    return ImageSettings(
        size[-1],
        tuple(given.get("mean") or ImageSettings().mean),
        tuple(given.get("std") or ImageSettings().std),
        given.get("interpolation") or "bicubic",
        SQUASH if squashes else CROP,
        None if squashes else math.floor(size[-1] / share),
    )


def timm_vision_config(
    architecture: str, image_size: int | None, source: str, arguments: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The configuration by which transformers builds a vision transformer of timm.

    Args:
        arguments: more that timm's ``create_model`` takes.
        source: for messages.

    Raises:
        ValueError: timm is not installed, does not know the name, or it is no vision transformer.
    """
    try:
        timm: Any = importlib.import_module("timm")  # an extra, which type checks must not ask for
    except ImportError:
        raise ValueError(
            f"vision_encoder={source!r} is {architecture} of timm, which is not installed: `pip install timm`."
        ) from None
    check_timm(architecture, arguments or {})
    arguments = {**(arguments or {}), "dynamic_img_size": True}
    if image_size is not None:
        arguments["img_size"] = image_size
    try:
        with torch.device("meta"):
            model = timm.create_model(architecture, num_classes=0, **arguments)
        sizes = {
            "hidden_size": model.embed_dim,
            "num_hidden_layers": len(model.blocks),
            "num_prefix_tokens": model.num_prefix_tokens,
            "patch_size": list(model.patch_embed.patch_size),
            "image_size": list(model.patch_embed.img_size),
        }
    except (RuntimeError, TypeError, AttributeError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), "")[:120]
        raise ValueError(
            f"vision_encoder={source!r} is {architecture} of timm, which is no vision transformer that fits "
            f"({reason}). Choose one of the vit_ models."
        ) from error
    return {"model_type": TIMM, "architecture": architecture, "model_args": arguments, "do_pooling": False, **sizes}
