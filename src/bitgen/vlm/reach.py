"""Which parameters of an encoder its features depend on: not those after the last layer that is read."""

from __future__ import annotations

import torch

from bitgen.vlm.vision import VisionTower


def reached_parameters(tower: VisionTower) -> set[str]:
    """Names of the tower's parameters, adapters among them, that get a gradient from its features.

    A tower of the same configuration without memory (on the meta device) is asked, so that nothing is computed.
    """
    with torch.device("meta"):
        probe = VisionTower(tower.vision_config, tower.select_layer)
        named = {name: parameter.requires_grad_() for name, parameter in probe.named_parameters()}
        side = probe.spec.image_size
        assert side is not None
        features = probe(torch.empty(1, 3, side, side))
    found = torch.autograd.grad(features.sum(), list(named.values()), allow_unused=True)
    reached = {name for name, gradient in zip(named, found, strict=True) if gradient is not None}
    return {name for name, _ in tower.named_parameters() if _plain(name) in reached}


def _plain(name: str) -> str:
    """The name without an adapter; for an adapter's parameter that of the weight it is on."""
    layer, adapter, _ = name.partition(".lora_")
    return f"{layer}.weight" if adapter else name.replace(".base_layer.", ".")
