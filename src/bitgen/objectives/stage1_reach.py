"""Stage 1's settings, and which parameters get no gradient from the losses that they switch on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from bitgen.model.configuration_bitgen import BitGenConfig
from bitgen.model.modeling_bitgen import BitGenModel


class Stage1Settings(Protocol):
    """The settings read here; ``bitgen.config`` documents them."""

    contrastive_weight: float
    itm_weight: float
    memory_kl_weight: float
    text_loss_weight: float
    queue_weight: float
    label_smoothing: float
    temperature: float
    itm_temperature: float
    itm_temperature_start: float | None
    token_dropout: float
    queue_size: int


def unreached_by(model: BitGenModel, settings: Stage1Settings, sees_pairs: bool, fuses: bool) -> Callable[[str], bool]:
    """Whether a parameter, by its name in the objective, gets no gradient; adapters that are frozen for now do.

    Args:
        sees_pairs: whether the run has image-caption pairs.
        fuses: whether a loss reads captions fused with their images.
    """
    prefixes = ["model.recall"]  # which episodes alone train
    if not (sees_pairs and settings.contrastive_weight):
        prefixes += ["log_temperature", "model.image_pooling", "model.image_projection", "model.text_projection"]
    if not (sees_pairs and settings.itm_weight):
        prefixes += ["model.itm_head"]
    if model.memory is not None and not (sees_pairs and settings.memory_kl_weight):
        prefixes += ["model.memory.gpm"]
    if not sees_pairs:
        prefixes += ["model.compressor", "model.vision_encoder"]
    parts = [*([] if fuses else [".fusion."]), *without_choice(model.config)]
    return lambda name: name.startswith(tuple(prefixes)) or any(part in name for part in parts)


def without_choice(config: BitGenConfig) -> list[str]:
    """Parts of names of the scores of a softmax over one token alone, which has no gradient for them."""
    parts = ["image_pooling.scores"] if config.image_tokens == 1 else []
    if config.pooled_tokens == 1 and config.fusion != "concat_mlp":  # that has no softmax
        parts += ["fusion.norm", "fusion.attention.query"]
    return parts
