"""Averages of the trained weights, for evaluation: over all steps, the last ones counting most, or evenly over the last
ones."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping

import torch
from torch import nn

logger = logging.getLogger(__name__)


class WeightAverage:
    """An exponential moving average of a model's trainable parameters, by name.

    A parameter joins with its value when it is first seen trainable: adapters at the boundary. Buffers are not
    averaged: the memory's running state already is one.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.tensors: dict[str, torch.Tensor] = {}
        self.steps = 0  # what an even average is of; saved beside the tensors

    def share(self, step: int) -> float | None:
        """How much the weights of ``step`` count against the average so far; None: not at all. Early steps count more,
        or the start would linger."""
        return 1 - min(self.decay, (1 + step) / (10 + step))

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards the weights, which were updated at ``step``."""
        share = self.share(step)
        if share is None:
            return
        kept, current = [], []
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            if name not in self.tensors:
                self.tensors[name] = parameter.detach().clone()
            else:
                kept.append(self.tensors[name])
                current.append(parameter.detach())
        if kept:
            torch._foreach_lerp_(kept, current, share)

    @contextlib.contextmanager
    def swapped_in(self, model: nn.Module) -> Iterator[None]:
        """The model with averaged weights inside the block, with its own again, bit for bit, afterwards."""
        own = {}
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                own[name] = parameters[name].detach().clone()
                parameters[name].copy_(tensor)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, tensor in own.items():
                    parameters[name].copy_(tensor)

    def load(self, tensors: Mapping[str, torch.Tensor] | None, device: torch.device, step: int, steps: int) -> None:
        """Take over the averages of a checkpoint.

        Args:
            tensors: None: it was written without.
            step: steps that its run had taken.
            steps: of which these are an even average; 0: they are a moving one.

        Raises:
            ValueError: they are not what this average would have been by then.
        """
        if tensors is None:
            raise ValueError("it holds no averaged weights (it was written without): resume with --ema_decay 0.")
        self._take(tensors, device)

    def _take(self, tensors: Mapping[str, torch.Tensor], device: torch.device) -> None:
        self.tensors = {name: tensor.to(device).clone() for name, tensor in tensors.items()}


class EvenAverage(WeightAverage):
    """The plain mean of the weights after each step from ``start`` on; before, there is none (stochastic weight
    averaging, arXiv 1803.05407, with a falling rate). A parameter that joins later counts with its first value for the
    steps before."""

    def __init__(self, start: int) -> None:
        super().__init__(decay=0.0)
        self.start = start

    def share(self, step: int) -> float | None:
        """1/n at the n-th step; steps that were skipped are none."""
        if step < self.start:
            self.tensors, self.steps = {}, 0  # of a shorter plan, whose last steps are in the middle of this one
            return None
        self.steps += 1
        return 1 / self.steps

    def load(self, tensors: Mapping[str, torch.Tensor] | None, device: torch.device, step: int, steps: int) -> None:
        """Before ``start`` there is nothing to take over; the first update drops what a shorter plan averaged."""
        moving = bool(tensors) and not steps
        if step > self.start and (tensors is None or moving):
            raise ValueError(
                f"it holds no mean of the weights since step {self.start}, where average_last begins to average. "
                f"Resume with a smaller --average_last, which begins at step {step} or later, or with --average_last 0."
            )
        if steps > step - self.start > 0:
            says = "average_last: the mean that goes on is of %d steps before this one, of a plan that began it earlier"
            logger.warning(says, steps)
        self._take({} if moving else tensors or {}, device)
        self.steps = steps


def average_of(ema_decay: float, average_last: float, steps: int) -> WeightAverage | None:
    """The average that the settings of a run of ``steps`` ask for; None: none."""
    if average_last:
        return EvenAverage(steps - max(1, round(average_last * steps)))
    return WeightAverage(ema_decay) if ema_decay else None


def warn_if_none(average: WeightAverage | None, step: int) -> None:
    """Say where a budget ends a run after ``step`` steps, and averaging was to begin later."""
    if isinstance(average, EvenAverage) and step <= average.start:
        says = "average_last: the run ends after step %d, and averaging was to begin after step %d: there is no average"
        logger.warning(says, step, average.start)
