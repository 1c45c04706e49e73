"""NorMuon: Muon whose rows take steps of one length."""

from __future__ import annotations

from typing import Any

import torch

MOMENTUM, ROW_MOMENTUM = 0.95, 0.95
UPDATE_RMS = 0.2  # as large as AdamW's updates are (Liu et al., arXiv 2502.16982, section 2.2)
# Newton-Schulz: the coefficients and the number of steps of Muon (Jordan et al., kellerjordan.github.io/posts/muon).
COEFFICIENTS, STEPS = (3.4445, -4.7750, 2.0315), 5
TINY = 1e-7


class NorMuon(torch.optim.Optimizer):
    """Muon with a second moment for each row of a matrix (Li et al., arXiv 2510.05491, algorithm 1).

    The nearest orthogonal matrix to a gradient lets all directions learn at one rate, but not all neurons: its rows are
    of unequal length. Here each row is divided by the root of its average square over past steps, and the whole is
    scaled to a root mean square of 0.2. So the rates of torch's Muon with ``match_rms_adamw`` fit.
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
                update = self._update(matrix.grad, self.state[matrix])
                matrix.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=group["lr"])

    @staticmethod
    def _update(gradient: torch.Tensor, state: dict[str, torch.Tensor]) -> torch.Tensor:
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
            state["row_square"] = torch.zeros_like(gradient[:, :1])
        average = state["momentum_buffer"].lerp_(gradient, 1 - MOMENTUM)
        update = orthogonal(gradient.lerp(average, MOMENTUM)).to(gradient.dtype)  # Nesterov's
        squares = state["row_square"].lerp_(update.square().mean(dim=1, keepdim=True), 1 - ROW_MOMENTUM)
        update = update / squares.sqrt().clamp_min(TINY)
        return update * (UPDATE_RMS * update.numel() ** 0.5 / update.norm().clamp_min(TINY))


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """Near the orthogonal matrix that is nearest to ``matrix``, in bfloat16: singular values between 0.5 and 1.5."""
    a, b, c = COEFFICIENTS
    is_tall = matrix.shape[0] > matrix.shape[1]
    found = matrix.to(torch.bfloat16)
    found = found.mT if is_tall else found
    found = found / found.norm().clamp_min(TINY)
    for _ in range(STEPS):
        gram = found @ found.mT
        found = torch.addmm(found, torch.addmm(gram, gram, gram, beta=b, alpha=c), found, beta=a)
    return found.mT if is_tall else found
