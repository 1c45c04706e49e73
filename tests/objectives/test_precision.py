"""Algebra that half precision ruins is done in float32: neither autocast nor TF32 reaches it."""

from __future__ import annotations

import pytest
import torch

from bitgen.model.episodic_memory import GenerativePseudoinverseMemory
from bitgen.model.full_precision import full_precision
from bitgen.objectives.precision import outside_autocast


@pytest.fixture(autouse=True)
def tf32():
    """As a run on a GPU has it."""
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision("highest")


def state() -> tuple[str, bool]:
    return torch.get_float32_matmul_precision(), torch.is_autocast_enabled("cpu")


def test_inside_and_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def look(*_: object) -> torch.Tensor:
        seen.append(state())
        return torch.eye(2)

    monkeypatch.setattr("bitgen.model.episodic_memory.pseudo_inverse", look)
    with torch.autocast("cpu", torch.bfloat16):
        before = state()
        GenerativePseudoinverseMemory(2, 2, 0.1).inverse(torch.eye(2))
        outside_autocast(look)(torch.eye(2))
        assert state() == before == ("high", True)
        with pytest.raises(KeyError), full_precision("cpu"):
            raise KeyError
        assert state() == before
    assert seen == [("highest", False)] * 2
