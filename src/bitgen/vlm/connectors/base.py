"""What every connector promises, and the checks of sizes that several kinds share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from bitgen.config.values import ConfigError
from bitgen.vlm.connectors.config import ConnectorConfig, its_setting


@dataclass(frozen=True)
class NoOptions:
    """Of a kind without options."""


class Connector(nn.Module):
    """Patch features of a visual's pictures -> embeddings at the language model's width.

    B visuals, F pictures each, L layers, N patch tokens a picture, C vision width, H language width, M tokens a visual.

    A kind says whether it ``reads_layers`` apart; otherwise it gets them concatenated on the last axis (width L * C, as
    LLaVA does). ``most_frames`` is the most pictures that the kind can compare, None for no such limit.

    Raises:
        ConfigError: sizes or options that do not fit one another; the message names the setting and what to write.
    """

    Options: ClassVar[type] = NoOptions
    reads_layers: ClassVar[bool] = False
    most_frames: ClassVar[int | None] = None

    def __init__(self, config: ConnectorConfig, options: Any) -> None:
        super().__init__()
        self.config = config
        if self.most_frames is not None and config.frames > self.most_frames:
            raise ConfigError(
                f"The connector {config.kind} takes at most {self.most_frames} pictures of a visual, and frames is "
                f"{config.frames}; write frames: {self.most_frames}, or another kind."
            )

    @property
    def width(self) -> int:
        """Width of a token as the kind reads it: C, or L * C."""
        return self.config.vision_width * (1 if self.reads_layers else self.config.layers)

    def tokens(self, frames: int) -> int:
        """M, the tokens that a visual of ``frames`` pictures becomes.

        Raises:
            ValueError: fewer than one picture, or more than the configuration's ``frames``.
        """
        self._check_frames(frames)
        return self._tokens(frames)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """``[B, F, L, N, C] -> [B, M, H]``, with M = ``tokens(F)``.

        Raises:
            ValueError: features of other sizes than the connector was built for, or too many pictures.
        """
        expected = (self.config.layers, self.config.tokens, self.config.vision_width)
        if features.ndim != 5 or features.shape[2:] != expected:
            raise ValueError(
                f"The connector {self.config.kind} reads features [visuals, frames, layers, tokens, width] that end in "
                f"{list(expected)}; these are {list(features.shape)}. Build it for the encoder that made them."
            )
        self._check_frames(features.shape[1])
        if not self.reads_layers:
            features = features.movedim(2, 3).flatten(3)  # (B, F, N, L * C)
        return self._connect(features)

    def _check_frames(self, frames: int) -> None:
        if not 1 <= frames <= self.config.frames:
            raise ValueError(
                f"The connector {self.config.kind} was built for visuals of 1 to {self.config.frames} pictures, and "
                f"one has {frames}; take fewer pictures, or build it with frames: {max(frames, 1)}"
                f"{its_setting('frames')}."
            )

    def _tokens(self, frames: int) -> int:
        raise NotImplementedError

    def _connect(self, features: torch.Tensor) -> torch.Tensor:
        """``[B, F, N, L * C]``, or ``[B, F, L, N, C]`` of a kind that ``reads_layers``, to ``[B, M, H]``."""
        raise NotImplementedError


def side_of_square(number: int, what: str, kind: str, remedy: str) -> int:
    """The side of a square map of ``number`` tokens.

    Raises:
        ConfigError: the number is no square.
    """
    side = math.isqrt(number)
    if side * side != number:
        raise ConfigError(f"The connector {kind} needs a square: {what} is {number}; {remedy}.")
    return side


def check_heads(heads: int, width: int, what: str, kind: str) -> None:
    """Heads share a width evenly.

    Raises:
        ConfigError: they do not divide it.
    """
    if width % heads:
        near = max(divisors(width, heads))
        raise ConfigError(
            f"The connector {kind}: heads is {heads}, which does not divide the {what} {width}; write a divisor of it, "
            f"as heads: {near}{its_setting('heads')}."
        )


def divisors(width: int, most: int) -> list[int]:
    """The divisors of ``width`` that are at most ``most``."""
    return [divisor for divisor in range(1, min(width, most) + 1) if width % divisor == 0]
