"""What is logged of a step whose losses it did not all take, and what of that a checkpoint keeps."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch

from bitgen.machine.ranks import Processes
from bitgen.training import reporting
from bitgen.training.reporting import Reporter


def reporter(rank: int, loss: float) -> Reporter:
    unused = cast(Any, None)
    made = Reporter(unused, unused, Processes(rank, 2, torch.device("cpu")), unused, 1)
    made.latest = {"loss": torch.tensor(loss)}
    return made


def test_each_rank_goes_on_with_its_own_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean over ranks of a loss that the first step after a resume does not take would be another, else."""
    ranks = [reporter(0, 1.0), reporter(1, 3.0)]
    monkeypatch.setattr(reporting, "gather_objects", lambda value, ranks_: [dict(each.latest) for each in ranks])
    state = ranks[0].state()
    assert state["latest_metrics"] == {"loss": 1.0}
    for rank, loss in enumerate((1.0, 3.0)):
        again = reporter(rank, 0.0)
        again.load_state(state)
        assert again.latest == {"loss": loss}
        again.load_state({"latest_metrics": state["latest_metrics"]})  # of an earlier version
        assert again.latest == {"loss": 1.0}
        again.load_state({})
        assert again.latest == {}


def test_a_run_of_one_process_saves_its_values_alone() -> None:
    alone = reporter(0, 1.0)
    alone.ranks = Processes(0, 1, torch.device("cpu"))
    assert alone.state() == {"latest_metrics": {"loss": 1.0}}
