"""Multi-head attention arithmetic shared by the causal and the cross-modal layers."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def split_heads(projected: torch.Tensor, num_heads: int) -> torch.Tensor:
    """``[B, T, D] -> [B, H, T, D / H]``."""
    return projected.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def attending_dtype(heads: torch.Tensor) -> torch.dtype:
    """The dtype in which :func:`attend` attends such heads.

    On CPUs it is float32 whatever autocast says: torch's bfloat16 kernel measures about ten times slower there than
    the float32 one, while the projections around it gain from bfloat16.
    """
    return torch.float32 if heads.device.type == "cpu" and heads.dtype != torch.float64 else heads.dtype


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
    is_causal: bool = False,
) -> torch.Tensor:
    """Scaled dot-product attention of ``[B, H, T, d]`` heads, joined again: ``[B, T, D]``."""
    dtype, attending = query.dtype, attending_dtype(query)
    if query.device.type == "cpu":
        query, key, value = query.to(attending), key.to(attending), value.to(attending)
        with torch.autocast("cpu", enabled=False):
            attended = F.scaled_dot_product_attention(query, key, value, mask, is_causal=is_causal)
    else:
        attended = F.scaled_dot_product_attention(query, key, value, mask, is_causal=is_causal)
    return attended.transpose(1, 2).flatten(2).to(dtype)


def attention_weights(query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """What :func:`attend` weighs values by, for who wants to look at it: ``[B, H, T, S]``.

    Args:
        mask: bool, who (rows) sees what (columns); None: each sees itself and what is before it.
    """
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril(key.shape[2] - query.shape[2])
    return scores.masked_fill(~mask, -torch.inf).softmax(dim=-1)
