"""The ways in which the benchmark changes a model's memory, and its standard errors."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))  # behind src, which has a memory.py too

from memory_ways import Compared, clustered_error, gate_closed, reader_of, reading_from, write_supports

from bitgen.trained import open_model
from support.runs import written_run

OWNER = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 3])


@pytest.fixture
def model():
    return open_model(written_run(features=True)).model


def codes(seed: int = 0) -> torch.Tensor:
    return torch.randn(len(OWNER), 16, generator=torch.Generator().manual_seed(seed))


def test_support_is_written_by_the_other_captions_of_the_same_image(model) -> None:
    supports = write_supports(model.memory, codes(), OWNER)
    for caption, image in enumerate(OWNER.tolist()):
        rows = [row for row in range(len(OWNER)) if OWNER[row] == image and row != caption]
        with torch.no_grad():
            mean = model.memory.gpm.write(codes()[rows])[0].mean
        readers = reader_of(model.memory, "support", supports)(torch.tensor([caption]), torch.tensor([image]))
        torch.testing.assert_close(readers.mean[0], mean)
        torch.testing.assert_close(readers.inverse[0], torch.linalg.pinv(mean), atol=1e-3, rtol=1e-3)


def test_the_caption_in_question_and_other_images_do_not_enter_its_support(model) -> None:
    texts, before = torch.arange(len(OWNER)), write_supports(model.memory, codes(), OWNER)
    for caption in (0, 4, 6):
        changed = codes()
        changed[caption] = codes(seed=1)[caption]
        after = write_supports(model.memory, changed, OWNER)
        same = [
            torch.equal(*(part.means[part.left_out(texts, OWNER)[row]] for part in (before, after))) for row in texts
        ]
        assert same == [row == caption or OWNER[row] != OWNER[caption] for row in range(len(OWNER))]


def test_support_of_others_is_never_of_the_own_image(model) -> None:
    supports = write_supports(model.memory, codes(), OWNER)
    readers = reader_of(model.memory, "support_of_others", supports)(torch.arange(len(OWNER)), OWNER)
    own = [supports.means[OWNER == image] for image in OWNER]
    for mean, means in zip(readers.mean, own, strict=True):
        assert not any(torch.equal(mean, other) for other in means)


@torch.no_grad()
def test_a_closed_gate_is_a_model_without_memory_and_opens_again(model) -> None:
    ids = torch.arange(5)[None]
    before = model(ids)
    with gate_closed(model.memory, True):
        closed = model(ids)
    assert torch.equal(model(ids), before)
    model.memory = None
    torch.testing.assert_close(closed, model(ids))
    assert (closed - before).abs().max() > 1e-3


@torch.no_grad()
def test_reading_from_another_state_ends_with_the_block(model) -> None:
    ids, other = torch.arange(5)[None], model.memory.reader(model.memory.gpm.prior_mean)
    before = model(ids)
    with reading_from(model.memory, other):
        assert torch.equal(model(ids), model(ids, reader=other)) and not torch.equal(model(ids), before)
    assert torch.equal(model(ids), before)


def test_the_clustered_error_is_that_of_cluster_means() -> None:
    """Clusters of one size: the standard error of the mean of their means."""
    values = torch.randn(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    means = values.view(10, 4).mean(dim=1)
    found = clustered_error(values, torch.ones(40), torch.arange(10).repeat_interleave(4))
    assert found == pytest.approx((means.std() / 10**0.5).item())


def test_changes_are_paired(capsys) -> None:
    compared = Compared("x", 4, 2, scale=100.0)
    values, weights = torch.tensor([1.0, 5.0, 3.0]), torch.tensor([1.0, 2.0, 1.0])
    compared.add("on", values, weights, torch.arange(3))
    compared.add("support", values + 0.5 * weights, weights, torch.arange(3))
    on, support = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert on == {"name": "x", "episodes": 0, "slots": 4, "value": 225.0, "memory": "on"}
    assert (support["episodes"], support["change"]) == (2, 50.0) and support["standard_error"] == pytest.approx(0)
