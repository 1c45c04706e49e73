"""The loss of next-token prediction without ever holding the ``[B, T, V]`` logits."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from bitgen.model.likelihood import CPU_CHUNK, GPU_CHUNK, IGNORED

# Chunks whose gradients at the logits meet the hidden states in one product. Such a product is a whole table, and on a
# CPU adding tables up takes as long as making them (docs/lab_log.md).
CPU_CHUNKS_A_PRODUCT, GPU_CHUNKS_A_PRODUCT = 4, 1


def language_loss(
    hidden_states: torch.Tensor,
    output_weight: torch.Tensor,
    labels: torch.Tensor,
    weights: torch.Tensor | None = None,
    divisor: float | None = None,
) -> torch.Tensor:
    """Mean cross-entropy of ``hidden_states [B, T, D] @ output_weight [V, D].T`` against ``labels [B, T]``.

    Products are taken in autocast's precision, softmax and sums in float32. 0 where every label is -100.

    Args:
        weights: ``[B, T]``, how much each label counts; of any sign where there is a ``divisor``. None: all alike.
        divisor: by what the sum is divided, in place of the sum of the weights.
    """
    device = hidden_states.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else output_weight.dtype
    learns = torch.is_grad_enabled()  # inside the function grad mode is always off
    counts = weights.flatten() if weights is not None else None
    return _ChunkedCrossEntropy.apply(
        hidden_states.flatten(0, 1), output_weight, labels.flatten(), dtype, learns, counts, divisor
    )


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy over rows, with the gradients computed along with it, some rows of logits at a time.

    A chunk's logits are computed once and stay in the processor's cache: on a CPU more than twice as fast as
    ``torch.nn.functional.linear_cross_entropy`` (docs/lab_log.md).
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        labels: torch.Tensor,
        dtype: torch.dtype,
        learns: bool,
        weights: torch.Tensor | None,
        divisor: float | None,
    ) -> torch.Tensor:
        rows, table = hidden.to(dtype), weight.to(dtype)
        exact = torch.promote_types(dtype, torch.float32)
        kept = (labels != IGNORED).to(exact)[:, None]
        if weights is not None:
            kept = kept * weights.to(exact)[:, None]
        at_hidden = torch.empty_like(rows)
        at_weight = torch.zeros_like(weight, dtype=exact)
        total = rows.new_zeros((), dtype=exact)
        on_cpu = rows.device.type == "cpu"
        chunk = CPU_CHUNK if on_cpu else GPU_CHUNK
        span = chunk * (CPU_CHUNKS_A_PRODUCT if on_cpu else GPU_CHUNKS_A_PRODUCT)
        at_logits = rows.new_empty(min(span, len(rows)) if learns else 0, len(table))
        for begin in range(0, len(rows), span):
            end = min(begin + span, len(rows))
            for start in range(begin, end, chunk):
                part = slice(start, min(start + chunk, end))
                logits, targets = rows[part] @ table.mT, labels[part, None].clamp_min(0)
                if not learns:
                    log_probs = F.log_softmax(logits, dim=1, dtype=exact).gather(1, targets)
                    total -= (log_probs * kept[part]).sum()
                    continue
                log_probs, probs = _probabilities(logits, targets, exact)
                total -= (log_probs * kept[part]).sum()
                # The gradient at the logits: probabilities, less 1 at the target.
                here = at_logits[part.start - begin : part.stop - begin]
                here.copy_(probs.scatter_add_(1, targets, -torch.ones_like(kept[part])).mul_(kept[part]))
                at_hidden[part] = here @ table
            if learns:
                at_weight += at_logits[: end - begin].mT @ rows[begin:end]
        count = kept.sum().clamp_min(1) if divisor is None else kept.new_tensor(divisor)
        ctx.hidden_type = hidden.dtype
        ctx.save_for_backward(at_hidden, at_weight, count)
        return total / count

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        at_hidden, at_weight, count = ctx.saved_tensors
        scale = gradient / count
        return (at_hidden * scale).to(ctx.hidden_type), (at_weight * scale).to(at_weight.dtype), *[None] * 5


def _probabilities(
    logits: torch.Tensor, targets: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of ``targets [n, 1]``, and all probabilities ``[n, V]``, of logits ``[n, V]``; in ``dtype``."""
    if logits.dtype == dtype:
        log_probs = F.log_softmax(logits, dim=1)
        return log_probs.gather(1, targets), log_probs.exp_()
    # Of logits in half precision one exponential is enough. The logarithm is taken where it loses nothing: the largest
    # probability is at least 1 / V, while the target's may be 0 in float32.
    logits = logits.to(dtype)
    probs = F.softmax(logits, dim=1)
    normaliser = logits.amax(dim=1, keepdim=True) - probs.amax(dim=1, keepdim=True).log()
    return logits.gather(1, targets) - normaliser, probs
