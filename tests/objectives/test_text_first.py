"""The language loss alone for a share of the run, then everything, as if it had always been so."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch


def run(objective, batch, queue):
    torch.manual_seed(0)
    return objective(batch, queue, objective.model.memory.state)


@pytest.fixture
def both(make_objective, make_batch, make_queue, make_entries, weights, generator):
    """An objective with ``text_first`` 0.4, one of the same weights without it, a batch and a queue."""
    made = make_objective(weights(text_first=0.4, itm_temperature=0.05, itm_temperature_start=0.2))
    plain = make_objective(weights())
    plain.load_state_dict(made.state_dict())
    config = made.model.config
    queue = make_queue(config, 10)
    queue.enqueue(make_entries(config, 7, generator(2)))
    return made, plain, make_batch(config, 5, generator(1)), queue


def test_at_first_only_language_and_memory_learn(both) -> None:
    objective, _, batch, queue = both
    objective.progress = 0.39
    output = run(objective, batch, queue)
    expected = 0.25 * output.metrics["caption_loss"] + 0.1 * output.metrics["memory_kl_loss"]
    torch.testing.assert_close(output.loss.detach(), expected)
    assert output.entries is None and output.posterior is not None
    output.loss.backward()
    unreached = {name for name, p in objective.named_parameters() if p.grad is None}
    assert {"log_temperature", "model.itm_head.weight", "model.text_projection.weight"} <= unreached
    assert not any("fusion" in name or "compressor" in name or "decoder" in name for name in unreached)


@pytest.mark.parametrize("progress", [0.4, 1.0])
def test_afterwards_all_losses_are_those_of_a_run_without_it(both, progress: float) -> None:
    objective, plain, batch, queue = both
    objective.progress = progress
    plain.settings = replace(plain.settings, itm_temperature=objective.itm_temperature())
    found, expected = run(objective, batch, queue), run(plain, batch, queue)
    for name, value in expected.metrics.items():
        assert torch.equal(found.metrics[name], value), name
    assert torch.equal(found.entries.text_features, expected.entries.text_features)


def test_the_temperature_of_partners_falls_over_the_part_that_matches(both) -> None:
    objective = both[0]
    for progress, expected in ((0.0, 0.2), (0.4, 0.2), (0.7, math.sqrt(0.2 * 0.05)), (1.0, 0.05)):
        objective.progress = progress
        assert objective.itm_temperature() == pytest.approx(expected)
