"""What is seen with a question: its picture, or, as controls, another one or an empty one.

A model that answers as well without its pictures has learned the words of questions alone (Goyal et al. 2017,
arXiv 1612.00837).
"""

from __future__ import annotations

from typing import Literal, get_args

import torch

PictureShown = Literal["own", "other", "nothing"]
OWN, OTHER, NOTHING = get_args(PictureShown)


def shown(pictures: torch.Tensor, which: PictureShown) -> torch.Tensor:
    """What is seen in place of each of the pictures ``[B, ...]`` of a batch: itself, the next one in the batch, or an
    empty one. A picture that is alone in its batch has no other, and nothing is seen in its place."""
    if which == OWN:
        return pictures
    return pictures.roll(1, dims=0) if which == OTHER and len(pictures) > 1 else torch.zeros_like(pictures)
