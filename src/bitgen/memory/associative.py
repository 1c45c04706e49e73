"""The closed-form memory of pairs of codes: written in one step, read from either half, forgotten exactly.

Maths: ``GenerativePseudoinverseMemory`` (Larimar, arXiv 2403.11901, eq. 3 and 4), in float64, in precision form.
Shapes: E episodes, K slots, D features of an image or a text; a pair ``[E, 2 D]`` is ``[image, text]``. What a model
speaks from is held in the same way, as pairs ``[key, value]`` of two widths.

What is written. A code z is a pair whose halves may be whitened and widened (below); its address ``w = z A+`` comes
from the prior's fixed mean A. The rows (or, with more slots than columns, the columns) of A are orthonormal, so that
``A+ = A^T`` and an address is as long as the part of the code that it can hold. The posterior's mean is taken over a
prior that *reads* as nothing: ``M = U W^T Z / sigma^2``, without the term of A. Were A itself read, any cue would find
it through slots that nobody wrote, and with more slots than cue columns the pseudo-inverse would mix it into what was
written.

What is read. With ``G = U W^T / sigma^2`` the memory is ``M = G Z``, its halves are ``G X`` and ``G Y``. A cue x is
addressed by the w with ``w G X = x`` that mixes the episodes least, the smallest ``|w G|``, and reads ``w G Y``. While
addresses are independent this is ``x X+ Y`` whatever G is: a written x_i that no other cues make up reads y_i. sigma's
shrinkage cancels and only rounding remains; so sigma may be large (0.1), and U and G well conditioned. Up to K
episodes are therefore read from the codes, and the sums are made when more are held, or looked at. (The plain
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
from torch import Tensor

from bitgen.memory.address_space import IMAGE, TEXT, AddressSpace
from bitgen.memory.reading import RANK_TOLERANCE, Reader, reader_of
from bitgen.model.episodic_memory import MemoryPrecision

# A known cue is made up of written ones to this part of its length, by a mixture no longer than this.
_UNEXPLAINED, _LONGEST_MIXTURE = 1e-2, 1.01
# Noise that a cue is allowed before cue_noise: none, the rounding of float32 features, and steps between.
_NOISES = (0.0, 1e-10, 1e-7, 1e-4)


class Reading(NamedTuple):
    """What cues read: the missing halves ``[B, D]``, and which were known ``[B]``."""

    halves: Tensor
    is_known: Tensor


class Sums(NamedTuple):
    """The addresses of the episodes ``[E, K]``, and the memory that they were written into."""

    weights: Tensor
    precision: MemoryPrecision


@dataclass(frozen=True, eq=False)
class AssociativeMemory:
    """Episodes and the memory that they are written into; immutable, so that it can be read while another is made.

    ``pairs [E, 2 D]`` and ``weights [E, K]`` are what forgetting needs; ``precision`` is the memory itself. ``known``:
    those sums where an earlier memory had them, to which a change adds; None: they are made when first asked for.
    """

    space: AddressSpace
    pairs: Tensor
    cue_noise: float
    known: Sums | None = None

    @classmethod
    def empty(cls, space: AddressSpace, cue_noise: float = 0.1) -> AssociativeMemory:
        """A memory that holds nothing. ``cue_noise``: the noise that a cue which is not exact is read with, > 0."""
        cue_noise = float(cue_noise)
        if not (math.isfinite(cue_noise * cue_noise) and cue_noise > 0):
            raise ValueError(f"cue_noise is {cue_noise}; it must be positive")
        return cls(space, torch.zeros(0, sum(space.halves), dtype=torch.float64, device=space.device), cue_noise)

    @classmethod
    def holding(cls, space: AddressSpace, pairs: Tensor, cue_noise: float = 0.1) -> AssociativeMemory:
        """A memory of ``pairs [E, 2 D]``, whose sums are made when they are needed. Raises as :meth:`written`."""
        empty = cls.empty(space, cue_noise)
        return cls(space, empty._checked(pairs), cue_noise)

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def weights(self) -> Tensor:
        """Addresses of the episodes, ``[E, K]``."""
        return self._sums.weights

    @property
    def precision(self) -> MemoryPrecision:
        """The memory itself, in precision form."""
        return self._sums.precision

    @cached_property
    def _sums(self) -> Sums:
        if self.known is not None:
            return self.known
        codes = self.space.code(self.pairs)
        weights = self.space.address(codes)
        return Sums(weights, self.space.gpm.add(self.space.nothing(), weights, codes))

    @property
    def _has_sums(self) -> bool:
        return self.known is not None or "_sums" in self.__dict__

    # ---------------------------------------------------------------- writing

    def written(self, pairs: Tensor) -> AssociativeMemory:
        """This memory with more pairs ``[E, 2 D]``, of any floating type.

        Raises:
            ValueError: pairs of another width, or NaN or infinity in them.
        """
        pairs = self._checked(pairs)
        together = torch.cat([self.pairs, pairs])
        if not self._has_sums:
            return self._with(together)
        codes = self.space.code(pairs)
        weights = self.space.address(codes)
        precision = self.space.gpm.add(self.precision, weights, codes)
        return self._with(together, Sums(torch.cat([self.weights, weights]), precision))

    def without(self, row: int) -> AssociativeMemory:
        """This memory as if episode ``row`` had never been written."""
        keep = [other for other in range(len(self)) if other != row]
        if not keep:
            return self.empty(self.space, self.cue_noise)
        sums = Sums(self.weights[keep], self._forget(row)) if self._has_sums else None
        return self._with(self.pairs[keep], sums)

    def replaced(self, row: int, pair: Tensor) -> AssociativeMemory:
        """This memory with ``pair [2 D]`` in place of episode ``row``. Raises ValueError as :meth:`written` does."""
        pair = self._checked(pair[None])
        pairs = self.pairs.clone()
        pairs[row] = pair[0]
        if not self._has_sums:
            return self._with(pairs)
        code = self.space.code(pair)
        weights, all_weights = self.space.address(code), self.weights.clone()
        all_weights[row] = weights[0]
        return self._with(pairs, Sums(all_weights, self.space.gpm.add(self._forget(row), weights, code)))

    def _forget(self, row: int) -> MemoryPrecision:
        code = self.space.code(self.pairs[row : row + 1])
        return self.space.gpm.forget(self.precision, self.weights[row : row + 1], code)

    def _with(self, pairs: Tensor, sums: Sums | None = None) -> AssociativeMemory:
        return AssociativeMemory(self.space, pairs, self.cue_noise, sums)

    def _checked(self, pairs: Tensor) -> Tensor:
        if pairs.dim() != 2 or pairs.shape[1] != sum(self.space.halves):
            raise ValueError(f"codes are {list(pairs.shape)}; this memory takes [episodes, {sum(self.space.halves)}]")
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
            raise ValueError("the memory is empty: write something into it first")
        if cues.dim() != 2 or cues.shape[1] != self.space.halves[part] or not cues.isfinite().all():
            raise ValueError(f"a cue must be [cues, {self.space.halves[part]}] without NaN, got {list(cues.shape)}")
        reader = self._reader(part)
        cues = self.space.cue(cues.to(self.space.device, torch.float64), part)
        known = torch.zeros(len(cues), dtype=torch.bool, device=cues.device)
        used = cues.new_zeros(len(cues), len(reader.cues))
        # With more episodes than slots, a mixture of addresses is none of episodes and its length says nothing.
        for noise in (*(_NOISES if len(self) <= self.space.slots else ()), self.cue_noise):
            used = torch.where(known[:, None], used, reader.mixed(cues, noise))
            left = (cues - used @ reader.cues).norm(dim=1)
            known |= (left <= _UNEXPLAINED * cues.norm(dim=1)) & (used.norm(dim=1) <= _LONGEST_MIXTURE)
            if known.all():
                break
        known &= len(self) <= self.space.slots
        return Reading(used @ reader.values, known)

    def errors(self, read: Tensor, part: int) -> Tensor:
        """Relative distances ``|read - written| / |written|`` of halves ``[B, D]`` from all written, ``[B, E]``."""
        stored = self.seen(part)
        # Differences, not the faster products: those lose half of the digits.
        distance = torch.cdist(read, stored, compute_mode="donot_use_mm_for_euclid_dist")
        return distance / stored.norm(dim=1).clamp_min(torch.finfo(torch.float64).tiny)

    @property
    def condition(self) -> float:
        """The worse of the two halves' condition numbers: how many times a relative error of a cue may grow."""
        return max(self._reader(part).condition() for part in (IMAGE, TEXT)) if len(self) else 1.0

    # Computed when first read: a writer that writes a hundred times pays once. Two threads may both compute it.
    def _reader(self, part: int) -> Reader:
        return self._image_reader if part == IMAGE else self._text_reader

    @cached_property
    def _image_reader(self) -> Reader:
        return self._new_reader(IMAGE)

    @cached_property
    def _text_reader(self) -> Reader:
        return self._new_reader(TEXT)

    def _new_reader(self, part: int) -> Reader:
        if len(self) <= self.space.slots:
            return reader_of(self.space.cue(self.halves(part), part), self.seen(1 - part))
        width, other = self.space.cue_width, self.space.halves[1 - part]
        mean = self._rows
        parts = mean[:, :width], mean[:, width:]
        return reader_of(parts[part], parts[1 - part][:, :other])

    @cached_property
    def _rows(self) -> Tensor:
        """The memory's mean in coordinates in which the episodes' mixtures keep their length, ``[e, 2 cue_width]``."""
        basis = torch.linalg.qr(self.weights.mT).Q  # of the written addresses, [K, e]
        projected = torch.cholesky_solve(basis, torch.linalg.cholesky(self.precision.precision))  # U Q
        mean = projected.mT @ self.precision.information  # Q^T M, [e, 2 width]
        metric = (basis.mT @ projected - projected.mT @ projected) / self.space.sigma**2  # Q^T G G^T Q
        values, vectors = torch.linalg.eigh(metric)
        kept = values > RANK_TOLERANCE * values[-1]
        return (vectors[:, kept] / values[kept].sqrt()).mT @ mean  # turns Q^T G into orthonormal rows
