"""What the training loop itself is told."""

from __future__ import annotations

from dataclasses import dataclass

from bitgen.training.origin import Start


@dataclass(frozen=True)
class LoopSettings:
    """What the loop itself is told; ``bitgen.config`` documents each. ``started_from``: what a new run keeps of the one
    whose weights it starts with (:func:`bitgen.training.origin.started_from`)."""

    seed: int
    max_grad_norm: float
    ema_decay: float
    average_last: float
    max_nonfinite_steps: int
    max_words_seen: int | None
    save_steps: int
    eval_steps: int
    log_steps: int
    words_seen_checkpoints: bool
    started_from: Start | None = None
