"""Losses and similarities are float32, also where autocast surrounds them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch


def outside_autocast(function: Callable[..., Any]) -> Callable[..., Any]:
    """Switch autocast off in a function whose first argument is a tensor; it casts its own inputs to float32.

    Without this a matrix product inside is cast back to half precision, whatever its inputs.
    """

    @functools.wraps(function)
    def in_full_precision(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(tensor.device.type, enabled=False):
            return function(tensor, *args, **kwargs)

    return in_full_precision
