"""Algebra that half precision ruins is done in float32: neither autocast nor TF32 reaches it."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from bitgen.model.episodic_memory import GenerativePseudoinverseMemory
from bitgen.model.full_precision import full_precision
from bitgen.objectives.precision import outside_autocast


@pytest.fixture(autouse=True, params=["by a run", "by torch's newer name", "for all that computes"])
def tf32(request: pytest.FixtureRequest) -> Iterator[None]:
    """As ``start_processes`` switches it on, and as ``TrainingArguments(tf32=True)`` does."""
    if request.param == "by a run":
        torch.backends.cuda.matmul.allow_tf32 = True
    elif request.param == "by torch's newer name":
        torch.backends.cuda.matmul.fp32_precision = "tf32"
    else:
        torch.backends.fp32_precision = "tf32"
    yield
    torch.backends.fp32_precision = "none"
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cuda.matmul.fp32_precision = "none"


def state() -> tuple[str, bool]:
    return torch.backends.cuda.matmul.fp32_precision, torch.is_autocast_enabled("cpu")


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
        assert state() == before == ("tf32", True)
        with pytest.raises(KeyError), full_precision("cpu"):
            raise KeyError
        assert state() == before
    assert seen == [("ieee", False)] * 2


def test_of_two_threads_the_last_switches_it_on_again() -> None:
    inside, leave = threading.Event(), threading.Event()

    def stay() -> None:
        with full_precision("cpu"):
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=stay)
    with full_precision("cpu"):
        thread.start()
        inside.wait(10)
    assert state()[0] == "ieee"
    leave.set()
    thread.join()
    assert state()[0] == "tf32"
