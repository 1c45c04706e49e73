"""One block of cross-attention from learned queries to all tokens of a visual."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from bitgen.config.fields import AtLeastOne, Positive, Size, setting
from bitgen.vlm.connectors.base import Connector, check_heads
from bitgen.vlm.connectors.config import ConnectorConfig

# Of a coordinate of the language model's token rows, where nothing better is known: the usual initializer_range.
TOKEN_STD = 0.02


@dataclass(frozen=True)
class ResamplerOptions:
    queries: AtLeastOne = setting(64, "Tokens that a visual becomes.")
    heads: Size = setting(8, "Attention heads; they must divide the language width.")
    token_std: Positive = setting(TOKEN_STD, "Standard deviation at which a coordinate of its output starts.")


class Resampler(Connector):
    """Learned queries attend once, at language width, to the tokens of all pictures: M = ``queries``.

    Linear C -> H on the tokens, one multi-head cross-attention, and a feed-forward layer of 4 H, each followed by
    residual and LayerNorm (post-norm): a single layer of the decoder of Vaswani et al. (2017, arXiv 1706.03762),
    section 3.1, without self-attention, as in Qwen-VL's adapter (Bai et al., 2023, arXiv 2308.12966, section 2.1).

    Queries with standard deviation 1 and a LayerNorm with gain 1 would put rows of norm sqrt(H) among token rows whose
    norm is about 1 to 3, and the queries would drown what was attended to. So queries start at N(0, 0.02) and the last
    LayerNorm's gain at ``token_std``, which makes it the standard deviation of the output.

    Raises:
        ConfigError: ``heads`` does not divide H.
    """

    Options = ResamplerOptions

    def __init__(self, config: ConnectorConfig, options: ResamplerOptions) -> None:
        super().__init__(config, options)
        width = config.language_width
        check_heads(options.heads, width, "language width", config.kind)
        self.queries = nn.Parameter(torch.empty(options.queries, width))
        self.vision_proj = nn.Linear(self.width, width)
        self.cross_attn = nn.MultiheadAttention(width, options.heads, batch_first=True)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.ffn = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        nn.init.normal_(self.queries, std=0.02)
        nn.init.constant_(self.norm2.weight, options.token_std)

    def _tokens(self, frames: int) -> int:
        return self.queries.shape[0]

    def _connect(self, features: torch.Tensor) -> torch.Tensor:
        seen = self.vision_proj(features.flatten(1, 2))  # (B, F * N, H)
        queries = self.queries.expand(len(features), -1, -1)
        attended, _ = self.cross_attn(queries, seen, seen, need_weights=False)
        hidden = self.norm1(queries + attended)
        return self.norm2(hidden + self.ffn(hidden))
