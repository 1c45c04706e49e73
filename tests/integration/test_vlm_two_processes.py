"""Models of parts on two gloo processes, of which one has text alone: as one process with the batches of both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from support.warm import run_warm

WORKER = Path(__file__).with_name("vlm_worker.py")
CASES = ("connector", "adapter", "vision", "language")
WAYS = ("replicated", "sharded")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What each process found, by way and case."""
    folder = tmp_path_factory.mktemp("vlm")
    for processes, ways in ((1, ["alone"]), (2, WAYS)):
        done = run_warm([WORKER, folder, *ways], processes)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


def found(folder: Path, way: str, case: str, rank: int = 0) -> dict[str, Any]:
    return torch.load(folder / f"{way}.{case}.{rank}.pt", weights_only=True)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one(folder: Path, way: str, case: str) -> None:
    alone, first, second = found(folder, "alone", case), found(folder, way, case), found(folder, way, case, 1)
    assert first["weights"].keys() == alone["weights"].keys() and len(alone["weights"]) >= 2
    for name, tensor in first["weights"].items():
        assert torch.equal(tensor, second["weights"][name]), name
        torch.testing.assert_close(tensor, alone["weights"][name], atol=1e-5, rtol=0)
    assert first["norm"] == second["norm"] == pytest.approx(alone["norm"], rel=1e-5)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES)
def test_answers_are_those_of_one_process_and_training_could_go_on(folder: Path, way: str, case: str) -> None:
    alone, both = found(folder, "alone", case), [found(folder, way, case, rank) for rank in (0, 1)]
    assert both[0]["answers"] == both[1]["answers"] == alone["answers"]
    assert len(set(alone["answers"])) > 1 and len(alone["answers"]) == 4
    assert both[0]["loss"] == pytest.approx(alone["loss"], abs=1e-5)
