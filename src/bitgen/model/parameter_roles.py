"""What each parameter of BitGen is: the part it belongs to, its kind, and whether weight decay applies."""

from __future__ import annotations

from typing import NamedTuple

# Parts that are named by the first word of a parameter's name; the rest are the decoder's.
VISION, LORA, FUSION = "vision_base", "lora", "fusion"
_PARTS = {
    "vision_encoder": VISION,
    "compressor": "compressor",
    "compressor_convolutions": "compressor",
    "image_pooling": "heads",
    "embeddings": "embeddings",
    "memory": "memory",
    "recall": "recall",
    "image_projection": "heads",
    "text_projection": "heads",
    "itm_head": "heads",
}
NEW_PARTS = ("compressor", FUSION, "memory", "recall", "decoder", "embeddings", "heads")

# Kinds. BASE: pretrained and frozen. TOWER, and of its matrices TOWER_MATRIX: pretrained and tuned (`full`). FIXED:
# what then still gets no gradient.
BASE, TOWER, TOWER_MATRIX, FIXED, LORA_A, LORA_B = "base", "tower", "tower_matrix", "fixed", "a", "b"
# GATE: a factor of what is behind it. MATRIX: maps one space to another. WEIGHT: any other. READER: a matrix that reads
# what was recalled.
GATE, MATRIX, WEIGHT, READER = "gate", "matrix", "weight", "reader"

# No weight decay beside every tensor of fewer than two dimensions (norms, biases, gates, temperature). Decay is
# decoupled from the gradient, so a row that a batch does not touch would shrink all the same: an embedding of a rare
# word would be punished for being rare. The memory's prior is the origin that the KL pulls towards, not a weight.
# Recall's tables of places count as matrices: models that speak were measured so.
NO_DECAY_WORDS = (
    *("embedding", "embed_", "pos_embed", "gate", "logvar", "prior", "temperature"),
    *("cls_token", "mask_token", "reg_token", "dist_token"),
)


class ParameterRole(NamedTuple):
    """``part`` of the network, ``kind`` of parameter, and whether weight decay applies to it."""

    part: str
    kind: str
    decays: bool


def part_of(name: str) -> str:
    """The part of the network that a parameter, by its name in the model, is counted under."""
    if "lora_" in name:
        return LORA
    if FUSION in name:
        return FUSION
    return _PARTS.get(name.split(".", 1)[0], "decoder")


def role_of(name: str, dimensions: int, tuning: str, reached: bool = True) -> ParameterRole:
    """The role of a parameter.

    Args:
        name: in the model.
        dimensions: of its tensor.
        tuning: the model's ``vision_tuning``.
        reached: of the tower's weights: whether patch features depend on it.
    """
    part = part_of(name)
    if part == LORA:
        return ParameterRole(part, LORA_B if "lora_B" in name else LORA_A, dimensions >= 2)
    decays = dimensions >= 2 and not any(word in name.lower() for word in NO_DECAY_WORDS)
    if part == VISION:
        tuned = TOWER_MATRIX if decays and dimensions == 2 else TOWER
        kind = BASE if tuning != "full" else tuned if reached else FIXED
    elif name.rsplit(".", 1)[-1] == "gate":
        kind = GATE
    else:
        kind = MATRIX if decays and dimensions == 2 else WEIGHT
    if kind == MATRIX and name.startswith("recall.readers."):
        kind = READER
    return ParameterRole(part, kind, decays)


# What a phase after the first unfreezes of the vision tower.
ADAPTER_KINDS = (LORA_A, LORA_B, TOWER, TOWER_MATRIX)
