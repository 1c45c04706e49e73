"""What is logged of a step whose losses it did not all take, and what of that a checkpoint keeps."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch

from bitgen.machine.ranks import Processes
from bitgen.protocols import Counts, Output
from bitgen.training import reporting
from bitgen.training.accumulation import loss_shares
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


@pytest.mark.parametrize(("supervised", "logged"), [((10, 200), 22.0), ((None, None), 12.5), ((0, 7), 23.0)])
def test_what_is_logged_of_a_step_is_the_loss_that_it_took(supervised: tuple, logged: float) -> None:
    """Micro-batches count as they do in the gradient: by the positions that their losses are means over."""
    made = reporter(0, 99.0)
    shares = loss_shares([Counts(1, 1, 1, count) for count in supervised], Processes(0, 1, torch.device("cpu")))
    losses = torch.tensor([2.0, 23.0])
    empty = [count == 0 for count in supervised]  # whose loss is no number
    outputs = [Output(loss, {} if none else {"loss": loss}, None) for loss, none in zip(losses, empty, strict=True)]
    made._take(outputs, [share.weight for share in shares])
    assert float(made.latest["loss"]) == pytest.approx(logged)
    if None not in supervised:
        assert made.weights == {"loss": pytest.approx(1.0)}
        made._take([Output(losses[0], {}, None)], [0.0])  # nothing to learn from here: the others' values count
        assert made.weights == {"loss": 0.0} and float(made.latest["loss"]) == pytest.approx(logged)
