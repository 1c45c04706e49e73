"""Whitening of codes: what all pictures share, and the few directions in which most of them differ, taken out.

Features of real images share a mean and most of their variance lies in about ten directions. Whatever is asked then
resembles whatever was written, and an image that was never written reads back half of its text. Whitened features are
nearly orthogonal unless two pictures show the same. The statistics are computed once, from pairs that are no episodes,
and never change while anything is held: forgetting stays exact.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from bitgen.checkpoint.format import read_checkpoint, resolve_checkpoint
from bitgen.trained import is_export

# Of the mean variance, added to each direction's: those that hardly vary are mostly noise.
_SHRINKAGE = 0.1


class Whitening(NamedTuple):
    """``means [2, D]`` and symmetric ``matrices [2, D, D]`` of the image and the text half of codes, float64."""

    means: Tensor
    matrices: Tensor

    @classmethod
    def fit(cls, pairs: Tensor) -> Whitening:
        """From codes ``[N, 2 D]`` of pairs like those that will be written; some thousand, at least 2 D.

        Raises:
            ValueError: too few codes, NaN or infinity in them, or codes that are all the same.
        """
        least = pairs.shape[-1]
        if pairs.dim() != 2 or len(pairs) < least:
            raise ValueError(f"codes are {list(pairs.shape)}: statistics need at least {least} pairs of that width")
        if not pairs.isfinite().all():
            raise ValueError("NaN or infinity in the codes that statistics were to be taken from")
        halves = torch.stack(pairs.double().chunk(2, dim=1))  # [2, N, D]
        means = halves.mean(dim=1)
        centred = halves - means[:, None]
        values, vectors = torch.linalg.eigh(centred.mT @ centred / len(pairs))
        variances = values.clamp_min(0) + _SHRINKAGE * values.mean(dim=1, keepdim=True)
        if not (variances > 0).all():
            raise ValueError("the codes that statistics were to be taken from are all the same")
        return cls(means, (vectors / variances.sqrt()[:, None]) @ vectors.mT)

    def __call__(self, features: Tensor, part: int) -> Tensor:
        """Features ``[B, D]`` of one half, whitened, of length 1."""
        return F.normalize((features - self.means[part]) @ self.matrices[part], dim=1)

    def to(self, device: torch.device | str) -> Whitening:
        """On another device, in float64."""
        return Whitening(self.means.to(device, torch.float64), self.matrices.to(device, torch.float64))


def training_whitening(path: str | Path) -> Whitening:
    """By the last training pairs of a run or checkpoint, which its queue holds.

    Raises:
        ValueError: an export, which has no queue, a damaged checkpoint, or a run without contrast.
    """
    if is_export(path):
        raise ValueError(
            f"{path} is an export and holds none of the pairs it was trained on, which whitening needs: name the run, "
            "or whiten in a program by pairs of your own (Whitening.fit)"
        )
    queue = read_checkpoint(resolve_checkpoint(path)).state["objective"].get("queue")
    if queue is None:
        raise ValueError(
            f"{path} was trained without pairs to compare (contrastive_weight was 0, or it learned something else), "
            "which whitening needs. In a program, whiten with the run that it started from (training_whitening), or by "
            "pairs of your own (Whitening.fit)"
        )
    features = [queue[name][: queue["filled"]] for name in ("image_features", "text_features")]
    try:
        return Whitening.fit(torch.cat(features, dim=1))
    except ValueError as error:
        raise ValueError(f"{path}: its queue of training pairs cannot be used for whitening: {error}") from error
