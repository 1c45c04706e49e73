"""Products of float32 that are products of float32."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch

_LOCK = threading.Lock()
_inside = 0  # blocks that run now, in all threads: the setting is one for the process
_outside: str | bool = ""  # what it was before the first of them


@contextlib.contextmanager
def full_precision(device_type: str) -> Iterator[None]:
    """Neither autocast nor TF32, which has 10 bits of mantissa, in what is computed inside; for algebra that half
    precision ruins. Gradients of it are computed outside, as those of everything else."""
    global _inside, _outside
    # Older versions of torch have a switch alone. The newer name tells of what was set by either.
    products = torch.backends.cuda.matmul
    name, exact = ("fp32_precision", "ieee") if hasattr(products, "fp32_precision") else ("allow_tf32", False)
    with _LOCK:
        if _inside == 0:
            _outside = getattr(products, name)
            if _outside in ("tf32", True):
                setattr(products, name, exact)
        _inside += 1
    try:
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        with _LOCK:
            _inside -= 1
            if _inside == 0 and _outside in ("tf32", True):
                setattr(products, name, _outside)
