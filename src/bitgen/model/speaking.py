"""What a memory of taught facts gives a model to say: from a cue to recalled tokens.

A cue is compared with the keys of all facts, of a picture token by token. What is near enough to one of them to mean it
(Larimar's scope detector, arXiv 2403.11901, section 3.2, here with a learned threshold) reads that fact's value from
the closed-form memory, and the decoder looks at the tokens that it becomes. A cue that means nothing reads nothing.

Shapes: E facts with keys ``[E, k]``, B cues.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from .recall import Recall, Recalled

# Of two facts whose keys have a greater cosine only the later counts. Pictures of one thing are above 0.85 and those of
# two below 0.77; sentences that differ in one name come nearer to each other than those.
SAME_PICTURED, SAME_TOLD = 0.85, 0.98
MOST_RECALLED = 2  # facts that one cue may recall, as training has it
# A fact is recalled above this probability. The probability's scale and threshold were learned on what training
# taught; what it never taught is taken for something else more often, the more so the more facts there are
# (docs/memory.md).
SURE_OF_PICTURE, SURE_OF_TEXT = 0.7, 0.6


class Found(NamedTuple):
    """What B cues mean: ``confidence [B, E]``, the probability that this is what was taught (0 where a later fact about
    the same thing counts), and of each fact the picture token that is nearest to it, ``[B, E]`` (zeros where a text is
    the cue). A fact is recalled above the probability ``sure``."""

    confidence: torch.Tensor
    at: torch.Tensor
    sure: float = SURE_OF_PICTURE


def find(
    recall: Recall,
    keys: torch.Tensor,
    cues: torch.Tensor,
    sure: float = SURE_OF_PICTURE,
    same: float = SAME_PICTURED,
) -> Found:
    """Compare cues with keys. A fact has no confidence where a later one about the same thing is recalled as well, and
    none has where the cue is NaN.

    Args:
        keys: ``[E, k]`` of the facts.
        cues: ``[B, P, k]``, of a picture each token's; of a text one.
        sure: the probability above which a fact is recalled.
        same: the cosine of two keys above which they are of the same thing.
    """
    keys = keys.to(cues)  # facts may be held on another device, and in another precision
    cosines, at = (cues @ keys.mT).max(dim=1)
    confidence = recall.logits(cosines).sigmoid().nan_to_num(0.0)
    some = (confidence > sure).any(dim=0).nonzero()[:, 0]
    recalled = (confidence[:, some] > sure).to(cues)
    later = (keys[some] @ keys[some].mT > same).triu(1).to(cues)  # [earlier, later]
    confidence[:, some] *= (recalled @ later.mT == 0) | (recalled == 0)
    return Found(confidence, at, sure)


def chosen(found: Found, most: int = MOST_RECALLED) -> list[list[int]]:
    """The facts that each cue recalls, surest first; of several that one picture token is nearest to, the surest."""
    rows = []
    for confidence, at in zip(found.confidence.tolist(), found.at.tolist(), strict=True):
        taken: list[int] = []
        places: set[int] = set()
        for fact in sorted(range(len(confidence)), key=lambda fact: -confidence[fact]):
            if confidence[fact] <= found.sure or len(taken) == most:
                break
            if at[fact] not in places:
                taken.append(fact)
                places.add(at[fact])
        rows.append(taken)
    return rows


@torch.no_grad()
def recalled_for(
    recall: Recall,
    facts: Sequence[Sequence[int]],
    found: Found,
    read: Callable[[torch.Tensor], torch.Tensor],
    image_tokens: torch.Tensor | None,
) -> Recalled | None:
    """What the decoder looks at for each of B cues; None where none of them recalls anything.

    Args:
        facts: that each cue recalls, rows of the memory.
        read: rows of facts ``[N]`` to the values that the memory gives for their keys, ``[N, L d]``.
        image_tokens: ``[B, P, D]`` of the pictures that are the cues; None: texts are.
    """
    most = max(map(len, facts), default=0)
    if not most:
        return None
    place = recall.place
    rows = torch.tensor([[*row, *[-1] * (most - len(row))] for row in facts], device=place.device)
    index = rows.clamp_min(0)
    values = read(index.flatten()).view(*index.shape, -1).to(place)
    seen = place.new_zeros(*index.shape, place.shape[1])
    if image_tokens is not None:
        seen = recall.seen(image_tokens, found.at.gather(1, index))
    return recall.tokens(values, seen, rows >= 0)
