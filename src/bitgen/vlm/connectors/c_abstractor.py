"""Honeybee's C-Abstractor: convolutions that mix neighbouring patches around an adaptive pooling."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torchvision.ops import SqueezeExcitation

from bitgen.config.fields import AtLeastOne, Depth, Few, Size, setting
from bitgen.vlm.connectors.base import Connector, side_of_square
from bitgen.vlm.connectors.config import ConnectorConfig, its_setting


class ConvNorm(nn.Module):
    """A convolution without bias, then LayerNorm over the channels: ``[B, D, h, w] -> [B, E, h, w]``."""

    def __init__(self, width: int, output_width: int, kernel: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, output_width, kernel, padding=kernel // 2, groups=groups, bias=False)
        self.norm = nn.LayerNorm(output_width)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(image).movedim(1, -1)).movedim(-1, 1)


class RegNetBlock(nn.Module):
    """The Y block of RegNet (Radosavovic et al., 2020, arXiv 2003.13678) at stride 1 with depthwise groups.

    1 x 1 convolution, 3 x 3 depthwise convolution, squeeze and excitation to a quarter of the block's *input* width,
    1 x 1 convolution, and the shortcut, which is a 1 x 1 convolution where widths differ.
    """

    def __init__(self, width: int, output_width: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(width, output_width)
        self.conv2 = ConvNorm(output_width, output_width, kernel=3, groups=output_width)
        self.se = SqueezeExcitation(output_width, max(1, round(0.25 * width)), activation=nn.SiLU)
        self.conv3 = ConvNorm(output_width, output_width)
        self.shortcut = nn.Identity() if width == output_width else ConvNorm(width, output_width)
        self.act = nn.SiLU()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        hidden = self.act(self.conv2(self.act(self.conv1(image))))
        return self.act(self.conv3(self.se(hidden)) + self.shortcut(image))


def _stage(depth: int, width: int, output_width: int) -> nn.Sequential:
    return nn.Sequential(*(RegNetBlock(output_width if number else width, output_width) for number in range(depth)))


@dataclass(frozen=True)
class CAbstractorOptions:
    queries: AtLeastOne = setting(144, "Tokens that a picture becomes, a square number.")
    width: Size = setting(1024, "Channels of the convolutions.")
    depth: Few = setting(3, "Convolution blocks before the pooling, and as many after it; 0: the pooling alone.")
    mlp_depth: Depth = setting(2, "Linears after the convolutions, with a SiLU between each two.")
    pos_emb: bool = setting(True, "Add a learned position embedding to the patches.")
    eos_tokens: Few = setting(0, "Learned tokens that follow those of each picture.")
    prenorm: bool = setting(False, "LayerNorm on the patches first.")


class CAbstractor(Connector):
    """Convolutions, adaptive average pooling, convolutions and an MLP: M = F * (``queries`` + ``eos_tokens``).

    Honeybee (Cha et al., 2023, arXiv 2312.06742), C-Abstractor: locality is kept, and the number of tokens is
    free. Each picture goes through it by itself. Weights start as there: N(0, 0.02), truncated for the positions.

    Raises:
        ConfigError: N or ``queries`` is no square.
    """

    Options = CAbstractorOptions

    def __init__(self, config: ConnectorConfig, options: CAbstractorOptions) -> None:
        super().__init__(config, options)
        kind, width, output_width = config.kind, self.width, config.language_width
        remedy = "write another kind or another encoder"
        self.side = side_of_square(config.tokens, "the number of tokens of a picture", kind, remedy)
        pooled = side_of_square(options.queries, "queries", kind, f"write 64 or 144, say{its_setting('queries')}")
        inner = options.width if options.depth else width
        self.prenorm = nn.LayerNorm(width, eps=1e-6) if options.prenorm else None
        self.pos_emb = nn.Parameter(torch.empty(1, config.tokens, width)) if options.pos_emb else None
        self.stage1 = _stage(options.depth, width, inner)
        self.pool = nn.AdaptiveAvgPool2d(pooled)
        self.stage2 = _stage(options.depth, inner, inner)
        self.readout = nn.Sequential(nn.Linear(inner, output_width))
        for _ in range(options.mlp_depth - 1):
            self.readout.extend([nn.SiLU(), nn.Linear(output_width, output_width)])
        count = options.eos_tokens
        self.eos_tokens = nn.Parameter(torch.empty(1, count, output_width)) if count else None
        self.queries = options.queries + count
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for table in (self.pos_emb, self.eos_tokens):
            if table is not None:
                nn.init.trunc_normal_(table, std=0.02)

    def _tokens(self, frames: int) -> int:
        return frames * self.queries

    def _connect(self, features: torch.Tensor) -> torch.Tensor:
        pictures, frames = features.flatten(0, 1), features.shape[1]
        if self.prenorm is not None:
            pictures = self.prenorm(pictures)
        if self.pos_emb is not None:
            pictures = pictures + self.pos_emb
        image = pictures.transpose(1, 2).unflatten(2, (self.side, self.side))  # (B * F, L * C, h, w)
        image = self.stage2(self.pool(self.stage1(image)))
        tokens = self.readout(image.flatten(2).transpose(1, 2))
        if self.eos_tokens is not None:
            tokens = torch.cat([tokens, self.eos_tokens.expand(len(tokens), -1, -1)], dim=1)
        return tokens.unflatten(0, (-1, frames)).flatten(1, 2)
