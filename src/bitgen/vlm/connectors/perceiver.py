"""Flamingo's Perceiver resampler at the width of the vision encoder, and a Linear to the language model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from bitgen.config.fields import AtLeastOne, Depth, Positive, Size, setting
from bitgen.model.attention import attend, split_heads
from bitgen.vlm.connectors.base import Connector
from bitgen.vlm.connectors.config import ConnectorConfig
from bitgen.vlm.connectors.resampler import TOKEN_STD


class PerceiverAttention(nn.Module):
    """Latents attend to media and to themselves: keys and values come from both, each after its own LayerNorm.

    Flamingo (Alayrac et al., 2022, arXiv 2204.14198), section 2.1 and figure 5. No Linear has a bias.
    """

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_media, self.norm_latents = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_q = nn.Linear(width, heads * head_width, bias=False)
        self.to_kv = nn.Linear(width, 2 * heads * head_width, bias=False)
        self.to_out = nn.Linear(heads * head_width, width, bias=False)

    def forward(self, media: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """``media [B, S, D]``, ``latents [B, Q, D]`` -> ``[B, Q, D]``."""
        latents = self.norm_latents(latents)
        key, value = self.to_kv(torch.cat([self.norm_media(media), latents], dim=1)).chunk(2, dim=-1)
        query = self.to_q(latents)
        query, key, value = (split_heads(each, self.heads) for each in (query, key, value))
        return self.to_out(attend(query, key, value))


class PerceiverBlock(nn.Module):
    """Attention and feed-forward layer (``expansion`` times the width, GELU), each added to the latents."""

    def __init__(self, width: int, heads: int, head_width: int, expansion: int) -> None:
        super().__init__()
        self.attention = PerceiverAttention(width, heads, head_width)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, expansion * width, bias=False),
            nn.GELU(),
            nn.Linear(expansion * width, width, bias=False),
        )

    def forward(self, media: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        latents = latents + self.attention(media, latents)
        return latents + self.feed_forward(latents)


class PerceiverResampler(nn.Module):
    """Media of any number of frames and tokens -> a fixed number of latents each: ``[B, T, F, N, D] -> [B, T, Q, D]``.

    Flamingo (arXiv 2204.14198), section 2.1 and figure 5: learned latents, an embedding for each frame, ``depth``
    blocks and a last LayerNorm.

    Args:
        frames: rows of the table of frame embeddings; None: no such table.
        media: rows of a table that tells the T media of a text apart; None, as in Flamingo: no such table.
    """

    def __init__(
        self,
        width: int,
        latents: int,
        depth: int,
        heads: int,
        head_width: int,
        frames: int | None = None,
        media: int | None = None,
        expansion: int = 4,
    ) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(latents, width))
        self.frame_embeddings = None if frames is None else nn.Parameter(torch.randn(frames, width))
        self.media_embeddings = None if media is None else nn.Parameter(torch.randn(media, 1, width))
        self.blocks = nn.ModuleList([PerceiverBlock(width, heads, head_width, expansion) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        media, frames = features.shape[1:3]
        if self.frame_embeddings is not None:
            features = features + self.frame_embeddings[:frames, None]
        seen = features.flatten(2, 3)  # (B, T, F * N, D)
        if self.media_embeddings is not None:
            seen = seen + self.media_embeddings[:media]
        seen = seen.flatten(0, 1)
        latents = self.latents.expand(len(seen), -1, -1)
        for block in self.blocks:
            latents = block(seen, latents)
        return self.norm(latents).unflatten(0, (-1, media))


@dataclass(frozen=True)
class PerceiverOptions:
    queries: AtLeastOne = setting(64, "Latents, which are the tokens that a visual becomes.")
    depth: Depth = setting(6, "Blocks of attention and feed-forward layer.")
    heads: Size = setting(8, "Attention heads.")
    head_width: Size = setting(64, "Width of an attention head.")
    token_std: Positive = setting(TOKEN_STD, "Standard deviation at which a coordinate of its output starts.")


class Perceiver(Connector):
    """A Perceiver resampler at the encoder's width, then a Linear to the language model's: M = ``queries``.

    Flamingo (Alayrac et al., 2022, arXiv 2204.14198), section 2.1. There the latents go into cross-attention layers at
    the encoder's width; the Linear puts them among token rows instead. Its weight starts so that a coordinate of the
    output has the standard deviation ``token_std``, because the last LayerNorm's has 1. A visual of several pictures
    needs to tell them apart: with ``frames`` above 1 there is a table of frame embeddings.
    """

    Options = PerceiverOptions

    def __init__(self, config: ConnectorConfig, options: PerceiverOptions) -> None:
        super().__init__(config, options)
        self.queries = options.queries
        self.resampler = PerceiverResampler(
            self.width,
            latents=options.queries,
            depth=options.depth,
            heads=options.heads,
            head_width=options.head_width,
            frames=config.frames if config.frames > 1 else None,
        )
        self.linear = nn.Linear(self.width, config.language_width)
        nn.init.normal_(self.linear.weight, std=options.token_std / self.width**0.5)
        nn.init.zeros_(self.linear.bias)

    def _tokens(self, frames: int) -> int:
        return self.queries

    def _connect(self, features: torch.Tensor) -> torch.Tensor:
        return self.linear(self.resampler(features[:, None])[:, 0])
