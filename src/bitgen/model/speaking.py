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
from torch.nn import functional as F

from .recall import Recall, Recalled

MOST_RECALLED = 2  # facts that one cue may recall, as training has it


class Meaning(NamedTuple):
    """When a kind of cue means a fact.

    ``sure``: the probability above which it does. ``same``: the cosine of two keys above which they are of the same
    thing, and only the later counts. ``one``: a cue means one fact at most, so that facts compete to be it.
    """

    sure: float
    same: float
    one: bool


# Pictures of one thing have cosines above 0.85, those of two below 0.77; sentences that differ in one name come nearer
# to each other than those. The probabilities were learned on what training taught; what it never taught is taken for
# something else more often, the more so the more facts there are (docs/speaking.md).
BY_PICTURE, BY_TEXT = Meaning(0.7, 0.85, False), Meaning(0.45, 0.98, True)
_FAR = -6.0  # log odds below which it does not matter whether something was taught twice


class Found(NamedTuple):
    """What B cues mean: ``confidence [B, E]``, the probability that this is what was taught (0 where a later fact about
    the same thing counts), and of each fact the picture token that is nearest to it, ``[B, E]`` (zeros where a text is
    the cue). A fact is recalled above the probability ``sure``."""

    confidence: torch.Tensor
    at: torch.Tensor
    sure: float = BY_PICTURE.sure


def find(recall: Recall, keys: torch.Tensor, cues: torch.Tensor, meaning: Meaning = BY_PICTURE) -> Found:
    """Compare cues with keys. A cue that is NaN means nothing.

    Of a picture each fact has its own probability, against nothing; where a later fact about the same thing is recalled
    as well, the earlier one has none. Of a text all facts and nothing share one probability, as in training: a question
    about nobody is a little like many facts, one about somebody is much like one.

    Args:
        keys: ``[E, k]`` of the facts.
        cues: ``[B, P, k]``, of a picture each token's; of a text one.
    """
    keys = keys.to(cues)  # facts may be held on another device, and in another precision
    cosines, at = (cues @ keys.mT).max(dim=1)
    logits = recall.logits(cosines).nan_to_num(-torch.inf)
    likely = logits > (_FAR if meaning.one else torch.tensor(meaning.sure).logit().item())
    some = likely.any(dim=0).nonzero()[:, 0]
    later = (keys[some] @ keys[some].mT > meaning.same).triu(1)  # [earlier, later]
    taken = (likely[:, some].to(cues) @ later.mT.to(cues) > 0) & likely[:, some]
    logits[:, some] = logits[:, some].masked_fill(taken, -torch.inf)
    if meaning.one:
        confidence = F.pad(logits, (0, 1)).softmax(dim=1)[:, :-1]  # beside nothing, whose log odds are 0
    else:
        confidence = logits.sigmoid()
    return Found(confidence, at, meaning.sure)


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
