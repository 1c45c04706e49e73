"""How micro-batches count in a step's loss: alike, or by what each one's loss is a mean over."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitgen.machine.ranks import Processes
from bitgen.protocols import Counts
from bitgen.training import accumulation
from bitgen.training.accumulation import loss_shares

ALONE = Processes(0, 1, torch.device("cpu"))


def counts(*supervised: int | None) -> list[Counts]:
    return [Counts(1, 1, 1, count) for count in supervised]


def test_batches_that_say_nothing_weigh_alike() -> None:
    shares = loss_shares(counts(None, None, None), ALONE)
    losses = torch.tensor([1.0, 2.0, 6.0])
    assert [share(loss) for share, loss in zip(shares, losses, strict=True)] == [loss / 3 for loss in losses]
    assert len(loss_shares(counts(None, 5), ALONE)) == 2, "one that says nothing makes all weigh alike"


@given(st.lists(st.integers(0, 50), min_size=1, max_size=5))
def test_the_step_s_loss_is_the_mean_over_all_supervised_positions(numbers: list[int]) -> None:
    random = torch.Generator().manual_seed(sum(numbers))
    parts = [torch.rand(count, generator=random, dtype=torch.float64) for count in numbers]
    means = [part.mean() if len(part) else torch.tensor(0.0) for part in parts]
    step = sum(share(mean) for share, mean in zip(loss_shares(counts(*numbers), ALONE), means, strict=True))
    expected = torch.cat(parts).mean() if sum(numbers) else torch.tensor(0.0, dtype=torch.float64)
    assert float(step) == pytest.approx(float(expected))


def test_ranks_share_one_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks of 3 + 5 and 7 + 1 positions, whose gradients are averaged afterwards."""
    numbers = {0: (3, 5), 1: (7, 1)}
    monkeypatch.setattr(accumulation, "sum_over_ranks", lambda ranks, own: 16)
    parts = {rank: [torch.rand(count) for count in own] for rank, own in numbers.items()}
    by_rank = []
    for rank, own in numbers.items():
        shares = loss_shares(counts(*own), Processes(rank, 2, torch.device("cpu")))
        by_rank.append(sum(share(part.mean()) for share, part in zip(shares, parts[rank], strict=True)))
    assert float(sum(by_rank) / 2) == pytest.approx(float(torch.cat([*parts[0], *parts[1]]).mean()))
