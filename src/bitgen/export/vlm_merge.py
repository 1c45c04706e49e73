"""Adapters of a vision-language model folded into the weights that they adapt, so that it needs no peft."""

from __future__ import annotations

import dataclasses

from torch import nn

from bitgen.trained_vlm import TrainedVlm
from bitgen.vlm.adapters import is_adapted, merge
from bitgen.vlm.modeling import LANGUAGE, VISION


def has_adapters(trained: TrainedVlm) -> bool:
    """Whether its language model or its encoder has some."""
    vision = trained.description.vision
    return trained.description.adapter is not None or (vision is not None and vision.tuning == "lora")


def merged(trained: TrainedVlm) -> TrainedVlm:
    """The same model without adapters: they are folded, in place, into the language model and the encoder.

    Raises:
        ValueError: the language model is of 4 or 8 bits, or weights are not finite.
    """
    description, model = trained.description, trained.model
    own, vision = set(description.own_parts), description.vision
    if description.adapter is not None:
        merge(model.language)
        own.add(LANGUAGE)
    if vision is not None and vision.tuning == "lora":
        assert model.tower is not None
        _fold(model.tower)
        own.add(VISION)
        vision = dataclasses.replace(vision, tuning="full")
    model.own_parts = frozenset(own)
    settled = dataclasses.replace(description, adapter=None, vision=vision, own_parts=tuple(sorted(own)))
    return trained._replace(description=settled)


def _fold(tower: nn.Module) -> None:
    for name, layer in [pair for pair in tower.named_modules() if is_adapted(pair[1])]:
        layer.merge(safe_merge=True)
        parent, _, last = name.rpartition(".")
        setattr(tower.get_submodule(parent), last, layer.get_base_layer())
