"""How fast a run is: samples a second, the share of time spent waiting for data, memory, and use of the device."""

from __future__ import annotations

import re
import time

import torch

from bitgen.machine.memory import peak_resident_bytes

# Dense bf16/fp16 peaks of the vendors' data sheets, FLOP/s, by words of the device's name; first match counts.
PEAK_FLOPS: tuple[tuple[str, float], ...] = (
    *(("H200", 989e12), ("H100 PCIe", 756e12), ("H100 NVL", 835e12), ("H100", 989e12), ("A100", 312e12)),
    *(("L40S", 362e12), ("L40", 181e12), ("L4", 121e12), ("A10", 125e12), ("V100", 125e12), ("T4", 65e12)),
    *(("RTX 4090", 165e12), ("RTX 3090", 71e12)),
)


def peak_flops(device: torch.device, precision: str) -> float | None:
    """The device's peak in the run's precision, or None where this table does not know it."""
    if device.type != "cuda" or precision == "fp32":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_FLOPS if re.search(rf"\b{part}\b", name)), None)


class Throughput:
    """Sums over the steps since the last report; validation and saving are not part of a step.

    Args:
        precision: the run's number format, which decides the device's peak.
    """

    def __init__(self, device: torch.device, precision: str) -> None:
        self.device = device
        self.peak = peak_flops(device, precision)
        self.began: float | None = None  # when the step under way began; None between two steps
        self._reset()

    def _reset(self) -> None:
        self.samples = self.words = 0
        self.seconds = self.flops = 0.0
        self.counts_flops = True
        self.waited = 0.0

    def start_step(self) -> None:
        self.began = self._started = time.perf_counter()

    def waited_for_data(self) -> None:
        """All that the step has done so far was to wait for its batches."""
        self.waited += time.perf_counter() - self._started

    def end_step(self, samples: int, words: int, flops: float | None) -> None:
        """A step is done.

        Args:
            samples, words: of all processes.
            flops: of this one; None: nobody estimates them.
        """
        self.samples += samples
        self.words += words
        self.counts_flops &= flops is not None
        self.flops += flops or 0.0
        self.seconds += time.perf_counter() - self._started
        self.began = None

    def report(self) -> dict[str, float]:
        """``perf/*`` since the last report."""
        seconds = max(self.seconds, 1e-9)
        scalars = {
            "perf/samples_per_sec": self.samples / seconds,
            "perf/words_per_sec": self.words / seconds,
            "perf/data_wait_fraction": self.waited / seconds,
            "perf/peak_memory_gb": self._peak_memory() / 1e9,
        }
        if self.peak is not None and self.counts_flops:
            scalars["perf/mfu"] = self.flops / seconds / self.peak
        self._reset()
        return scalars

    def _peak_memory(self) -> float:
        if self.device.type == "cuda":
            return float(torch.cuda.max_memory_allocated(self.device))
        return float(peak_resident_bytes())
