"""Builds a model and loads the pretrained vision weights into it, from outside its ``__init__``."""

from __future__ import annotations

import math
from typing import Any

import torch

from .configuration_bitgen import BitGenConfig
from .feature_compressor import grid_positions
from .frozen_tower import FrozenTower
from .modeling_bitgen import BitGenModel
from .pretrained_tower import load_pretrained_weights

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


def build_model(config: BitGenConfig, pretrained: str | None = None, revision: str | None = None) -> BitGenModel:
    """A model with new modules initialised and, when ``pretrained`` names a hub id or folder, the tower's weights
    loaded bit for bit.

    Raises:
        ValueError: the weights cannot be found, or do not fit the configuration; or the tower does not give the patch
            features that the rest of the network was built for.
    """
    model = BitGenModel(config)
    if pretrained is not None and model.vision_encoder is not None:
        load_pretrained_weights(model.vision_encoder, pretrained, revision)
        model.vision_encoder.reset_magnitudes()
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
def initialise_random_tower(encoder: FrozenTower) -> None:
    """Give an untrained tower weights whose frozen features are worth reading.

    DINOv2's own initialisation (std 0.02) suits training it: in a narrow tower its layers then add next to nothing, and
    positions are a hundredth of the features. Here every matrix keeps the scale of its input (std 1 / sqrt(fan-in));
    positions are the fixed 2-D sines and cosines of Vaswani et al. (arXiv 1706.03762, section 3.5) along x and y.
    """
    for name, parameter in encoder.tower_parameters():
        if parameter.dim() > 1 and name.endswith("weight"):
            parameter.normal_(std=parameter[0].numel() ** -0.5)
    table = encoder.tower.embeddings.position_embeddings  # (1, 1 + patches, C), CLS first
    side, used = math.isqrt(table.shape[1] - 1), table.shape[2] // 4 * 4
    table[0, 1:, :used] = grid_positions(side, used).to(table)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")[:200]
