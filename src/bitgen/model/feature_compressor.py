"""The learned bottleneck between the vision tower and the tiny model."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from .dropout import Dropout, ReLUDropout


class FeatureCompressor(nn.Sequential):
    """Linear -> ReLU -> Dropout -> Linear -> LayerNorm, applied to each patch feature by itself.

    ``[B, P, C] -> [B, P, D]``; 344,832 parameters at 768 -> 384 -> 128.
    """

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int, dropout: float = 0.1) -> None:
        super().__init__(
            nn.Linear(input_dim, hidden_dim),
            nn.ReLU(),
            Dropout(dropout),
            nn.Linear(hidden_dim, output_dim),
            nn.LayerNorm(output_dim),
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        first, relu, dropout, second, norm = self
        hidden = first(features)
        if self.training and dropout.p and hidden.device.type == "cpu":
            return norm(second(ReLUDropout.apply(hidden, dropout.p)))
        return norm(second(dropout(relu(hidden))))


class LocalMixing(nn.Module):
    """A convolution over the grid of image tokens, beside a skip connection: ``[B, P, D] -> [B, P, D]``, P a square.

    What is drawn across several patches (a shape's outline) shows in no single one of them. Pretrained towers have
    mixed their patches already; connectors with convolutions are in Honeybee (arXiv 2312.06742, section 3.3).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.neighbours = nn.Conv2d(width, width, kernel_size=3, padding=1)
        self.output = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, image_tokens: torch.Tensor) -> torch.Tensor:
        side = math.isqrt(image_tokens.shape[1])
        grid = image_tokens.transpose(1, 2).unflatten(-1, (side, side))
        mixed = self.output(F.gelu(self.neighbours(grid)).flatten(2).transpose(1, 2))
        return self.norm(image_tokens + mixed)


def grid_positions(side: int, width: int) -> torch.Tensor:
    """``[side * side, width]``: of each cell sines and cosines of y, then of x; channels beyond a multiple of 4 are 0.

    Frequencies fall from one radian a cell to one radian a side.
    """
    used = width // 4 * 4
    along = line_positions(side, used // 2)
    grid = torch.cat((along[:, None].expand(-1, side, -1), along[None].expand(side, -1, -1)), dim=2)
    return F.pad(grid.flatten(0, 1), (0, width - used))


def line_positions(count: int, width: int) -> torch.Tensor:
    """``[count, width]``, an even width: sines, then cosines, of places in a line, of frequencies that fall from one
    radian a place to one radian the whole line."""
    frequencies = max(count, 2) ** -torch.linspace(0, 1, width // 2)
    angles = torch.arange(count)[:, None] * frequencies
    return torch.cat((angles.sin(), angles.cos()), dim=1)


class TokenPooling(nn.Module):
    """Image tokens ``[B, P, D]`` to one vector ``[B, D]``.

    ``attention``: each head scores every token with a learned query and averages its own slice of the channels, so
    that different heads may look at different places. ``mean``: the plain average.
    """

    def __init__(self, embed_dim: int, num_heads: int, kind: str) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scores = nn.Linear(embed_dim, num_heads, bias=False) if kind == "attention" else None

    def forward(self, image_tokens: torch.Tensor) -> torch.Tensor:
        if self.scores is None:
            return image_tokens.mean(dim=1)
        batch, tokens, width = image_tokens.shape
        weights = self.scores(image_tokens).softmax(dim=1)  # (B, P, H)
        values = image_tokens.view(batch, tokens, self.num_heads, width // self.num_heads)
        return torch.einsum("bph,bphd->bhd", weights, values).reshape(batch, width)
