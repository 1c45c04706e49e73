"""LoRA adapters folded into the weights they adapt, so that a model needs no peft."""

from __future__ import annotations

import copy

import torch

from bitgen.model.modeling_bitgen import BitGenModel


def merged_state(model: BitGenModel) -> dict[str, torch.Tensor]:
    """The state of the same model built with ``vision_tuning="frozen"``: same outputs, no adapters.

    ``model`` is left as it is.
    """
    merged = copy.deepcopy(model)
    for module in merged.modules():
        if hasattr(module, "lora_A"):
            module.merge(safe_merge=True)  # safe: raises on weights that are not finite
    adapters = merged.adapter_names()
    return {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in merged.state_dict().items()
        if name not in adapters
    }
