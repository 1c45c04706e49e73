"""Muon, whose updates are near orthogonal matrices, and NorMuon, whose rows take steps of one length."""

from __future__ import annotations

from typing import Any

import torch

from bitgen.machine.devices import has_bf16

MOMENTUM, ROW_MOMENTUM = 0.95, 0.95
UPDATE_RMS = 0.2  # as large as AdamW's updates are (Liu et al., arXiv 2502.16982, section 2.2)
# Newton-Schulz: the coefficients and the number of steps of Muon (Jordan et al., kellerjordan.github.io/posts/muon).
COEFFICIENTS, STEPS = (3.4445, -4.7750, 2.0315), 5
TINY = 1e-7


class Muon(torch.optim.Optimizer):
    """Each matrix goes along the orthogonal matrix that is nearest to its averaged gradient (Jordan et al.), with
    Nesterov's momentum. The root mean square of an update is about 0.2, times the rate, whatever the matrix's shape.

    On a device that multiplies bfloat16 in hardware these are the bits of ``torch.optim.Muon`` with
    ``match_rms_adamw``, which computes in bfloat16 everywhere. A CPU that has to emulate it multiplies matrices far
    slower so than in float32 (60 times on one with AVX2), and would spend more time here than on the rest of a step.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # it would be evaluated by no one
        """Update each matrix that has a gradient."""
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                update, size = self._update(matrix.grad, self.state[matrix])
                matrix.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=group["lr"] * size)

    def _update(self, gradient: torch.Tensor, state: dict[str, torch.Tensor]) -> tuple[torch.Tensor, float]:
        """The direction of a matrix's step, and how far it goes at a rate of 1."""
        return self._direction(gradient, state), UPDATE_RMS * max(gradient.shape) ** 0.5

    @staticmethod
    def _direction(gradient: torch.Tensor, state: dict[str, torch.Tensor]) -> torch.Tensor:
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        average = state["momentum_buffer"].lerp_(gradient, 1 - MOMENTUM)
        return orthogonal(gradient.lerp(average, MOMENTUM)).to(gradient.dtype)  # Nesterov's


class NorMuon(Muon):
    """Muon with a second moment for each row of a matrix (Li et al., arXiv 2510.05491, algorithm 1).

    The nearest orthogonal matrix to a gradient lets all directions learn at one rate, but not all neurons: its rows are
    of unequal length. Here each row is divided by the root of its average square over past steps, and the whole is
    scaled to a root mean square of 0.2. So the rates of Muon fit.
    """

    def _update(self, gradient: torch.Tensor, state: dict[str, torch.Tensor]) -> tuple[torch.Tensor, float]:
        update = self._direction(gradient, state)
        if "row_square" not in state:
            state["row_square"] = torch.zeros_like(gradient[:, :1])
        squares = state["row_square"].lerp_(update.square().mean(dim=1, keepdim=True), 1 - ROW_MOMENTUM)
        update = update / squares.sqrt().clamp_min(TINY)
        return update * (UPDATE_RMS * update.numel() ** 0.5 / update.norm().clamp_min(TINY)), 1.0


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """Near the orthogonal matrix that is nearest to ``matrix``: singular values between 0.5 and 1.5.

    In bfloat16 where the device has it in hardware, and in float32 elsewhere.
    """
    a, b, c = COEFFICIENTS
    is_tall = matrix.shape[0] > matrix.shape[1]
    found = matrix.to(torch.bfloat16 if has_bf16(matrix.device) else torch.float32)
    found = found.mT if is_tall else found
    found = found / found.norm().clamp_min(TINY)
    for _ in range(STEPS):
        gram = found @ found.mT
        found = torch.addmm(found, torch.addmm(gram, gram, gram, beta=b, alpha=c), found, beta=a)
    return found.mT if is_tall else found
