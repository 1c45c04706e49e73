"""Means over ranks, of which one may have nothing to give."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from bitgen.machine import ranks


@pytest.mark.parametrize("without", [0, 1])
def test_a_rank_that_has_learned_nothing_is_no_part_of_the_mean(monkeypatch, without) -> None:
    given = [{"loss": 3.0, "acc": 0.5}, {"loss": 1.0, "acc": 1.0}, {"loss": 2.0, "acc": 0.0}]
    given[without] = {}
    pairs = [{name: (value, 1.0) for name, value in each.items()} for each in given]
    monkeypatch.setattr(ranks, "gather_objects", lambda value, processes: pairs)
    found = ranks.mean_over_ranks(SimpleNamespace(is_distributed=True), given[0])
    left = [each for each in given if each]
    assert found == {name: sum(each[name] for each in left) / 2 for name in ("loss", "acc")}


def test_ranks_weigh_by_what_their_values_are_means_over(monkeypatch) -> None:
    """The third has its value from an earlier step; none has learned of ``acc`` in this one."""
    given = [(1.0, 1.5), (3.0, 0.5), (100.0, 0.0)]
    pairs = [{"loss": each, "acc": (each[0], 0.0)} for each in given]
    monkeypatch.setattr(ranks, "gather_objects", lambda value, processes: pairs if value == pairs[0] else None)
    found = ranks.mean_over_ranks(
        SimpleNamespace(is_distributed=True), {"loss": 1.0, "acc": 1.0}, {"loss": 1.5, "acc": 0.0}
    )
    assert found == {"loss": (1.0 * 1.5 + 3.0 * 0.5) / 2, "acc": 104 / 3}


def test_one_process_has_its_own_figures() -> None:
    assert ranks.mean_over_ranks(SimpleNamespace(is_distributed=False), {"loss": 3.0}) == {"loss": 3.0}
