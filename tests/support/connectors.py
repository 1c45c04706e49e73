"""Small connectors of every kind, and features for them."""

from __future__ import annotations

from typing import Any

import torch

from bitgen.vlm.connectors import Connector, ConnectorConfig, build_connector

# Options at which a kind is small and every part of it exists.
SMALL: dict[str, dict[str, Any]] = {
    "linear": {},
    "mlp": {"depth": 3},
    "pixel_shuffle": {"factor": 2},
    "c_abstractor": {"queries": 4, "width": 24, "depth": 2, "eos_tokens": 1, "prenorm": True},
    "resampler": {"queries": 5, "heads": 4},
    "perceiver": {"queries": 5, "depth": 2, "heads": 2, "head_width": 8},
    "tac": {"dropout": 0.0},
}
SIZES = dict(vision_width=12, language_width=32, tokens=16, layers=4, frames=2, language_heads=5)


def small_config(kind: str, **changes: Any) -> ConnectorConfig:
    """``changes`` are sizes, or ``options`` in place of those in ``SMALL``."""
    return ConnectorConfig(**(dict(kind=kind, options=SMALL.get(kind, {})) | SIZES | changes))


def small_connector(kind: str, seed: int = 0, **changes: Any) -> Connector:
    """A connector of :func:`small_config`, in evaluation mode."""
    torch.manual_seed(seed)
    return build_connector(small_config(kind, **changes)).eval()


def features_for(connector: Connector, visuals: int = 3, frames: int = 1, seed: int = 1) -> torch.Tensor:
    """Random ``[B, F, L, N, C]``."""
    config, generator = connector.config, torch.Generator().manual_seed(seed)
    sizes = (visuals, frames, config.layers, config.tokens, config.vision_width)
    return torch.randn(sizes, generator=generator)
