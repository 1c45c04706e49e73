"""How near a picture is to facts: by one of its tokens, and as a whole.

By the token that is nearest to a fact's key a picture finds what was taught of another one, wherever the thing stands.
As a whole it has the key that it would be taught under: a mean of its tokens' keys, in which the fact's text says what
each counts (``Recall.taught_image_key``). The very picture that a fact was taught with has the fact's own key then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.nn import functional as F

_CANDIDATES = 4  # facts, nearest by a token, that a picture is compared with as a whole
# Of a cosine: no training told pictures apart as a whole, and two of scenes that show other things reach 0.86.
_LESS = 0.1


class Picture(NamedTuple):
    """Keys of the tokens of pictures ``[B, P, k]``, of length 1, and what each counts in a mean, ``weight [B, P]``,
    before a text is asked."""

    keys: torch.Tensor
    weight: torch.Tensor


def key_of_the_whole(picture: Picture, looked_for: torch.Tensor) -> torch.Tensor:
    """The key that pictures are taught under, ``[B, k]`` of length 1, with texts that look for ``looked_for [B, k]``
    (``Recall.looked_for``)."""
    weights = picture.weight + (picture.keys * looked_for[:, None]).sum(dim=-1)
    return F.normalize((weights.softmax(dim=1)[..., None] * picture.keys).sum(dim=1).float(), dim=-1)


def nearness(
    picture: Picture, keys: torch.Tensor, looked_for: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines of B pictures with facts, and of each fact the picture token that is nearest to it: both ``[B, E]``.

    Args:
        keys: ``[E, k]`` of the facts.
        looked_for: rows of facts ``[N]`` to what their texts look for in a picture, ``[N, k]``.
    """
    cosines, at = (picture.keys @ keys.mT).max(dim=1)
    near = cosines.topk(min(_CANDIDATES, len(keys)), dim=1).indices  # [B, N]
    if not near.numel():
        return cosines, at
    each = Picture(*(part.repeat_interleave(near.shape[1], dim=0) for part in picture))
    whole = (key_of_the_whole(each, looked_for(near.flatten())) * keys[near].flatten(0, 1)).sum(dim=-1).view_as(near)
    return cosines.scatter(1, near, torch.maximum(cosines.gather(1, near), whole - _LESS)), at
