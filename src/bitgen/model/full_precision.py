"""Products of float32 that are products of float32."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def full_precision(device_type: str) -> Iterator[None]:
    """Neither autocast nor TF32, which has 10 bits of mantissa, in what is computed inside; for algebra that half
    precision ruins. Gradients of it are computed outside, as those of everything else."""
    was = torch.get_float32_matmul_precision()
    try:
        if was != "highest":
            torch.set_float32_matmul_precision("highest")
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        if was != "highest":
            torch.set_float32_matmul_precision(was)
