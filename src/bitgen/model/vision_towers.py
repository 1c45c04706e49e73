"""The kinds of pretrained vision towers that the network can look through, and what is particular to each."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from .image_settings import CLIP_MEAN, CLIP_STD, CROP, HALF, ImageSettings

_MASK = "embeddings.mask_token"
# A key's bias moves all of a query's scores alike, which softmax undoes. The spelling depends on transformers' release.
_KEY_BIASES = ("k_proj.bias", "key.bias")
# Models of images and text: their half for images is one of the kinds below.
IMAGE_HALVES = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}
# Towers that timm builds: transformers wraps them.
TIMM = "timm_wrapper"
_SIZES = ("hidden_size", "patch_size", "image_size")
# What a file may ask of timm's `create_model`: a shape. Others would read files or ask the hub.
_TIMM_ARGUMENTS = {
    "img_size", "dynamic_img_size", "dynamic_img_pad", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio",
    "qkv_bias", "qk_norm", "init_values", "class_token", "reg_tokens", "no_embed_class", "pre_norm", "global_pool",
}  # fmt: skip


class TowerKind(NamedTuple):
    """What must be known of a kind of tower beside its configuration.

    Args:
        cls_tokens: tokens before the patches, register tokens not counted.
        gradient_free: ends of the names of weights that get no gradient, although the tower uses them otherwise.
        unused: beginnings of the names of modules that the patch features do not pass through; checkpoints of other
            tasks may lack them.
        asks_to_interpolate: whether ``forward`` must be told that the image may have another size than the positions.
        normed: whether ``last_hidden_state`` has passed the final LayerNorm; else it is the last block's output.
        images: how these towers see, where nothing else says so: as the published ones of this kind.
    """

    cls_tokens: int
    gradient_free: tuple[str, ...]
    unused: tuple[str, ...] = ()
    asks_to_interpolate: bool = False
    normed: bool = True
    images: ImageSettings = ImageSettings()


_DINOV2 = TowerKind(1, (_MASK, *_KEY_BIASES), images=ImageSettings(fit=CROP))
_HALVES = ImageSettings(mean=HALF, std=HALF)
# By ``model_type``. In DINOv3 a key's bias is turned by its position, so softmax does not undo it.
TOWER_KINDS = {
    "dinov2": _DINOV2,
    "dinov2_with_registers": _DINOV2,
    "dinov3_vit": TowerKind(1, (_MASK,), images=ImageSettings(resample="bilinear")),
    "vit": TowerKind(
        1,
        (_MASK, *_KEY_BIASES),
        unused=("pooler.",),
        asks_to_interpolate=True,
        images=_HALVES._replace(resample="bilinear"),
    ),
    "clip_vision_model": TowerKind(
        1,
        _KEY_BIASES,
        unused=("post_layernorm.",),
        asks_to_interpolate=True,
        normed=False,
        images=ImageSettings(mean=CLIP_MEAN, std=CLIP_STD, fit=CROP),
    ),
    "siglip_vision_model": TowerKind(0, _KEY_BIASES, unused=("head.",), asks_to_interpolate=True, images=_HALVES),
    TIMM: TowerKind(1, (), unused=("timm_model.fc_norm.", "timm_model.attn_pool."), images=ImageSettings(fit=CROP)),
}


def tower_kind(vision_config: dict[str, Any]) -> TowerKind:
    """The kind of a configuration that :func:`check_vision_config` accepts."""
    return TOWER_KINDS[vision_config.get("model_type", "dinov2")]


def prefix_tokens(vision_config: dict[str, Any]) -> int:
    """Tokens before the patches: CLS, where there is one, and registers."""
    counted = vision_config.get("num_prefix_tokens")  # as timm has it
    if counted is not None:
        return counted
    return tower_kind(vision_config).cls_tokens + vision_config.get("num_register_tokens", 0)


def check_vision_config(vision_config: dict[str, Any], encoder: str | None = None) -> None:
    """Refuse what is no supported tower.

    Args:
        encoder: the folder or hub id that it comes from, for the message.

    Raises:
        ValueError: the model is of another kind, or its images or patches are not square or not RGB.
    """
    kind = vision_config.get("model_type", "dinov2")
    name = f"vision_encoder={encoder!r}" if encoder is not None else "vision_config"
    if kind not in TOWER_KINDS:
        raise ValueError(f"{name} is a {kind} model, which cannot be the vision tower. {_remedy(kind)}")
    if kind == TIMM:
        check_timm(vision_config.get("architecture"), vision_config.get("model_args") or {})
    if missing := [field for field in _SIZES if field not in vision_config]:
        raise ValueError(f"{name} lacks {', '.join(missing)}: copy the whole configuration of the {kind} model.")
    for field in _SIZES:
        if not isinstance(vision_config[field], int):
            raise ValueError(
                f"{name} has {field}={vision_config[field]!r}, and images and patches must be square, with one number "
                "of pixels a side. Choose another encoder."
            )
    if vision_config.get("num_channels", 3) != 3:
        raise ValueError(
            f"{name} takes images of {vision_config['num_channels']} channels, and images here have 3 (RGB). Choose "
            "another encoder."
        )


def check_timm(architecture: Any, arguments: dict[str, Any]) -> None:
    """Refuse a name or an argument by which timm would do more than build a network.

    Raises:
        ValueError: it names what is not allowed.
    """
    if not isinstance(architecture, str) or not re.fullmatch(r"[A-Za-z0-9_.-]+", architecture):
        raise ValueError(f"vision_config has architecture={architecture!r}, which is no name of a model of timm.")
    if others := sorted(arguments.keys() - _TIMM_ARGUMENTS):
        raise ValueError(f"vision_config has {others[0]!r} in model_args, which is no part of a network's shape.")


def square_sizes(vision_config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with one number where image or patch size are given as two equal ones."""
    changed = {}
    for field in ("image_size", "patch_size"):
        size = vision_config.get(field)
        if isinstance(size, (list, tuple)) and len(size) in (1, 2) and len(set(size)) == 1:
            changed[field] = size[0]
    return {**vision_config, **changed}


def _remedy(kind: str) -> str:
    supported = f"Supported types: {', '.join(TOWER_KINDS)}."
    if kind in IMAGE_HALVES:
        return f"It reads images and text: give its vision_config, of type {IMAGE_HALVES[kind]}. {supported}"
    return (
        f"{supported} Pass a hub id or folder of one of them, for example `--vision_encoder facebook/dinov2-base`; or "
        "compute features with your encoder beforehand and train with `--vision_encoder features`. A vision "
        "transformer of another type needs one line in TOWER_KINDS (docs/design.md, A vision encoder)."
    )
