"""Libra's temporal alignment connector: all layers of an encoder fused, the current image compared with a prior one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torchvision.ops import SqueezeExcitation

from bitgen.config.fields import Rate, Size, setting
from bitgen.vlm.connectors.base import Connector, check_heads, divisors
from bitgen.vlm.connectors.config import ConnectorConfig


@dataclass(frozen=True)
class TACOptions:
    heads: Size | None = setting(
        None,
        "Attention heads; they must divide the vision width. Default: the largest divisor of it that is not above the "
        "language model's heads.",
    )
    dropout: Rate = setting(0.1, "Dropout after attention and inside the MLP.")


class LayerFusion(nn.Sequential):
    """``[B, L, N, C] -> [B, 1, N, C]``: the layers are channels, which shrink to L // 2, L // 4 and 1.

    Each step is squeeze and excitation (Hu et al., 2017, arXiv 1709.01507) over the layers, then a 1 x 1 convolution
    without bias. Libra (Zhang et al., 2024, arXiv 2411.19378), Layerwise Feature Extractor.
    """

    def __init__(self, layers: int) -> None:
        half, quarter = max(1, layers // 2), max(1, layers // 4)
        steps: list[nn.Module] = []
        for count, squeezed, fused in ((layers, half, half), (half, quarter, quarter), (quarter, 1, 1)):
            steps.append(SqueezeExcitation(count, squeezed, activation=nn.GELU))
            steps.append(nn.Conv2d(count, fused, kernel_size=1, bias=False))
        super().__init__(*steps)


def similarity_weight(current: torch.Tensor, prior: torch.Tensor) -> torch.Tensor:
    """``((1 + cos) / 2)^8`` of two images' features ``[B, N, C]``, over all of their values: ``[B, 1, 1]``.

    It is computed in float32 at least. A prior of zeros has cosine 0 and the weight 2^-8.
    """
    # Not by F.cosine_similarity: over a million values its float32 sums on a CPU are off by 3e-5, those of sum are not.
    dtype = torch.promote_types(current.dtype, torch.float32)
    now, then = (image.flatten(1).to(dtype) for image in (current, prior))
    norms = [(image * image).sum(dim=1).clamp(min=1e-16).sqrt() for image in (now, then)]
    cosine = (now * then).sum(dim=1) / (norms[0] * norms[1])
    return ((1 + cosine) / 2).pow(8)[:, None, None]


class TAC(Connector):
    """The current image (picture 0) seen in the light of a prior one (picture 1): M = N, whether F is 1 or 2.

    Libra (Zhang et al., 2024, arXiv 2411.19378), Temporal Alignment Connector: a Layerwise Feature Extractor (here
    ``layer_fusion``) shared by both images, then the Temporal Fusion Module: self-attention over each image,
    cross-attention from current to prior, an MLP with the fused current image as residual, and four Linears to H. The
    scalar ``prior_bias``, weighed by the similarity of both images, marks a prior that resembles the current image.
    With one picture the prior is the current image. Weights start as torch starts them.

    Raises:
        ConfigError: ``heads`` does not divide C, or ``frames`` is above 2.
    """

    Options = TACOptions
    reads_layers = True
    most_frames = 2

    def __init__(self, config: ConnectorConfig, options: TACOptions) -> None:
        super().__init__(config, options)
        width, output_width = config.vision_width, config.language_width
        heads = options.heads or max(divisors(width, config.language_heads))
        check_heads(heads, width, "vision width", config.kind)
        self.layer_fusion = LayerFusion(config.layers)
        self.prior_bias = nn.Parameter(torch.zeros(()))
        self.current_attention = nn.MultiheadAttention(width, heads, add_bias_kv=True, batch_first=True)
        self.prior_attention = nn.MultiheadAttention(width, heads, add_bias_kv=True, batch_first=True)
        self.cross_attention = nn.MultiheadAttention(width, heads, add_bias_kv=True, batch_first=True)
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(width) for _ in range(4))
        self.dropout = nn.Dropout(options.dropout)
        self.mlp = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), self.dropout, nn.Linear(width, width), self.dropout
        )
        self.project = nn.Sequential(nn.Linear(width, output_width))
        for _ in range(3):
            self.project.extend([nn.GELU(), nn.Linear(output_width, output_width)])

    def _tokens(self, frames: int) -> int:
        return self.config.tokens

    def fuse_layers(self, images: torch.Tensor) -> torch.Tensor:
        """``[B, L, N, C] -> [B, N, C]``."""
        return self.layer_fusion(images).squeeze(1)

    def fuse_images(self, current: torch.Tensor, prior: torch.Tensor) -> torch.Tensor:
        """Layer-fused images ``[B, N, C]`` each -> ``[B, N, H]``.

        Raises:
            ValueError: the prior has another number of tokens.
        """
        if prior.shape != current.shape:
            raise ValueError(
                f"The prior image's features are {list(prior.shape)} and the current image's {list(current.shape)}; "
                "encode both at one image size."
            )
        marked = prior + (similarity_weight(current, prior) * self.prior_bias).to(prior.dtype)
        now = self.norm1(current + self._attend(self.current_attention, current, current))
        before = self.norm2(marked + self._attend(self.prior_attention, marked, marked))
        compared = self.norm3(now + self._attend(self.cross_attention, now, before))
        return self.project(self.norm4(current + self.mlp(compared)))

    def _attend(self, attention: nn.Module, query: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        # Without weights torch need not build heads x N x (N + 1) of them.
        return self.dropout(attention(query, seen, seen, need_weights=False)[0])

    def _connect(self, features: torch.Tensor) -> torch.Tensor:
        fused = self.fuse_layers(features.flatten(0, 1)).unflatten(0, features.shape[:2])  # (B, F, N, C)
        return self.fuse_images(fused[:, 0], fused[:, -1])
