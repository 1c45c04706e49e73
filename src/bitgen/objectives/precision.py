"""Losses and similarities are float32, also where autocast surrounds them, and on GPUs that have TF32."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

import torch

from bitgen.model.full_precision import full_precision

Others = ParamSpec("Others")
Result = TypeVar("Result")
OfTensor = Callable[Concatenate[torch.Tensor, Others], Result]


def outside_autocast(function: OfTensor[Others, Result]) -> OfTensor[Others, Result]:
    """Switch autocast and TF32 off in a function whose first argument is a tensor; it casts its own inputs to float32.

    Without this a matrix product inside is cast back to half precision, whatever its inputs.
    """

    @functools.wraps(function)
    def in_full_precision(tensor: torch.Tensor, *args: Others.args, **kwargs: Others.kwargs) -> Result:
        with full_precision(tensor.device.type):
            return function(tensor, *args, **kwargs)

    return in_full_precision  # type: ignore[return-value]  # to mypy what `wraps` gives is no such Callable
