"""The peaks of devices are found by whole words of their names."""

from __future__ import annotations

import pytest
import torch

from bitgen.training.throughput import peak_flops

PEAKS = {
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA L40": 181e12,
    "NVIDIA L4": 121e12,
    "NVIDIA A10": 125e12,
    "Tesla V100-SXM2-16GB": 125e12,
    "NVIDIA GeForce RTX 4090": 165e12,
    "NVIDIA A10G": None,  # another card than A10
    "NVIDIA RTX A1000": None,
    "NVIDIA RTX 4000 Ada Generation": None,
}


@pytest.mark.parametrize(("name", "peak"), PEAKS.items())
def test_a_card_has_its_own_peak_or_none(monkeypatch, name, peak) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda"), "bf16") == peak
    assert peak_flops(torch.device("cuda"), "fp32") is None
