"""The attention of transformers' models, computed on CPUs as BitGen's own is (``model.attention.attending_dtype``)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from bitgen.model.attention import attending_dtype

# What the configuration of a model names its attention by in memory; it is in no file. transformers looks for "sdpa"
# in such names where it asks what a model's class can do.
ATTENTION = "sdpa_float32_on_cpu"


def use_fast_attention(model: Any) -> None:
    """Let a model of transformers attend in float32 on CPUs, where it would use torch's fused attention.

    Elsewhere, and where nothing is in half precision, its numbers stay the same to the last bit. Other kinds of
    attention (``eager``, flash) and models that cannot change theirs (timm's) are left as they are.
    """
    if model.config._attn_implementation == "sdpa" and model._can_set_attn_implementation():
        model.set_attn_implementation(ATTENTION)


def _attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    if query.device.type != "cpu":
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    attending = attending_dtype(query)
    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = attention_mask.to(attending)
    dtype, (query, key, value) = value.dtype, (heads.to(attending) for heads in (query, key, value))
    with torch.autocast("cpu", enabled=False):
        attended, weights = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    return attended.to(dtype), weights


AttentionInterface.register(ATTENTION, _attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
