"""Next-token prediction without ever holding the ``[B, T, V]`` logits."""

from __future__ import annotations

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from bitgen.objectives.precision import outside_autocast

IGNORED = -100
CHUNK = 1024


def next_token_labels(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """The token that follows each position, ``[B, T]``; -100 where none does (the last real token and padding)."""
    labels = torch.full_like(input_ids, IGNORED)
    labels[:, :-1] = input_ids[:, 1:].masked_fill(attention_mask[:, 1:] == 0, IGNORED)
    return labels


@outside_autocast
def language_loss(hidden_states: torch.Tensor, output_weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of ``hidden_states [B, T, D] @ output_weight [V, D].T`` against ``labels [B, T]``.

    Uses torch's fused ``linear_cross_entropy`` where the installed torch has it, else chunks that are computed again
    in the backward pass.
    """
    hidden, labels = hidden_states.flatten(0, 1).float(), labels.flatten()
    weight = output_weight.float()
    count = (labels != IGNORED).sum().clamp_min(1)
    fused = getattr(F, "linear_cross_entropy", None)
    if fused is not None:
        return fused(hidden, weight, labels, ignore_index=IGNORED, reduction="sum") / count
    return chunked_cross_entropy(hidden, weight, labels) / count


@outside_autocast
def chunked_cross_entropy(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Summed cross-entropy of ``hidden [N, D]``, ``CHUNK`` rows of logits at a time."""

    def of_chunk(rows: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(F.linear(rows, weight), targets, ignore_index=IGNORED, reduction="sum")

    parts = zip(hidden.split(CHUNK), labels.split(CHUNK), strict=True)
    return torch.stack([checkpoint(of_chunk, rows, targets, use_reentrant=False) for rows, targets in parts]).sum()
