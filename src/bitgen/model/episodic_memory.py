"""Episodic memory: the Generative Pseudo-inverse Memory's maths, and the layer that puts it into the network.

Sources: Pham et al., "Generative Pseudo-Inverse Memory" (ICLR 2022); Das et al., "Larimar" (arXiv 2403.11901).
Shapes: E codes of an episode ``Z [E, C]``, memory mean ``M [K, C]``, row covariance ``U [K, K]``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from .configuration_bitgen import BitGenConfig
from .full_precision import full_precision

LOGVAR_RANGE = (-6.0, 2.0)


class MemoryPosterior(NamedTuple):
    """Matrix-normal memory: ``mean [K, C]``, row covariance ``covariance [K, K]``; columns are independent."""

    mean: torch.Tensor
    covariance: torch.Tensor


class MemoryReader(NamedTuple):
    """A memory that is ready to be read: ``mean [K, C]`` and its pseudo-inverse ``inverse [C, K]``."""

    mean: torch.Tensor
    inverse: torch.Tensor


def _cholesky(matrix: torch.Tensor) -> torch.Tensor:
    """The lower factor; NaN where the matrix has none, so that a bad step is skipped rather than ending the run."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    return torch.where(failed == 0, factor, torch.nan)


class MemoryPrecision(NamedTuple):
    """The posterior in precision form, to which episodes add up: ``precision = U^-1``, ``information = U^-1 M``."""

    precision: torch.Tensor
    information: torch.Tensor

    def solve(self) -> MemoryPosterior:
        """Mean and covariance; one Cholesky factorisation of a K x K matrix."""
        factor = _cholesky(self.precision)
        return MemoryPosterior(torch.cholesky_solve(self.information, factor), torch.cholesky_inverse(factor))


def pseudo_inverse(matrix: torch.Tensor, steps: int = 30, tolerance: float = 1e-5) -> torch.Tensor:
    """Moore-Penrose inverse ``[K, C] -> [C, K]`` by the Newton-Schulz (Ben-Israel-Cohen) iteration X <- 2X - X A X.

    Starts from ``A^T / (|A|_1 |A|_inf)``, which always converges, and keeps the first X whose relative residual
    ``|A X A - A| / |A|`` is within ``tolerance``: past that point rounding grows again when A is rank-deficient.
    At most ``steps`` iterations; on a CPU it stops there, on a GPU no value is read back, so that it never waits.
    """
    scale = torch.linalg.matrix_norm(matrix, 1) * torch.linalg.matrix_norm(matrix, math.inf)
    tiny = torch.finfo(matrix.dtype).tiny
    estimate = matrix.mT / scale.clamp_min(tiny)
    norm = torch.linalg.matrix_norm(matrix).clamp_min(tiny)
    for _ in range(steps):
        projected = estimate @ matrix  # (C, C)
        residual = torch.linalg.matrix_norm(matrix @ projected - matrix) / norm
        if matrix.device.type == "cpu" and residual <= tolerance:
            break  # the same result; what is left would keep this estimate
        estimate = torch.where(residual <= tolerance, estimate, 2 * estimate - projected @ estimate)
    return estimate


def _in_full_precision(method: Callable[..., Any]) -> Callable[..., Any]:
    """Run a memory's method in the precision of its arguments: half precision and TF32 ruin solves and inverses."""

    @functools.wraps(method)
    def precisely(self: nn.Module, tensors: Any, *args: Any, **kwargs: Any) -> Any:
        first = tensors[0] if isinstance(tensors, tuple) else tensors
        with full_precision(first.device.type):
            return method(self, tensors, *args, **kwargs)

    return precisely


class GenerativePseudoinverseMemory(nn.Module):
    """The memory's prior and its closed-form algebra; holds no episodes.

    Parameters (both learned): prior mean ``M0 [K, C]`` and log-variances of the diagonal prior covariance ``U0``,
    clamped to [-6, 2]. Everything is computed in the dtype of ``prior_mean`` (float32), also under autocast.

    Args:
        slots: K.
        dim: C.
        sigma: standard deviation of the observation noise.
        steps, tolerance: of :func:`pseudo_inverse`; ``steps=0`` uses the exact inverse (SVD).
    """

    def __init__(self, slots: int, dim: int, sigma: float, steps: int = 30, tolerance: float = 1e-5) -> None:
        super().__init__()
        if slots < 1 or dim < 1 or sigma <= 0:
            raise ValueError(f"memory needs slots >= 1, dim >= 1 and sigma > 0, got {slots}, {dim}, {sigma}.")
        self.slots, self.dim, self.sigma = slots, dim, sigma
        self.steps, self.tolerance = steps, tolerance
        self.prior_mean = nn.Parameter(torch.randn(slots, dim))
        self.prior_logvar = nn.Parameter(torch.zeros(slots))

    def prior_variance(self) -> torch.Tensor:
        """Diagonal of U0, ``[K]``."""
        return self.prior_logvar.clamp(*LOGVAR_RANGE).exp()

    @_in_full_precision
    def inverse(self, mean: torch.Tensor) -> torch.Tensor:
        """Pseudo-inverse of a memory mean ``[K, C] -> [C, K]``."""
        if self.steps == 0:
            return torch.linalg.pinv(mean)
        return pseudo_inverse(mean, self.steps, self.tolerance)

    @_in_full_precision
    def address(self, codes: torch.Tensor) -> torch.Tensor:
        """Writing addresses from the fixed prior, ``W = Z M0+``: ``[E, C] -> [E, K]``."""
        return codes @ self.inverse(self.prior_mean)

    def prior_precision(self) -> MemoryPrecision:
        """The prior in precision form: the memory that holds no episode."""
        inverse_variance = 1 / self.prior_variance()
        return MemoryPrecision(torch.diag(inverse_variance), inverse_variance[:, None] * self.prior_mean)

    def add(self, memory: MemoryPrecision, weights: torch.Tensor, codes: torch.Tensor) -> MemoryPrecision:
        """Add the episodes ``(w [E, K], z [E, C])`` to a memory."""
        noise = self.sigma**2
        return MemoryPrecision(
            memory.precision + weights.mT @ weights / noise, memory.information + weights.mT @ codes / noise
        )

    def forget(self, memory: MemoryPrecision, weights: torch.Tensor, codes: torch.Tensor) -> MemoryPrecision:
        """Take episodes out again: afterwards the memory equals one that never held them, in any order."""
        noise = self.sigma**2
        return MemoryPrecision(
            memory.precision - weights.mT @ weights / noise, memory.information - weights.mT @ codes / noise
        )

    @_in_full_precision
    def write(self, codes: torch.Tensor, direct: bool = True) -> tuple[MemoryPosterior, torch.Tensor]:
        """Bayesian linear regression of the episode ``Z [E, C]`` on its addresses (Larimar, eq. 3 and 4).

        ``direct``: the whole episode in one solve; else one code after the other (Kalman form). Both give the same
        posterior. Returns it and the addresses ``W [E, K]``.
        """
        weights = self.address(codes)
        if direct:
            return self.add(self.prior_precision(), weights, codes).solve(), weights
        mean, covariance = self.prior_mean, torch.diag(self.prior_variance())
        for weight, code in zip(weights[:, None], codes[:, None], strict=True):  # (1, K), (1, C)
            projected = weight @ covariance  # (1, K)
            gain = projected / (projected @ weight.mT + self.sigma**2)
            mean = mean + gain.mT @ (code - weight @ mean)
            covariance = covariance - gain.mT @ projected
        return MemoryPosterior(mean, covariance), weights

    @_in_full_precision
    def kl(self, posterior: MemoryPosterior) -> torch.Tensor:
        """KL(posterior || prior) of the two matrix normals, divided by K*C."""
        variance = self.prior_variance()
        trace = (posterior.covariance.diagonal() / variance).sum()
        shift = posterior.mean - self.prior_mean
        distance = (shift.square() / variance[:, None]).sum()
        logdet = 2 * _cholesky(posterior.covariance).diagonal().log().sum()
        total = self.dim * trace + distance - self.dim * self.slots + self.dim * (variance.log().sum() - logdet)
        return total / (2 * self.dim * self.slots)


def readback_error(codes: torch.Tensor, reader: MemoryReader) -> torch.Tensor:
    """Relative error ``|Z M+ M - Z| / |Z|`` of reading the codes back."""
    read = codes @ reader.inverse @ reader.mean
    return torch.linalg.matrix_norm(read - codes) / torch.linalg.matrix_norm(codes).clamp_min(1e-12)


def slot_utilization(weights: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """exp(entropy of the mean squared read weights over the slots) / K, in (0, 1].

    Args:
        weights: ``[..., K]`` read weights.
        mask: ``[...]``, 1 where a position counts.
    """
    squared = weights.detach().float().square()
    if mask is not None:
        squared = squared * mask.unsqueeze(-1)
    share = squared.flatten(0, -2).sum(dim=0)
    share = share / share.sum().clamp_min(1e-12)
    entropy = -(share * share.clamp_min(1e-12).log()).sum()
    return entropy.exp() / share.numel()


class MemoryLayer(nn.Module):
    """Reads the running memory at every position and adds what it finds through a gated residual.

    Each position's own vector is the query, so nothing later in the sequence can reach it. The running mean ``state
    [K, C]`` is a buffer that gradients never enter; the trainer moves it with :meth:`consolidate_` after each step.
    """

    def __init__(self, config: BitGenConfig) -> None:
        super().__init__()
        self.gpm = GenerativePseudoinverseMemory(
            config.memory_size,
            config.memory_dim,
            config.memory_sigma,
            config.pseudoinverse_steps,
            config.pseudoinverse_tolerance,
        )
        self.direct_writing = config.direct_writing
        same = config.memory_dim == config.embed_dim
        self.to_code = nn.Identity() if same else nn.Linear(config.embed_dim, config.memory_dim, bias=False)
        self.from_code = nn.Identity() if same else nn.Linear(config.memory_dim, config.embed_dim, bias=False)
        self.read_logvar = nn.Parameter(torch.full((config.memory_size,), -4.0))
        self.gate = nn.Parameter(torch.zeros(config.embed_dim))
        self.state: torch.Tensor
        self.register_buffer("state", self.gpm.prior_mean.detach().clone())

    @property
    def _exact(self) -> torch.dtype:
        """What codes and inverses are computed in: float32 also where a user cast the model to half precision."""
        return torch.promote_types(self.gate.dtype, torch.float32)

    @_in_full_precision
    def code(self, hidden: torch.Tensor) -> torch.Tensor:
        """``[..., D] -> [..., C]``, at least float32, each code with mean 0 and variance 1 over its elements."""
        projected = self.to_code(hidden.to(self.gate.dtype)).to(self._exact)
        return F.layer_norm(projected, projected.shape[-1:])

    @torch.no_grad()
    def reader(self, state: torch.Tensor | None = None) -> MemoryReader:
        """Prepare a state (default: the running one) for reading; one pseudo-inverse serves every pass of a step."""
        mean = (self.state if state is None else state).to(self._exact)
        return MemoryReader(mean.clone(), self.gpm.inverse(mean))

    @_in_full_precision
    def forward(self, hidden: torch.Tensor, reader: MemoryReader | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """``hidden [B, T, D]`` -> ``(hidden + gate * read-out [B, T, D], mean read weights [B, T, K])``.

        In training the weights used are a sample of N(mean, exp(read_logvar)); in eval mode they are the mean.
        """
        reader = reader if reader is not None else self.reader()
        weights = self.code(hidden) @ reader.inverse
        used = weights
        if self.training:
            noise = torch.randn_like(weights)
            used = weights + noise * (0.5 * self.read_logvar.clamp(*LOGVAR_RANGE)).exp()
        read = self.from_code((used @ reader.mean).to(self.gate.dtype))
        return hidden + (self.gate * read).to(hidden.dtype), weights

    def read_kl(self, weights: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """KL(N(w_mean, exp(read_logvar)) || N(0, I)) averaged over real positions, divided by K."""
        logvar = self.read_logvar.clamp(*LOGVAR_RANGE)
        per_position = 0.5 * (logvar.exp() + weights.square() - 1 - logvar).mean(dim=-1)
        return (per_position * mask).sum() / mask.sum().clamp_min(1)

    @torch.no_grad()
    def consolidate_(self, posterior_mean: torch.Tensor, alpha: float) -> None:
        """Move the running state: ``M <- (1 - alpha) M + alpha M_posterior``."""
        self.state.lerp_(posterior_mean.to(self.state), alpha)
