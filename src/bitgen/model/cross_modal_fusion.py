"""How text tokens look at image tokens: the three kinds of fusion.

``concat_mlp`` and ``cross_attention`` act once, before the memory and the decoder. ``backbone`` is FIBER's own (arXiv
2206.07643, section 3.1): a gated cross-attention inside every decoder block, see ``text_decoder.py``.
Gates that start at 0 let a pretrained text stack begin undisturbed (Flamingo, arXiv 2204.14198, section 2.2; FIBER). A
stack that starts from nothing has nothing to protect, and learns sooner what images are for if they start at 1.
"""

from __future__ import annotations

import torch
from torch import nn

from .attention import attend, split_heads
from .dropout import Dropout


class CrossAttention(nn.Module):
    """Multi-head attention from text tokens (queries) to image tokens (keys and values).

    ``hidden [B, T, D]``, ``image_tokens [B, P, D]`` -> ``[B, T, D]``.
    """

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(embed_dim, embed_dim, bias=False)
        self.key_value = nn.Linear(embed_dim, 2 * embed_dim, bias=False)
        self.output = nn.Linear(embed_dim, embed_dim)

    def forward(self, hidden: torch.Tensor, image_tokens: torch.Tensor) -> torch.Tensor:
        key, value = self.key_value(image_tokens).chunk(2, dim=-1)
        query, key, value = (split_heads(part, self.num_heads) for part in (self.query(hidden), key, value))
        return self.output(attend(query, key, value))


class GatedCrossAttention(nn.Module):
    """Pre-norm cross-attention whose result enters through a learned gate per channel, ``gate_start`` at first."""

    def __init__(self, embed_dim: int, num_heads: int, dropout: float, gate_start: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(embed_dim)
        self.attention = CrossAttention(embed_dim, num_heads)
        self.dropout = Dropout(dropout)
        self.gate = nn.Parameter(torch.full((embed_dim,), gate_start))

    def forward(self, hidden: torch.Tensor, image_tokens: torch.Tensor) -> torch.Tensor:
        return hidden + self.gate * self.dropout(self.attention(self.norm(hidden), image_tokens))


class ConcatMLP(nn.Module):
    """Each text token joined with the averaged image tokens, through an MLP, behind a gate."""

    def __init__(self, embed_dim: int, hidden_dim: int, dropout: float, gate_start: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(embed_dim)
        self.mlp = nn.Sequential(
            nn.Linear(2 * embed_dim, hidden_dim), nn.GELU(), Dropout(dropout), nn.Linear(hidden_dim, embed_dim)
        )
        self.gate = nn.Parameter(torch.full((embed_dim,), gate_start))

    def forward(self, hidden: torch.Tensor, image_tokens: torch.Tensor) -> torch.Tensor:
        image = image_tokens.mean(dim=1, keepdim=True).expand(-1, hidden.shape[1], -1)
        return hidden + self.gate * self.mlp(torch.cat((self.norm(hidden), image), dim=-1))


def build_fusion(
    kind: str, embed_dim: int, num_heads: int, ffn_dim: int, dropout: float, gate_start: float
) -> nn.Module | None:
    """The module that fuses before the decoder, or None when fusion happens inside its blocks (``backbone``)."""
    if kind == "concat_mlp":
        return ConcatMLP(embed_dim, ffn_dim, dropout, gate_start)
    if kind == "cross_attention":
        return GatedCrossAttention(embed_dim, num_heads, dropout, gate_start)
    return None
