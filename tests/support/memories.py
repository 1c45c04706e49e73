"""What the tests of the episodic memory write into it, and what they find in it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from bitgen.memory import EpisodicMemory


def pairs(count: int, half: int = 16, seed: int = 0) -> Tensor:
    """Random codes ``[count, 2 half]`` of unit images and unit texts."""
    draw = torch.randn(count, 2, half, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(draw, dim=2).flatten(1)


def contents(memory: EpisodicMemory) -> tuple:
    """All that a memory holds, to compare."""
    return memory.episodes, memory.codes.pairs.tolist(), memory.codes.precision.information.tolist()
