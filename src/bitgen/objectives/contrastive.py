"""Image-text contrastive loss (ITC) over the gathered batch and a queue (ALBEF, arXiv 2107.07651, section 3.2)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional as F

from bitgen.objectives.precision import outside_autocast


class ContrastiveOutput(NamedTuple):
    """Scalars: the symmetric loss and the shares of rows whose best candidate is a positive."""

    loss: torch.Tensor
    acc_i2t: torch.Tensor
    acc_t2i: torch.Tensor


def soft_target_cross_entropy(logits: torch.Tensor, positives: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
    """Mean cross-entropy of ``logits [B, N]`` against the uniform distribution over ``positives [B, N]`` (bool), of
    which ``smoothing`` goes to all candidates alike.

    Every row must have at least one positive.
    """
    positives = positives.to(logits.dtype)
    targets = (1 - smoothing) * positives / positives.sum(dim=1, keepdim=True) + smoothing / logits.shape[1]
    return -(targets * F.log_softmax(logits, dim=1)).sum(dim=1).mean()


@outside_autocast
def contrastive_loss(
    image_features: torch.Tensor,
    text_features: torch.Tensor,
    image_ids: torch.Tensor,
    candidate_image_features: torch.Tensor,
    candidate_text_features: torch.Tensor,
    candidate_ids: torch.Tensor,
    temperature: torch.Tensor,
    smoothing: float = 0.0,
) -> ContrastiveOutput:
    """Symmetric cross-entropy in which all pairs that share an ``image_id`` are positives of each other.

    Args:
        image_features, text_features: this rank's rows ``[B, D]``, L2-normalised.
        image_ids: ``[B]``.
        candidate_*: what they are compared with, ``[N, D]`` and ``[N]``: the gathered batch (with gradient), then the
            filled part of the queue (detached). Must contain the rows themselves.
        temperature: scalar tensor.
        smoothing: share of each row's target that goes to all its candidates (Szegedy et al., arXiv 1512.00567,
            section 7).
    """
    positives = image_ids[:, None] == candidate_ids[None, :]  # (B, N)
    losses, accuracies = [], []
    for queries, candidates in (
        (image_features, candidate_text_features),
        (text_features, candidate_image_features),
    ):
        logits = queries.float() @ candidates.float().T / temperature
        losses.append(soft_target_cross_entropy(logits, positives, smoothing))
        best = logits.detach().argmax(dim=1, keepdim=True)
        accuracies.append(positives.gather(1, best).float().mean())
    return ContrastiveOutput((losses[0] + losses[1]) / 2, *accuracies)


def recentre(keys: torch.Tensor, fresh: torch.Tensor) -> torch.Tensor:
    """Move old keys ``[N, D]`` so that their mean is that of today's ``fresh [B, D]``, and normalise them again.

    Without a momentum encoder the queue's keys lag behind. Telling old from new is then the easiest way to lower the
    loss: all features drift together, away from where they were, and learning stops. With equal means there is nothing
    to gain from drifting.
    """
    return F.normalize(keys.float() - keys.float().mean(dim=0) + fresh.float().mean(dim=0), dim=-1)
