"""Connectors that map each patch token, or each small square of them, by itself: linear, mlp, pixel_shuffle."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from bitgen.config.fields import AtLeastOne, Depth, setting
from bitgen.config.values import ConfigError
from bitgen.vlm.connectors.base import Connector, NoOptions, side_of_square
from bitgen.vlm.connectors.config import ConnectorConfig, its_setting


class Linear(Connector):
    """One Linear on every token: M = F * N, picture after picture.

    LLaVA (Liu et al., 2023, arXiv 2304.08485), eq. 1. It starts as torch starts a Linear.
    """

    def __init__(self, config: ConnectorConfig, options: NoOptions) -> None:
        super().__init__(config, options)
        self.linear = nn.Linear(self.width, config.language_width)

    def _tokens(self, frames: int) -> int:
        return frames * self.config.tokens

    def _connect(self, features: torch.Tensor) -> torch.Tensor:
        return self.linear(features.flatten(1, 2))


@dataclass(frozen=True)
class MLPOptions:
    depth: Depth = setting(2, "Linears, with a GELU between each two.")


class MLP(Connector):
    """Linears with GELU between them on every token: M = F * N, picture after picture.

    LLaVA-1.5 (Liu et al., 2023, arXiv 2310.03744), where the depth is 2. The weights are named
    ``linear_1``, ``linear_2``, ..., as transformers' ``LlavaMultiModalProjector`` names them; in LLaVA's own files the
    first two are ``mm_projector.0`` and ``mm_projector.2``. It starts as torch starts a Linear.
    """

    Options = MLPOptions

    def __init__(self, config: ConnectorConfig, options: MLPOptions) -> None:
        super().__init__(config, options)
        self.depth, width = options.depth, self.width
        for number in range(1, options.depth + 1):
            self.add_module(f"linear_{number}", nn.Linear(width, config.language_width))
            width = config.language_width

    def _tokens(self, frames: int) -> int:
        return frames * self.config.tokens

    def _connect(self, features: torch.Tensor) -> torch.Tensor:
        hidden = self.get_submodule("linear_1")(features.flatten(1, 2))
        for number in range(2, self.depth + 1):
            hidden = self.get_submodule(f"linear_{number}")(F.gelu(hidden))
        return hidden


@dataclass(frozen=True)
class PixelShuffleOptions:
    factor: AtLeastOne = setting(2, "Side of the squares of tokens that become one token.")


class PixelShuffle(Connector):
    """Squares of f x f tokens joined into one token of f^2 times the width, then one Linear: M = F * N / f^2.

    The space-to-depth step of Shi et al. (2016, arXiv 1609.05158), section 3.2, reversed, as Idefics3 (Laurençon et
    al., 2024, arXiv 2408.12637) puts it before a language model, with one Linear without bias. In a joined
    token the tokens of the square stand row after row.

    Raises:
        ConfigError: N is no square, or ``factor`` does not divide its side.
    """

    Options = PixelShuffleOptions

    def __init__(self, config: ConnectorConfig, options: PixelShuffleOptions) -> None:
        super().__init__(config, options)
        self.factor = options.factor
        self.side = side_of_square(
            config.tokens, "the number of tokens of a picture", config.kind, "write another kind or another encoder"
        )
        if self.side % self.factor:
            raise ConfigError(
                f"The connector {config.kind}: factor is {self.factor}, which does not divide the side {self.side} of "
                f"the map of {config.tokens} tokens; write a divisor of {self.side}{its_setting('factor')}."
            )
        self.linear = nn.Linear(self.width * self.factor**2, config.language_width, bias=False)

    def _tokens(self, frames: int) -> int:
        return frames * (self.side // self.factor) ** 2

    def _connect(self, features: torch.Tensor) -> torch.Tensor:
        across, factor = self.side // self.factor, self.factor
        squares = features.unflatten(2, (across, factor, across, factor))  # (B, F, rows, f, columns, f, C)
        joined = squares.transpose(3, 4).flatten(4).flatten(1, 3)  # (B, F * rows * columns, f * f * C)
        return self.linear(joined)
