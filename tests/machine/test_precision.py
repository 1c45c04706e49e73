"""Which numbers a run computes with, by what its device has."""

import logging

import pytest
import torch

from bitgen.config.values import ConfigError
from bitgen.machine import devices
from bitgen.machine.devices import has_bf16, resolve_precision

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("device", [CPU, GPU])
@pytest.mark.parametrize("in_hardware", [True, False])
def test_auto_takes_bf16_where_it_is_in_hardware(
    device: torch.device, in_hardware: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "has_bf16", lambda _: in_hardware)
    assert resolve_precision("auto", device).name == ("bf16" if in_hardware else "fp32")
    assert resolve_precision("fp32", device).name == "fp32"


def test_bf16_is_refused_by_a_gpu_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "has_bf16", lambda _: False)
    with pytest.raises(ConfigError, match="--precision fp16 or fp32"):
        resolve_precision("bf16", GPU)


@pytest.mark.parametrize("in_hardware", [True, False])
def test_a_cpu_that_emulates_bf16_says_so(
    in_hardware: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(devices, "has_bf16", lambda _: in_hardware)
    devices.warn_of_emulation.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert resolve_precision("bf16", CPU).name == "bf16"
    assert ("--precision auto" in caplog.text) != in_hardware


@pytest.mark.parametrize("found", [True, False])
def test_a_cpu_has_bf16_if_either_kind_of_it_is_there(found: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: found, raising=False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    assert has_bf16(CPU) == found
    for name in ("bf16", "sve_bf16"):  # an ARM
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {name: True}, raising=False)  # noqa: B023
        assert has_bf16(CPU)
