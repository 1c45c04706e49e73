"""Random codes for the memory's tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F


def _pairs(count: int, half: int = 16, seed: int = 0) -> Tensor:
    draw = torch.randn(count, 2, half, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(draw, dim=2).flatten(1)


@pytest.fixture(scope="session")
def pairs() -> Callable[..., Tensor]:
    """``pairs(count, half=16, seed=0)``: random codes ``[count, 2 half]`` of unit images and unit texts."""
    return _pairs
