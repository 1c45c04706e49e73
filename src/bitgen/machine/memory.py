"""How much memory the process has taken, and whether it keeps what it has freed."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from collections.abc import Mapping
from pathlib import Path

_STATUS = Path("/proc/self/status")

# Of glibc's malloc.h: the parameters of mallopt, and how much freed memory is kept (the most that an int can say is
# twice as much).
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _KEPT = -1, -3, 2**30
# Whoever set one of these has chosen how memory is kept.
_CHOSEN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES", "LD_PRELOAD")


def keep_freed_memory(environment: Mapping[str, str] = os.environ) -> bool:
    """Let malloc keep what is freed for the next step, which asks for the same again; whether it could be told so.

    By itself glibc gives tensors of some megabytes back to the system, which then clears each page anew: a twentieth of
    a small model's training step on a CPU (docs/lab_log.md). No number depends on it. Other C libraries than glibc, and
    environments in which somebody chose, are left alone.
    """
    if not sys.platform.startswith("linux") or any(environment.get(name) for name in _CHOSEN):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return all([mallopt(_MMAP_THRESHOLD, _KEPT), mallopt(_TRIM_THRESHOLD, _KEPT)])


def peak_resident_bytes() -> int:
    """The most memory that this process has had resident, in bytes.

    On Linux it is the process's own ``VmHWM``. ``getrusage`` would tell of a child at least what its parent had when it
    was started, since the kernel keeps that figure over fork and exec.
    """
    try:
        lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:  # not Linux
        lines = []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
