"""An exponential moving average of the trained weights, for evaluation (Polyak averaging)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import nn


class WeightAverage:
    """Averages of a model's trainable parameters, by name.

    A parameter joins with its value when it is first seen trainable: adapters at the boundary. Buffers are not
    averaged: the memory's running state already is one.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.tensors: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards the weights after ``step`` updates. Early steps count more, or the start would linger."""
        decay = min(self.decay, (1 + step) / (10 + step))
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
            torch._foreach_lerp_(kept, current, 1 - decay)

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

    def load(self, tensors: Mapping[str, torch.Tensor], device: torch.device) -> None:
        """Take over saved averages."""
        self.tensors = {name: tensor.to(device).clone() for name, tensor in tensors.items()}
