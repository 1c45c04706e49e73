"""How a cue is made up of what was written: ridge regression, by a decomposition or by one triangular solve.

Shapes: n rows that were written, cues ``X [n, c]`` with what they read, ``Y [n, D]``; B cues to read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# Relative to the largest singular value: what is smaller is a cue written twice, and rounding.
RANK_TOLERANCE = 1e-10
# With fewer rows a decomposition takes milliseconds; with 1,000 it takes ten times what products and solves do.
_FEW = 256
# |X X^T| |(X X^T)^-1|, in the Frobenius norm, up to which products keep eight digits of sixteen.
_WELL_CONDITIONED = 1e8


class Reader(NamedTuple):
    """One half of a memory as the cue: mixtures ``[B, r]`` of ``cues [r, c]`` and what these read, ``values [r, D]``.

    ``mixed(cues [B, c], noise)`` is the w with the least ``|x - w C|^2 + noise |w|^2``, of those with noise 0 the
    shortest. ``condition`` computes the condition number of C.
    """

    cues: Tensor
    values: Tensor
    mixed: Callable[[Tensor, float], Tensor]
    condition: Callable[[], float]


def reader_of(cues: Tensor, values: Tensor) -> Reader:
    """A reader of ``X [n, c]`` and ``Y [n, D]``."""
    if _FEW <= len(cues) <= cues.shape[1]:
        gram = cues @ cues.mT
        factor, failed = torch.linalg.cholesky_ex(gram)
        if not failed and gram.norm() * torch.cholesky_inverse(factor).norm() <= _WELL_CONDITIONED:
            return _by_solving(cues, values, gram, factor)
    return _by_decomposing(cues, values)


def _by_solving(cues: Tensor, values: Tensor, gram: Tensor, exact: Tensor) -> Reader:
    """``w = x X^T (X X^T + noise)^-1`` where rows are so independent that products lose little."""
    factors = {0.0: exact}

    def mixed(asked: Tensor, noise: float) -> Tensor:
        if noise not in factors:
            factors[noise] = torch.linalg.cholesky(gram + noise * torch.eye(len(gram)).to(gram))
        return torch.cholesky_solve(cues @ asked.mT, factors[noise]).mT

    def condition() -> float:
        values = torch.linalg.eigvalsh(gram)
        return float((values[-1] / values[0]).sqrt())

    return Reader(cues, values, mixed, condition)


def _by_decomposing(cues: Tensor, values: Tensor) -> Reader:
    """By the singular value decomposition of X, of which directions within rounding are left out."""
    left, singular, right = torch.linalg.svd(cues, full_matrices=False)
    rank = int((singular > RANK_TOLERANCE * singular[0]).sum())  # 0 where no row has this half
    singular, right = singular[:rank], right[:rank]

    def mixed(asked: Tensor, noise: float) -> Tensor:
        return asked @ right.mT * (singular / (singular.square() + noise))

    def condition() -> float:
        return float(singular[0] / singular[-1]) if rank else 1.0

    return Reader(singular[:, None] * right, left[:, :rank].mT @ values, mixed, condition)
