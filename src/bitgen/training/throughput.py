"""How fast a run is: samples a second, the share of time spent waiting for data, memory, and use of the device."""

from __future__ import annotations

import resource
import sys
import time

import torch

from bitgen.model.modeling_bitgen import BitGenModel

# Dense bf16/fp16 peaks of the vendors' data sheets, FLOP/s, by a part of the device's name; first match counts.
PEAK_FLOPS = (("H200", 989e12), ("H100 PCIe", 756e12), ("H100", 989e12), ("A100", 312e12), ("L40S", 362e12))
PEAK_FLOPS += (("L4", 121e12), ("A10", 125e12), ("V100", 125e12), ("T4", 65e12), ("4090", 165e12), ("3090", 71e12))


def peak_flops(device: torch.device, precision: str) -> float | None:
    """The device's peak in the run's precision, or None where this table does not know it."""
    if device.type != "cuda" or precision == "fp32":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_FLOPS if part in name), None)


def flops_per_sample(model: BitGenModel, phase: int, text_tokens: float) -> float:
    """Estimate of one pair's forward and backward: 2 FLOP a weight and token forward, twice that backward.

    The tower's backward computes activations' gradients only with LoRA, everything with full tuning, nothing in
    phase 1. Attention's own products are left out (a few per cent at 257 tokens); the text stack runs four times
    (contrast, true pair, two hard pairs).
    """
    sizes: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        part = model.component_of(name)
        sizes[part] = sizes.get(part, 0) + parameter.numel()
    tokens = model.config.image_tokens
    tower_tokens = (model.config.tower_grid or 0) ** 2
    backward = 0 if phase == 1 else {"lora": 1, "full": 2}.get(model.config.vision_tuning, 0)
    tower = 2 * (1 + backward) * (sizes.get("vision_base", 0) + sizes.get("lora", 0)) * (tower_tokens + 1)
    connector = 6 * sizes.get("compressor", 0) * tokens
    text = 6 * (sizes.get("decoder", 0) + sizes.get("fusion", 0)) * 4 * text_tokens
    return float(tower + connector + text)


class Throughput:
    """Sums over the steps since the last report; validation and saving are not part of a step."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._reset()

    def _reset(self) -> None:
        self.samples = self.words = 0
        self.seconds = 0.0
        self.waited = 0.0

    def start_step(self) -> None:
        self._started = time.perf_counter()

    def waited_for_data(self) -> None:
        """All that the step has done so far was to wait for its batches."""
        self.waited += time.perf_counter() - self._started

    def end_step(self, samples: int, words: int) -> None:
        self.samples += samples
        self.words += words
        self.seconds += time.perf_counter() - self._started

    def report(self) -> dict[str, float]:
        """``perf/*`` since the last report."""
        seconds = max(self.seconds, 1e-9)
        scalars = {
            "perf/samples_per_sec": self.samples / seconds,
            "perf/words_per_sec": self.words / seconds,
            "perf/data_wait_fraction": self.waited / seconds,
            "perf/peak_memory_gb": self._peak_memory() / 1e9,
        }
        self._reset()
        return scalars

    def _peak_memory(self) -> float:
        if self.device.type == "cuda":
            return float(torch.cuda.max_memory_allocated(self.device))
        # Linux counts in KiB, macOS in bytes.
        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * (1 if sys.platform == "darwin" else 1024)
