"""How much of a matrix a few directions hold: singular values, effective rank, energy kept by a rank."""

from __future__ import annotations

import torch
from torch import Tensor


def singular_values(matrix: Tensor) -> Tensor:
    """Singular values ``[min(out, in)]`` of ``[out, in]`` in float32, falling, on the matrix' device."""
    return torch.linalg.svdvals(matrix.detach().float())


def product_singular_values(up: Tensor, down: Tensor, scale: float = 1.0) -> Tensor:
    """The ``r`` singular values of ``scale * B A`` that are not zero by shape; B ``[out, r]``, A ``[r, in]``.

    ``B = Q1 R1`` and ``A^T = Q2 R2`` with orthonormal columns Q1, Q2, so ``B A = Q1 (R1 R2^T) Q2^T`` has the singular
    values of the small ``R1 R2^T``: the ``[out, in]`` product is never formed.
    """
    first = torch.linalg.qr(up.detach().double(), mode="r").R
    second = torch.linalg.qr(down.detach().double().T, mode="r").R
    return (abs(scale) * torch.linalg.svdvals(first @ second.T)).float()


def effective_rank(values: Tensor) -> float:
    """``exp(H(p))`` with ``p = sigma / sum(sigma)`` and H the entropy (Roy and Vetterli, EUSIPCO 2007): n where n
    singular values are equal, 1 where one is all. 0 of a matrix of zeros."""
    total = values.double().sum()
    if total == 0:
        return 0.0
    shares = values.double() / total
    return torch.exp(torch.special.entr(shares).sum()).item()


def energy_kept(values: Tensor, rank: int) -> float:
    """``sum of the first r sigma^2 / sum of all``: what the best approximation of rank r keeps of the squared Frobenius
    norm (Eckart and Young, 1936). 1 of a matrix of zeros."""
    squares = values.double() ** 2
    total = squares.sum()
    return 1.0 if total == 0 else (squares[:rank].sum() / total).item()


def gaussian_values(out: int, into: int) -> Tensor:
    """Singular values of a matrix of independent Gaussian entries: what has no structure at all, for comparison."""
    return singular_values(torch.randn(out, into, generator=torch.Generator().manual_seed(0)))
