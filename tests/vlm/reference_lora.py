"""LoRA in its own terms: forward pass, gradients in closed form, merge and unmerge, as docs/lora.md derives them."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class ReferenceLora:
    """``h = W x + s B A x`` for rows x of ``[n, in]``; W ``[out, in]``, A ``[r, in]``, B ``[out, r]``."""

    def __init__(self, weight: Tensor, down: Tensor, up: Tensor, alpha: float, rslora: bool = False) -> None:
        self.weight, self.down, self.up = weight.clone(), down.clone(), up.clone()
        rank = down.shape[0]
        self.scale = alpha / (math.sqrt(rank) if rslora else rank)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T + self.scale * (x @ self.down.T) @ self.up.T

    def gradients(self, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """Of a loss whose gradient at the output is ``g [n, out]``: dA = s B^T g x^T and dB = s g (A x)^T, summed over
        the rows."""
        return self.scale * self.up.T @ g.T @ x, self.scale * g.T @ (x @ self.down.T)

    def merge(self) -> None:
        self.weight += self.scale * self.up @ self.down

    def unmerge(self) -> None:
        self.weight -= self.scale * self.up @ self.down


def dora_forward(x: Tensor, weight: Tensor, down: Tensor, up: Tensor, magnitude: Tensor, scale: float) -> Tensor:
    """``y = (m/n - 1) W x + m/n s B A x`` added to ``W x``, with ``n = ||W + s B A||`` by rows, held constant."""
    norm = torch.linalg.norm(weight + scale * up @ down, dim=1).detach()
    base = x @ weight.T
    return base + (magnitude / norm - 1) * base + (magnitude / norm) * (scale * (x @ down.T) @ up.T)
