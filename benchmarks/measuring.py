"""How sections of a benchmark are measured: in turn, so that a machine that slows down slows all of them."""

from __future__ import annotations

import logging
import resource
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

from bitgen.machine.memory import peak_resident_bytes

logger = logging.getLogger("stage1_throughput")

FLOOR_OF = {
    "floor_forward": "floor_forward",
    "phase1": "floor_forward",
    "floor_forward_backward": "floor_forward_backward",
    "phase2": "floor_forward_backward",
}
LIVE = ("phase1", "phase1_other_precision")
CACHED = {"phase1_cached": None, "phase1_cached_pool7": 7}


class PeakMemory:
    """Highest memory in bytes while the block runs: `peak` afterwards. See the module docstring for what is counted."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.peak = 0
        self._stop = threading.Event()

    def __enter__(self) -> PeakMemory:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self._sampler = threading.Thread(target=self._sample, daemon=True)
            self._sampler.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            self.peak = torch.cuda.max_memory_allocated(self.device)
        else:
            self._stop.set()
            self._sampler.join()

    def _sample(self) -> None:
        while True:
            self.peak = max(self.peak, resident_bytes())
            if self._stop.wait(0.005):
                return


def resident_bytes() -> int:
    """The process's resident memory now; where the system does not tell, its highest so far."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize()
    except OSError:
        return peak_resident_bytes()


def timed(section: Callable[[], None], device: torch.device) -> float:
    """Seconds that a section takes, the device's queue of work included."""
    started = time.perf_counter()
    section()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def measure(
    sections: dict[str, Callable[[], None]],
    device: torch.device,
    samples: int,
    rounds: int,
    forget: Callable[[], None] = lambda: None,
) -> list[dict[str, str | float]]:
    """Run all sections in turn, `rounds` times after one unmeasured round; a result each.

    Args:
        forget: called after the unmeasured round: what sections count of themselves begins anew.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sections}
    peaks = dict.fromkeys(sections, 0)
    for number in range(rounds + 1):
        # Every other round backwards: what follows what must not matter.
        for name in list(sections) if number % 2 else list(reversed(sections)):
            with PeakMemory(device) as memory:
                elapsed = timed(sections[name], device)
            logger.info("round %d of %d: %s %.2f s", number, rounds, name, elapsed)
            if number:  # the first round compiles kernels, fills caches and allocates the optimizer's state
                seconds[name].append(elapsed)
                peaks[name] = max(peaks[name], memory.peak)
        if not number:
            forget()
    return [
        {
            "name": name,
            "samples_per_sec": round(samples / statistics.median(seconds[name]), 3),
            **ratio(name, seconds),
            "peak_memory_gb": round(peaks[name] / 1e9, 3),
        }
        for name in sections
    ]


def ratio(name: str, seconds: dict[str, list[float]]) -> dict[str, float]:
    """The section's speed over that of what it is compared with, under the ratio's name; none for the other precision.

    Of the live precisions the one with the smaller median counts.
    """
    if name in CACHED:
        reference = min((live for live in LIVE if live in seconds), key=lambda live: statistics.median(seconds[live]))
        title, digits = "ratio_to_phase1", 2
    elif FLOOR_OF.get(name) in seconds:
        reference, title, digits = FLOOR_OF[name], "ratio_to_floor", 4
    else:
        return {}
    pairs = zip(seconds[reference], seconds[name], strict=True)
    return {title: round(statistics.median(f / s for f, s in pairs), digits)}


def profile(sections: dict[str, Callable[[], None]], device: torch.device) -> None:
    """Log where each section's time goes, by operator."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    by = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    for name, section in sections.items():
        with torch.profiler.profile(activities=activities) as profiler:
            timed(section, device)
        logger.info("%s\n%s", name, profiler.key_averages().table(sort_by=by, row_limit=20, max_name_column_width=40))
