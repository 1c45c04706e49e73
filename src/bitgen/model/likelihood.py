"""How likely a model finds a sequence, without ever holding the ``[B, T, V]`` logits."""

from __future__ import annotations

import torch
from torch.nn import functional as F

IGNORED = -100  # the label of what no loss counts
# Rows of logits at a time: few enough for a CPU's cache, enough for a GPU to be busy.
CPU_CHUNK, GPU_CHUNK = 128, 4096


def next_token_labels(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """The token that follows each position, ``[B, T]``; -100 where none does (the last real token and padding)."""
    labels = torch.full_like(input_ids, IGNORED)
    labels[:, :-1] = input_ids[:, 1:].masked_fill(attention_mask[:, 1:] == 0, IGNORED)
    return labels


def shifted_loss(logits: torch.Tensor, labels: torch.Tensor, count: int | torch.Tensor | None = None) -> torch.Tensor:
    """Cross-entropy of ``logits [B, T, V]`` with the labels ``[B, T]`` one place further on, -100 left out: their mean,
    or their sum divided by ``count``."""
    predicted, following = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    if count is None:
        return F.cross_entropy(predicted, following, ignore_index=IGNORED)
    return F.cross_entropy(predicted, following, ignore_index=IGNORED, reduction="sum") / count


@torch.no_grad()
def sequence_log_probs(hidden_states: torch.Tensor, output_weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum over the tokens of log p(label), ``[B]`` float32, of ``hidden_states [B, T, D]`` and ``labels [B, T]``."""
    rows, targets = hidden_states.flatten(0, 1), labels.flatten()
    chunk = CPU_CHUNK if rows.device.type == "cpu" else GPU_CHUNK
    parts = []
    for some, wanted in zip(rows.split(chunk), targets.split(chunk), strict=True):
        log_probs = F.log_softmax(F.linear(some, output_weight), dim=1, dtype=torch.float32)
        parts.append(log_probs.gather(1, wanted.clamp_min(0)[:, None])[:, 0].masked_fill(wanted == IGNORED, 0.0))
    return torch.cat(parts).view(labels.shape).sum(dim=1)
