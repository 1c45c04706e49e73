"""Image-text matching (ITM) with hard negatives drawn by similarity (ALBEF, section 3.2; FIBER, section 3.2)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional as F

from bitgen.objectives.precision import outside_autocast


class HardNegatives(NamedTuple):
    """``index [B]`` into the candidates, ``weight [B]`` (0: the row has no candidate), ``rank [B]`` (1: hardest)."""

    index: torch.Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    weight: torch.Tensor
    rank: torch.Tensor


@torch.no_grad()
@outside_autocast
def draw_hard_negatives(
    queries: torch.Tensor,
    candidates: torch.Tensor,
    query_ids: torch.Tensor,
    candidate_ids: torch.Tensor,
    temperature: float,
    generator: torch.Generator | None = None,
) -> HardNegatives:
    """For each query one candidate of another image, with probability softmax(cosine / temperature).

    Args:
        queries: ``[B, D]``, candidates: ``[N, D]``, both L2-normalised.
        query_ids ``[B]``, candidate_ids ``[N]``: image ids; equal ones are never negatives.
    """
    cosine, has_candidate = _of_other_images(queries, candidates, query_ids, candidate_ids)
    scores = cosine / temperature
    # A row without candidates draws anything at weight 0, so that every rank runs the same passes in every step.
    scores = torch.where(has_candidate[:, None], scores, torch.zeros_like(scores))
    # A NaN goes on into the loss, where the trainer skips the step; here it would only raise.
    index = torch.multinomial(scores.softmax(dim=1).nan_to_num(1.0), 1, generator=generator)
    rank = 1 + (scores > scores.gather(1, index)).sum(dim=1)
    return HardNegatives(index.squeeze(1), has_candidate.float(), rank)


@torch.no_grad()
@outside_autocast
def hardest_negatives(
    queries: torch.Tensor, candidates: torch.Tensor, query_ids: torch.Tensor, candidate_ids: torch.Tensor
) -> HardNegatives:
    """For each query the candidate of another image with the highest cosine: the wrong pairs that an evaluation is made
    of. Arguments as of :func:`draw_hard_negatives`."""
    cosine, has_candidate = _of_other_images(queries, candidates, query_ids, candidate_ids)
    return HardNegatives(cosine.nan_to_num(-torch.inf).argmax(dim=1), has_candidate.float(), torch.ones_like(query_ids))


def _of_other_images(
    queries: torch.Tensor, candidates: torch.Tensor, query_ids: torch.Tensor, candidate_ids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines ``[B, N]``, -inf between a query and its own image, and whether a query ``[B]`` has another at all."""
    allowed = query_ids[:, None] != candidate_ids[None, :]
    return (queries.float() @ candidates.float().T).masked_fill(~allowed, -torch.inf), allowed.any(dim=1)


def interleave(even: torch.Tensor, odd: torch.Tensor) -> torch.Tensor:
    """``[ceil(N / 2)]`` and ``[floor(N / 2)]`` to the ``[N]`` whose rows 0, 2, .. and 1, 3, .. they are."""
    joined = even.new_empty(len(even) + len(odd))
    joined[::2], joined[1::2] = even, odd
    return joined


def select(local: torch.Tensor, past: torch.Tensor, negatives: HardNegatives) -> torch.Tensor:
    """Rows of ``cat(local, past)``, keeping gradients into ``local`` and copying only what is drawn of ``past``."""
    rows, index = len(local), negatives.index
    from_local = local[index.clamp_max(rows - 1)]
    if not len(past):
        return from_local
    from_past = past[(index - rows).clamp_min(0)].to(local.dtype)
    is_local = (index < rows).view(-1, *[1] * (local.dim() - 1))
    return torch.where(is_local, from_local, from_past)


class MatchingOutput(NamedTuple):
    """Scalars: weighted cross-entropy and balanced accuracy."""

    loss: torch.Tensor
    accuracy: torch.Tensor


def matching_loss(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> MatchingOutput:
    """Cross-entropy of ``logits [N, 2]`` against ``labels [N]``, averaged with ``weights [N]``.

    The accuracy is balanced: the mean of those on true pairs and on hard pairs, so that 50% is chance.
    """
    losses = F.cross_entropy(logits.float(), labels, reduction="none")
    loss = (losses * weights).sum() / weights.sum().clamp_min(1)
    right = (logits.detach().argmax(dim=1) == labels).float()
    shares = []
    for label in (0, 1):
        of_label = weights * (labels == label)
        shares.append((right * of_label).sum() / of_label.sum().clamp_min(1))
    return MatchingOutput(loss, (shares[0] + shares[1]) / 2)
