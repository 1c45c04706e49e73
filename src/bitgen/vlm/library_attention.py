"""The attention of transformers' models, computed on CPUs as BitGen's own is (``model.attention.attending_dtype``), and
in packed rows of each sample alone."""

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


def packed_lengths(model: Any, position_ids: torch.Tensor) -> dict[str, Any]:
    """What tells a model's attention on a CPU which tokens of packed rows ``position_ids [R, T]`` are one sample's.

    Nothing for other devices and other kinds of attention: they tell samples apart by a mask over whole rows, where a
    row costs T * T however short its samples are.
    """
    if position_ids.device.type != "cpu" or model.config._attn_implementation != ATTENTION:
        return {}
    starts = torch.ones_like(position_ids, dtype=torch.bool)
    starts[:, 1:] = position_ids.diff(dim=1) != 1
    ends = [*starts.flatten().nonzero().flatten().tolist(), position_ids.numel()]
    # transformers' name for where sequences end; it goes through every model to its attention.
    return {"cu_seq_lens_q": torch.tensor(ends, dtype=torch.int32)}


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
    ends = options.pop("cu_seq_lens_q", None)
    with torch.autocast("cpu", enabled=False):
        if ends is not None:
            lengths = ends.diff().tolist()
            if max(lengths) <= (options.get("sliding_window") or max(lengths)):  # else the mask has to say it
                return _attend_apart(module, (query, key, value), lengths, options).to(dtype), None
        attended, weights = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    return attended.to(dtype), weights


def _attend_apart(
    module: nn.Module, heads: tuple[torch.Tensor, ...], lengths: list[int], options: dict[str, Any]
) -> torch.Tensor:
    """Causal attention of each sample alone, ``[R, T, heads, D]``; ``lengths`` of all samples, row after row."""
    rows, _, length, _ = heads[0].shape
    # Split, not sliced: a slice's gradient is as large as the whole.
    parts = [part.transpose(1, 2).flatten(0, 1).split(lengths) for part in heads]
    attended = [
        sdpa_attention_forward(module, *(part.transpose(0, 1)[None] for part in sample), None, **options)[0][0]
        for sample in zip(*parts, strict=True)
    ]
    return torch.cat(attended).unflatten(0, (rows, length))


AttentionInterface.register(ATTENTION, _attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
