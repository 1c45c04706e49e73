"""The closed-form memory of pairs of codes: written in one step, read from either half, forgotten exactly.

Maths: ``GenerativePseudoinverseMemory`` (Larimar, arXiv 2403.11901, eq. 3 and 4), in float64, in precision form.
Shapes: E episodes, K slots, D features of an image or a text; a pair ``[E, 2 D]`` is ``[image, text]``.

What is written. A code z is a pair whose halves may be whitened and widened (below); its address ``w = z A+`` comes
from the prior's fixed mean A. The rows (or, with more slots than columns, the columns) of A are orthonormal, so that
``A+ = A^T`` and an address is as long as the part of the code that it can hold. The posterior's mean is taken over a
prior that *reads* as nothing: ``M = U W^T Z / sigma^2``, without the term of A. Were A itself read, any cue would find
it through slots that nobody wrote, and with more slots than cue columns the pseudo-inverse would mix it into what was
written.

What is read. With ``G = U W^T / sigma^2`` the memory is ``M = G Z``, its halves are ``G X`` and ``G Y``. A cue x is
addressed by the w with ``w G X = x`` that mixes the episodes least, the smallest ``|w G|``, and reads ``w G Y``. While
addresses are independent this is ``x X+ Y`` whatever G is: a written x_i that no other cues make up reads y_i. sigma's
shrinkage cancels and only rounding remains; so sigma may be large (0.1), and U and G well conditioned. (The plain
pseudo-inverse of ``G X`` gives the same for independent cues; but where one image is written twice, it lets the two mix
into all others.) It holds up to ``min(K, cue columns)`` episodes: the rank that addresses and cues can have. Only
directions that were written are read (those of W): elsewhere U is merely the prior's, and rounding there would look
like something known. All this comes of the memory itself: ``G G^T = (U - U^2) / sigma^2``.

Cues that are merely similar. The exact read multiplies small differences once the memory is nearly full. But a written
cue is made up of written ones, by a mixture ``v = w G`` with ``|v| <= 1``. A cue that is not is read by ridge
regression, the w with the least ``|x - w G X|^2 + noise |w G|^2``, at the least noise of a ladder at which it is.

``whitening`` takes out what all codes share (``whitening.py``); codes are then written, read and compared whitened.

More than D episodes need wider cues: ``widen`` adds K random Fourier features (Rahimi and Recht, 2007) of a Gaussian
kernel to each half, which makes the cues of different images independent; capacity is then K.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
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
# Relative to the largest singular value: what is smaller is a cue written twice, and rounding.
_RANK_TOLERANCE = 1e-10
# A known cue is made up of written ones to this part of its length, by a mixture no longer than this.
_UNEXPLAINED, _LONGEST_MIXTURE = 1e-2, 1.01
# Noise that a cue is allowed before cue_noise: none, the rounding of float32 features, and steps between.
_NOISES = (0.0, 1e-10, 1e-7, 1e-4)


class Reading(NamedTuple):
    """What cues read: the missing halves ``[B, D]``, the addresses ``[B, K]``, and which were known ``[B]``."""

    halves: Tensor
    weights: Tensor
    is_known: Tensor


class _Reader(NamedTuple):
    """One half as the cue, by its singular value decomposition in the episodes' coordinates: ``cues [c, r]``, the
    ``singular_values [r]``, largest first, and what each direction addresses ``[r, K]`` and reads ``[r, D]``."""

    cues: Tensor
    singular_values: Tensor
    addresses: Tensor
    values: Tensor


class AddressSpace:
    """All that is fixed before anything is written: the prior, and how codes are widened.

    Args:
        half: D.
        slots: K, 1 to 4,096.
        widen: add K random features to each half: capacity K instead of min(K, D), at 3 times the bytes and more.
        sigma: standard deviation of the observation noise; sigma^2 >= 1e-8.
        seed: of the prior and the random features.
        device: where everything is kept and computed, in float64.
        whitening: of the features, fixed before anything is written; None: features are taken as they are.

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
    ) -> None:
        if not 1 <= slots <= MAX_SLOTS:
            raise ValueError(f"slots is {slots}; a memory has 1 to {MAX_SLOTS:,}")
        if not (math.isfinite(sigma * sigma) and sigma * sigma >= LEAST_VARIANCE * (1 - 1e-9)):
            raise ValueError(f"sigma is {sigma}; it must be at least {math.sqrt(LEAST_VARIANCE)} for exact forgetting")
        if not -(2**63) <= seed < 2**64:
            raise ValueError(f"seed is {seed}; it must be a whole number of 64 bits")
        if whitening is not None and (whitening.means.shape, whitening.matrices.shape) != ((2, half), (2, half, half)):
            raise ValueError(f"the whitening is of features of width {whitening.means.shape[-1]}, the codes' is {half}")
        self.whitening = None if whitening is None else whitening.to(device)
        self.half, self.slots, self.widen, self.sigma, self.seed = half, slots, widen, sigma, seed
        generator = torch.Generator().manual_seed(seed)
        self.cue_width = half + slots if widen else half
        keys = _orthonormal(slots, 2 * self.cue_width, generator)
        directions = _KERNEL_SCALE * torch.randn(half, slots if widen else 0, generator=generator, dtype=torch.float64)
        phases = 2 * math.pi * torch.rand(directions.shape[1], generator=generator, dtype=torch.float64)
        with torch.device("meta"):  # draws no random numbers of the program's; the values come next
            self.gpm = GenerativePseudoinverseMemory(slots, 2 * self.cue_width, sigma)
        self.gpm.prior_mean = nn.Parameter(keys.to(device), requires_grad=False)
        self.gpm.prior_logvar = nn.Parameter(
            torch.zeros(slots, dtype=torch.float64, device=device), requires_grad=False
        )
        self._directions, self._phases = directions.to(device), phases.to(device)

    @property
    def capacity(self) -> int:
        """Episodes that can be told apart for certain."""
        return min(self.slots, self.cue_width)

    @property
    def device(self) -> torch.device:
        """Where codes have to be."""
        return self.gpm.prior_mean.device

    def seen(self, half: Tensor, part: int) -> Tensor:
        """Halves ``[B, D]`` as reads give them: whitened or as they are."""
        return half if self.whitening is None else self.whitening(half, part)

    def cue(self, half: Tensor, part: int) -> Tensor:
        """Halves ``[B, D]`` as the memory holds them, ``[B, cue_width]``."""
        half = self.seen(half, part)
        if not self.widen:
            return half
        waves = torch.cos(half @ self._directions + self._phases)
        return torch.cat([half, waves * math.sqrt(2 / self.slots)], dim=1)

    def code(self, pairs: Tensor) -> Tensor:
        """``[E, 2 D] -> [E, 2 cue_width]``."""
        return torch.cat([self.cue(pairs[:, : self.half], IMAGE), self.cue(pairs[:, self.half :], TEXT)], dim=1)

    def address(self, codes: Tensor) -> Tensor:
        """``W = Z A+``, ``[E, 2 cue_width] -> [E, K]``; A is orthonormal, so its pseudo-inverse is its transpose."""
        return codes @ self.gpm.prior_mean.mT

    def nothing(self) -> MemoryPrecision:
        """The memory that holds no episode; it reads as zero."""
        prior = self.gpm.prior_precision()
        return MemoryPrecision(prior.precision, torch.zeros_like(prior.information))


def _orthonormal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """A random matrix whose rows (at most as many as columns; else whose columns) are orthonormal.

    Beyond ``_BLOCK`` rows it is block-diagonal, over random columns: decomposing thousands by thousands takes minutes.
    """

    def block(height: int, width: int) -> Tensor:
        tall = torch.randn(max(height, width), min(height, width), generator=generator, dtype=torch.float64)
        return torch.linalg.qr(tall).Q if height >= width else torch.linalg.qr(tall).Q.mT

    count = math.ceil(rows / _BLOCK) if rows < columns else 1
    matrix = torch.zeros(rows, columns, dtype=torch.float64)
    of_rows = torch.arange(rows).tensor_split(count)
    of_columns = torch.randperm(columns, generator=generator).tensor_split(count)
    for some_rows, some_columns in zip(of_rows, of_columns, strict=True):
        matrix[some_rows[:, None], some_columns] = block(len(some_rows), len(some_columns))
    return matrix


@dataclass(frozen=True, eq=False)
class AssociativeMemory:
    """Episodes and the memory that they are written into; immutable, so that it can be read while another is made.

    ``pairs [E, 2 D]`` and ``weights [E, K]`` are what forgetting needs; ``precision`` is the memory itself.
    """

    space: AddressSpace
    pairs: Tensor
    weights: Tensor
    precision: MemoryPrecision
    cue_noise: float

    @classmethod
    def empty(cls, space: AddressSpace, cue_noise: float = 0.1) -> AssociativeMemory:
        """A memory that holds nothing. ``cue_noise``: the noise that a cue which is not exact is read with, > 0."""
        if not (math.isfinite(cue_noise) and cue_noise > 0):
            raise ValueError(f"cue_noise is {cue_noise}; it must be positive")
        pairs = torch.zeros(0, 2 * space.half, dtype=torch.float64, device=space.device)
        weights = torch.zeros(0, space.slots, dtype=torch.float64, device=space.device)
        return cls(space, pairs, weights, space.nothing(), cue_noise)

    def __len__(self) -> int:
        return len(self.pairs)

    # ---------------------------------------------------------------- writing

    def written(self, pairs: Tensor) -> AssociativeMemory:
        """This memory with more pairs ``[E, 2 D]``, of any floating type.

        Raises:
            ValueError: pairs of another width, or NaN or infinity in them.
        """
        pairs = self._checked(pairs)
        codes = self.space.code(pairs)
        weights = self.space.address(codes)
        precision = self.space.gpm.add(self.precision, weights, codes)
        return self._with(torch.cat([self.pairs, pairs]), torch.cat([self.weights, weights]), precision)

    def without(self, row: int) -> AssociativeMemory:
        """This memory as if episode ``row`` had never been written."""
        keep = [other for other in range(len(self)) if other != row]
        if not keep:
            return self.empty(self.space, self.cue_noise)
        return self._with(self.pairs[keep], self.weights[keep], self._forget(row))

    def replaced(self, row: int, pair: Tensor) -> AssociativeMemory:
        """This memory with ``pair [2 D]`` in place of episode ``row``. Raises ValueError as :meth:`written` does."""
        pair = self._checked(pair[None])
        code = self.space.code(pair)
        weights = self.space.address(code)
        precision = self.space.gpm.add(self._forget(row), weights, code)
        pairs, all_weights = self.pairs.clone(), self.weights.clone()
        pairs[row], all_weights[row] = pair[0], weights[0]
        return self._with(pairs, all_weights, precision)

    def _forget(self, row: int) -> MemoryPrecision:
        code = self.space.code(self.pairs[row : row + 1])
        return self.space.gpm.forget(self.precision, self.weights[row : row + 1], code)

    def _with(self, pairs: Tensor, weights: Tensor, precision: MemoryPrecision) -> AssociativeMemory:
        return AssociativeMemory(self.space, pairs, weights, precision, self.cue_noise)

    def _checked(self, pairs: Tensor) -> Tensor:
        if pairs.dim() != 2 or pairs.shape[1] != 2 * self.space.half:
            raise ValueError(f"codes are {list(pairs.shape)}; this memory takes [episodes, {2 * self.space.half}]")
        finite = pairs.isfinite().all(dim=1)
        if not finite.all():
            row = int((~finite).nonzero()[0])
            raise ValueError(
                f"code {row} has NaN or infinity in it: nothing was written; check the image and the model"
            )
        return pairs.to(self.space.device, torch.float64)

    # ---------------------------------------------------------------- reading

    def halves(self, part: int) -> Tensor:
        """The written images' or texts' features ``[E, D]``."""
        return self.pairs[:, : self.space.half] if part == IMAGE else self.pairs[:, self.space.half :]

    def seen(self, part: int) -> Tensor:
        """The same as :meth:`read` gives them: whitened where the space whitens."""
        return self.space.seen(self.halves(part), part)

    def read(self, cues: Tensor, part: int) -> Reading:
        """Read the missing halves of ``cues [B, D]``, which are images (``part`` IMAGE) or texts (TEXT).

        Raises:
            ValueError: the memory is empty, or the cues' width or values are not those of codes.
        """
        if not len(self):
            raise ValueError("the memory is empty: write something into it before recalling")
        if cues.dim() != 2 or cues.shape[1] != self.space.half or not cues.isfinite().all():
            raise ValueError(f"a cue must be [cues, {self.space.half}] without NaN, got {list(cues.shape)}")
        reader = self._readers[part]
        cues = self.space.cue(cues.to(self.space.device, torch.float64), part)
        along, known = cues @ reader.cues, torch.zeros(len(cues), dtype=torch.bool, device=cues.device)
        used = torch.zeros_like(along)
        # With more episodes than slots, a mixture of addresses is none of episodes and its length says nothing.
        for noise in (*(_NOISES if len(self) <= self.space.slots else ()), self.cue_noise):
            mixed = along * (reader.singular_values / (reader.singular_values.square() + noise))
            used = torch.where(known[:, None], used, mixed)
            left = (cues - (used * reader.singular_values) @ reader.cues.mT).norm(dim=1)
            known |= (left <= _UNEXPLAINED * cues.norm(dim=1)) & (used.norm(dim=1) <= _LONGEST_MIXTURE)
        known &= len(self) <= self.space.slots
        return Reading(used @ reader.values, used @ reader.addresses, known)

    def errors(self, read: Tensor, part: int) -> Tensor:
        """Relative distances ``|read - written| / |written|`` of halves ``[B, D]`` from all written, ``[B, E]``."""
        stored = self.seen(part)
        # Differences, not the faster products: those lose half of the digits.
        distance = torch.cdist(read, stored, compute_mode="donot_use_mm_for_euclid_dist")
        return distance / stored.norm(dim=1).clamp_min(torch.finfo(torch.float64).tiny)

    @property
    def condition(self) -> float:
        """The worse of the two halves' condition numbers: how many times a relative error of a cue may grow."""
        values = [self._readers[part].singular_values for part in (IMAGE, TEXT)] if len(self) else []
        return max((float(kept[0] / kept[-1]) for kept in values), default=1.0)

    # Computed when first read: a writer that writes a hundred times pays once. Two threads may both compute it.
    @cached_property
    def _readers(self) -> tuple[_Reader, _Reader]:
        width, half = self.space.cue_width, self.space.half
        basis = torch.linalg.qr(self.weights.mT).Q  # of the written addresses, [K, e]
        projected = torch.cholesky_solve(basis, torch.linalg.cholesky(self.precision.precision))  # U Q
        mean = projected.mT @ self.precision.information  # Q^T M, [e, 2 width]
        metric = (basis.mT @ projected - projected.mT @ projected) / self.space.sigma**2  # Q^T G G^T Q
        values, vectors = torch.linalg.eigh(metric)
        kept = values > _RANK_TOLERANCE * values[-1]
        whitening = vectors[:, kept] / values[kept].sqrt()  # turns Q^T G into orthonormal rows
        mean, addresses = whitening.mT @ mean, (basis @ whitening).mT
        parts = mean[:, :width], mean[:, width:]
        image, text = (_reader(parts[part], parts[1 - part][:, :half], addresses) for part in (IMAGE, TEXT))
        return image, text


def _reader(cue: Tensor, values: Tensor, addresses: Tensor) -> _Reader:
    left, singular, right = torch.linalg.svd(cue, full_matrices=False)
    rank = int((singular > _RANK_TOLERANCE * singular[0]).sum())
    mixing = left[:, :rank].mT
    return _Reader(right[:rank].mT, singular[:rank], mixing @ addresses, mixing @ values)
