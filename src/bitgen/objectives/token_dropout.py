"""Captions with some of their tokens left out, so that no single word decides a match."""

from __future__ import annotations

import torch


def drop_tokens(input_ids: torch.Tensor, mask: torch.Tensor, rate: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Delete inner tokens at random and close the gaps; BOS and EOS always stay. ``[B, T]`` in and out."""
    lengths = mask.sum(dim=1, keepdim=True)
    positions = torch.arange(mask.shape[1], device=mask.device)[None]
    protected = (positions == 0) | (positions == lengths - 1)
    kept = mask.bool() & (protected | (torch.rand(mask.shape, device=mask.device) >= rate))
    order = torch.sort(kept.to(torch.uint8), dim=1, descending=True, stable=True).indices
    return input_ids.gather(1, order), kept.gather(1, order).to(mask.dtype)
