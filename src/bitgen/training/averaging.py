"""Averages of the trained weights, for evaluation: over all steps, the last ones counting most, or evenly over the last
ones."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import nn


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

    def load(self, tensors: Mapping[str, torch.Tensor], device: torch.device, steps: int) -> None:
        """Take over saved averages, of so many ``steps``."""
        self.tensors = {name: tensor.to(device).clone() for name, tensor in tensors.items()}
        self.steps = steps


class EvenAverage(WeightAverage):
    """The plain mean of the weights after each step from ``start`` on; before, there is none (stochastic weight
    averaging, arXiv 1803.05407, with a falling rate)."""

    def __init__(self, start: int) -> None:
        super().__init__(decay=0.0)
        self.start = start

    def share(self, step: int) -> float | None:
        """1/n at the n-th step; steps that were skipped are none."""
        if step < self.start:
            return None
        self.steps += 1
        return 1 / self.steps

    def load(self, tensors: Mapping[str, torch.Tensor], device: torch.device, steps: int) -> None:
        """Take over saved averages; those of a run with ``ema_decay``, which are of no ``steps``, are left out."""
        super().load(tensors if steps else {}, device, steps)


def average_of(ema_decay: float, average_last: float, steps: int) -> WeightAverage | None:
    """The average that the settings of a run of ``steps`` ask for; None: none."""
    if average_last:
        return EvenAverage(steps - max(1, round(average_last * steps)))
    return WeightAverage(ema_decay) if ema_decay else None
