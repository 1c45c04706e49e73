"""What is fixed before anything is written into the closed-form memory of associative.py: its prior, and its codes."""

from __future__ import annotations

import math
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bitgen.memory.whitening import Whitening
from bitgen.model.episodic_memory import GenerativePseudoinverseMemory, MemoryPrecision

IMAGE, TEXT = 0, 1
MAX_SLOTS = 4096
LEAST_VARIANCE = 1e-8  # of the noise: below it, rounding keeps a forgotten episode above 1e-6

# Unit codes at a cosine of 0.9 keep 0.67 of their similarity, at 0.5 0.14: measured in docs/memory.md.
_KERNEL_SCALE = 2.0
# Rows of the prior's mean that are made orthonormal together.
_BLOCK = 512


class AddressSpace:
    """All that is fixed before anything is written: the prior, and how codes are widened.

    Args:
        half: D, of the first half of a pair.
        slots: K, 1 to 4,096.
        widen: add K random features to each half: capacity K instead of min(K, D), at 3 times the bytes and more.
        sigma: standard deviation of the observation noise; sigma^2 >= 1e-8.
        seed: of the prior and the random features.
        device: where everything is kept and computed, in float64.
        whitening: of the features, fixed before anything is written; None: features are taken as they are.
        value: width of the second half; None: it is as wide as the first. A pair of two widths is read from its first
            half alone, so that only that is widened.

    Raises:
        ValueError: an argument out of its range, or a whitening of another width.
    """

    def __init__(
        self,
        half: int,
        slots: int = 32,
        widen: bool = False,
        sigma: float = 0.1,
        seed: int = 0,
        device: torch.device | str = "cpu",
        whitening: Whitening | None = None,
        value: int | None = None,
    ) -> None:
        sigma = float(sigma)
        if isinstance(slots, float) or not 1 <= slots <= MAX_SLOTS:
            raise ValueError(f"slots is {slots}; a memory has 1 to {MAX_SLOTS:,}")
        if not (math.isfinite(sigma * sigma) and sigma > 0 and sigma * sigma >= LEAST_VARIANCE * (1 - 1e-9)):
            raise ValueError(f"sigma is {sigma}; it must be at least {math.sqrt(LEAST_VARIANCE)} for exact forgetting")
        if not -(2**63) <= seed < 2**64:
            raise ValueError(f"seed is {seed}; it must be a whole number of 64 bits")
        if whitening is not None:
            if (whitening.means.shape, whitening.matrices.shape) != ((2, half), (2, half, half)):
                shapes = " and ".join(str(list(part.shape)) for part in whitening)
                raise ValueError(f"the whitening's means and matrices are {shapes}; the codes' width is {half}")
            if not all(part.isfinite().all() for part in whitening):
                raise ValueError("NaN or infinity in the whitening")
            whitening = whitening.to(device)
        self.whitening = whitening
        self.half, self.slots, self.widen, self.sigma, self.seed = half, slots, widen, sigma, seed
        generator = torch.Generator().manual_seed(seed)
        self.cue_width = half + slots if widen else half
        self.halves = half, half if value is None else value
        self._widens = widen, widen and value is None
        self.width = self.cue_width + (self.cue_width if value is None else value)  # of a code
        self._drawn = _Blocks.drawn(slots, self.width, generator)
        directions = _KERNEL_SCALE * torch.randn(half, slots if widen else 0, generator=generator, dtype=torch.float64)
        phases = 2 * math.pi * torch.rand(directions.shape[1], generator=generator, dtype=torch.float64)
        self._directions, self._phases = directions.to(device), phases.to(device)

    @cached_property
    def gpm(self) -> GenerativePseudoinverseMemory:
        """The prior and its algebra; made when first asked for, as thousands of slots take a second."""
        with torch.device("meta"):  # draws no random numbers of the program's; the values come next
            gpm = GenerativePseudoinverseMemory(self.slots, self.width, self.sigma)
        zeros = torch.zeros(self.slots, dtype=torch.float64, device=self.device)
        gpm.prior_mean = nn.Parameter(self._drawn.orthonormal().to(self.device), requires_grad=False)
        gpm.prior_logvar = nn.Parameter(zeros, requires_grad=False)
        return gpm

    @property
    def capacity(self) -> int:
        """Episodes that can be told apart for certain."""
        return min(self.slots, self.cue_width)

    @property
    def device(self) -> torch.device:
        """Where codes have to be."""
        return self._directions.device

    def seen(self, half: Tensor, part: int) -> Tensor:
        """Halves ``[B, D]`` as reads give them: whitened or as they are. A half of zeros is one that is not there, and
        stays so."""
        return half if self.whitening is None else self.whitening(half, part) * _is_there(half)

    def cue(self, half: Tensor, part: int) -> Tensor:
        """Halves ``[B, D]`` as the memory holds them, ``[B, cue_width]``."""
        there, half = _is_there(half), self.seen(half, part)
        if not self._widens[part]:
            return half
        waves = torch.cos(half @ self._directions + self._phases)
        return torch.cat([half, waves * math.sqrt(2 / self.slots) * there], dim=1)

    def code(self, pairs: Tensor) -> Tensor:
        """``[E, sum of halves] -> [E, width]``."""
        return torch.cat([self.cue(pairs[:, : self.half], IMAGE), self.cue(pairs[:, self.half :], TEXT)], dim=1)

    def address(self, codes: Tensor) -> Tensor:
        """``W = Z A+``, ``[E, width] -> [E, K]``; A is orthonormal, so its pseudo-inverse is its transpose."""
        return codes @ self.gpm.prior_mean.mT

    def nothing(self) -> MemoryPrecision:
        """The memory that holds no episode; it reads as zero."""
        prior = self.gpm.prior_precision()
        return MemoryPrecision(prior.precision, torch.zeros_like(prior.information))


def spoken_space(space: AddressSpace, key: int, value: int) -> AddressSpace:
    """Where keys and values of these widths are held beside the pairs of ``space``: as many, and never whitened."""
    return AddressSpace(key, space.slots, space.widen, space.sigma, space.seed, space.device, value=value)


def _is_there(half: Tensor) -> Tensor:
    """Which rows ``[B, D]`` are not all zeros, as factors ``[B, 1]``."""
    return half.any(dim=1, keepdim=True).to(half.dtype)


class _Blocks(NamedTuple):
    """The random numbers of a matrix whose rows (at most as many as columns; else whose columns) are orthonormal.

    Beyond ``_BLOCK`` rows it is block-diagonal, over random columns: decomposing thousands by thousands takes minutes.
    """

    shape: tuple[int, int]
    places: list[tuple[Tensor, Tensor]]  # rows and columns of each block
    numbers: list[Tensor]  # as many as a block has, with at least as many rows as columns

    @classmethod
    def drawn(cls, rows: int, columns: int, generator: torch.Generator) -> _Blocks:
        count = math.ceil(rows / _BLOCK) if rows < columns else 1
        of_columns = torch.randperm(columns, generator=generator).tensor_split(count)
        places = list(zip(torch.arange(rows).tensor_split(count), of_columns, strict=True))
        sizes = [sorted((len(some_rows), len(some_columns)), reverse=True) for some_rows, some_columns in places]
        numbers = [torch.randn(*size, generator=generator, dtype=torch.float64) for size in sizes]
        return cls((rows, columns), places, numbers)

    def orthonormal(self) -> Tensor:
        """The matrix ``[rows, columns]``."""
        matrix = torch.zeros(self.shape, dtype=torch.float64)
        for (rows, columns), numbers in zip(self.places, self.numbers, strict=True):
            block = torch.linalg.qr(numbers).Q
            matrix[rows[:, None], columns] = block if len(rows) >= len(columns) else block.mT
        return matrix
