"""How near a picture is to each taught fact. Two cosines are compared, and the larger counts.

*By its nearest token*: the largest cosine of any token's key with the fact's key. It finds a thing in a new picture,
wherever it stands. *As a whole*: a fact's key is a weighted mean of its picture's token keys, whose weights its text
sets (``Recall.taught_image_key``). The same mean is made of the new picture. Of the very picture that was taught it is
the fact's key, with a cosine of 1.

Shapes: B pictures of P tokens, E facts, keys of k numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.nn import functional as F

_CANDIDATES = 4  # facts, nearest by a token, that a picture is compared with as a whole
# Subtracted from the whole picture's cosine: training compared single tokens alone, and whole scenes that show other
# things reach 0.86.
_LESS = 0.1


class Picture(NamedTuple):
    """``keys [B, P, k]``: a key for each token, of length 1. ``weight [B, P]``: the logit of each token in the weighted
    mean, before the text's part is added."""

    keys: torch.Tensor
    weight: torch.Tensor


def key_of_the_whole(picture: Picture, looked_for: torch.Tensor) -> torch.Tensor:
    """The keys that pictures are taught under, ``[B, k]`` of length 1; ``looked_for [B, k]`` of one text for each
    (``Recall.looked_for``)."""
    weights = picture.weight + (picture.keys * looked_for[:, None]).sum(dim=-1)
    return F.normalize((weights.softmax(dim=1)[..., None] * picture.keys).sum(dim=1).float(), dim=-1)


def nearness(
    picture: Picture, keys: torch.Tensor, counts: torch.Tensor, looked_for: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines of B pictures with facts, and of each fact the picture token that is nearest to it: both ``[B, E]``.

    Args:
        keys: ``[E, k]`` of the facts.
        counts: which of them count, ``[E]``; no other is compared with whole pictures.
        looked_for: a function from row numbers of facts ``[N]`` to what their texts look for, ``[N, k]``.
    """
    cosines, at = (picture.keys @ keys.mT).max(dim=1)
    near = cosines.masked_fill(~counts, -torch.inf).topk(min(_CANDIDATES, int(counts.sum())), dim=1).indices  # [B, N]
    if not near.numel():
        return cosines, at
    each = Picture(*(part.repeat_interleave(near.shape[1], dim=0) for part in picture))
    rows, of_each = near.flatten().unique(return_inverse=True)
    whole = (key_of_the_whole(each, looked_for(rows)[of_each]) * keys[near].flatten(0, 1)).sum(dim=-1).view_as(near)
    return cosines.scatter(1, near, torch.maximum(cosines.gather(1, near), whole - _LESS)), at
