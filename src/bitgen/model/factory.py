"""Builds a model and loads the pretrained vision weights into it, from outside its ``__init__``."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel

from .configuration_bitgen import BitGenConfig
from .modeling_bitgen import BitGenModel
from .vision_towers import check_vision_config, square_sizes

logger = logging.getLogger(__name__)

# What transformers raises of a source that is missing, damaged, of an unknown type, or needs a package not installed.
_UNREADABLE = (OSError, ValueError, TypeError, KeyError, ImportError, StrictDataclassError)

# The published shape of facebook/dinov2-base (its position table is 37 x 37, for 518 pixels), for benchmarks and
# parameter tables without a download.
DINOV2_BASE = {"model_type": "dinov2", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
DINOV2_BASE |= {"patch_size": 14, "image_size": 518}


def random_vision_config(hidden_size: int, layers: int, heads: int, patch_size: int, image_size: int) -> dict[str, Any]:
    """A DINOv2 configuration of the given sizes, for a tower with random weights."""
    return {
        "model_type": "dinov2",
        "hidden_size": hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "patch_size": patch_size,
        "image_size": image_size,
    }


def pretrained_vision_config(source: str, revision: str | None = None) -> dict[str, Any]:
    """The configuration of a tower on the hub or in a local folder.

    Raises:
        ValueError: neither is within reach, or it is no tower that fits; the message says what to do.
    """
    try:
        # Without a word about remote code transformers would stop and ask.
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    except _UNREADABLE as error:
        raise ValueError(_unreachable(source, error)) from error
    vision_config = square_sizes(config.to_dict())
    check_vision_config(vision_config, source)
    return vision_config


def build_model(config: BitGenConfig, pretrained: str | None = None, revision: str | None = None) -> BitGenModel:
    """A model with new modules initialised and, when ``pretrained`` names a hub id or folder, the tower's weights
    loaded bit for bit.

    Raises:
        ValueError: the weights cannot be found, or do not fit the configuration; or the tower does not give the patch
            features that the rest of the network was built for.
    """
    model = BitGenModel(config)
    if pretrained is not None and model.vision_encoder is not None:
        load_pretrained_tower(model, pretrained, revision)
    if model.vision_encoder is not None:
        check_patches(model, pretrained)
    return model


@torch.no_grad()
def check_patches(model: BitGenModel, source: str | None = None) -> None:
    """Look at one blank image and count: the number of patches is computed from the configuration elsewhere.

    Raises:
        ValueError: the tower cannot look at an image of ``image_size``, or gives other patches than computed.
    """
    encoder, config = model.vision_encoder, model.config
    assert encoder is not None
    name = f"vision_encoder={source!r}" if source is not None else "vision_config"
    image = next(encoder.parameters()).new_zeros(1, 3, config.image_size, config.image_size)
    try:
        found = tuple(encoder(image).patches.shape[1:])
    except (RuntimeError, ValueError, TypeError) as error:
        raise ValueError(
            f"{name} cannot look at images of image_size={config.image_size} ({_first_line(error)}). "
            f"Write the size that it was trained with, image_size={config.vision_config['image_size']}."
        ) from error
    expected = (config.tower_grid**2, config.vision_feature_dim)
    if found != expected:
        raise ValueError(
            f"{name} gives {found[0]} patches of width {found[1]} for images of image_size={config.image_size}, and "
            f"{expected[0]} of width {expected[1]} were expected of its configuration "
            f"({type(encoder.tower).__name__}, {encoder.prefix_tokens} tokens before the patches). Choose another "
            "encoder."
        )


@torch.no_grad()
def load_pretrained_tower(model: BitGenModel, source: str, revision: str | None = None) -> None:
    """Copy the tower's pretrained weights into ``model``, leaving LoRA's as they are.

    Raises:
        ValueError: the weights cannot be read, or are not exactly those of this tower.
    """
    encoder = model.vision_encoder
    assert encoder is not None
    try:
        pretrained, loading = AutoModel.from_pretrained(
            source, revision=revision, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
        )
    except _UNREADABLE as error:
        raise ValueError(_unreachable(source, error)) from error
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"vision_encoder={source!r}: its weights cannot be read ({_first_line(error)}). Download the folder again."
        ) from error
    # transformers fills what a file lacks with random numbers; a tower like that must not pass for a pretrained one.
    unused = encoder.kind.unused
    if lacking := sorted(name for name in loading["missing_keys"] if not name.startswith(unused)):
        raise ValueError(
            f"vision_encoder={source!r} lacks {len(lacking)} weights, {lacking[0]} among them. Download it again."
        )
    weights = dict(pretrained.named_parameters())
    own = {name.replace(".base_layer.", "."): parameter for name, parameter in encoder.tower_parameters()}
    shapes = [{name: tuple(p.shape) for name, p in tensors.items()} for tensors in (weights, own)]
    if shapes[0] != shapes[1]:
        name = next(n for n in sorted({*weights, *own}) if shapes[0].get(n) != shapes[1].get(n))
        raise ValueError(
            f"vision_encoder={source!r} does not fit this model: {name} is {shapes[0].get(name, 'absent')} there and "
            f"{shapes[1].get(name, 'absent')} here. Build the model from this encoder's own configuration."
        )
    for name, parameter in own.items():
        # The unused ones that a file lacks: the same on every rank and in every run.
        parameter.copy_(torch.zeros_like(parameter) if name in loading["missing_keys"] else weights[name])
    encoder.reset_magnitudes()
    logger.info("loaded %d pretrained vision tensors from %s", len(own), source)


@torch.no_grad()
def initialise_random_tower(model: BitGenModel) -> None:
    """Give an untrained tower weights whose frozen features are worth reading.

    DINOv2's own initialisation (std 0.02) suits training it: in a narrow tower its layers then add next to nothing, and
    positions are a hundredth of the features. Here every matrix keeps the scale of its input (std 1 / sqrt(fan-in));
    positions are the fixed 2-D sines and cosines of Vaswani et al. (arXiv 1706.03762, section 3.5) along x and y.
    """
    encoder = model.vision_encoder
    assert encoder is not None
    for name, parameter in encoder.tower_parameters():
        if parameter.dim() > 1 and name.endswith("weight"):
            parameter.normal_(std=parameter[0].numel() ** -0.5)
    table = encoder.tower.embeddings.position_embeddings  # (1, 1 + patches, C), CLS first
    side, quarter = math.isqrt(table.shape[1] - 1), table.shape[2] // 4
    frequencies = side ** -torch.linspace(0, 1, quarter)  # from one radian a patch to one radian an image side
    angles = torch.arange(side)[:, None] * frequencies  # (side, C / 4)
    along = torch.cat((angles.sin(), angles.cos()), dim=1)
    grid = torch.cat(
        (along[:, None].expand(-1, side, -1), along[None].expand(side, -1, -1)), dim=2
    )  # (side, side, C): y, then x
    table[0, 1:, : 4 * quarter] = grid.flatten(0, 1).to(table)


def _unreachable(source: str, error: Exception) -> str:
    looks_local = Path(source).exists() or source.startswith((".", "/", "~"))
    where = "that folder holds no usable model" if looks_local else "it is no local folder and the hub did not answer"
    return (
        f"vision_encoder={source!r} cannot be loaded: {where}. Where there is a network, run "
        f"`hf download {source if not looks_local else 'facebook/dinov2-base'} --local-dir dinov2-base`, copy that "
        "folder here and pass `--vision_encoder dinov2-base` (a folder with config.json and model.safetensors). "
        "To try everything without it: `make quickstart`, or `--vision_encoder random`. "
        f"({type(error).__name__}: {_first_line(error)})"
    )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")[:200]
