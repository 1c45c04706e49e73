"""Two gloo processes with half of a batch each, against one process with all of it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from support.warm import run_warm

WORKER = Path(__file__).with_name("two_ranks.py")


class Results(NamedTuple):
    """By case: what each of two ranks found, and what one process found alone with the whole batch."""

    ranks: list[dict]
    alone: dict


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("ranks")
    done = run_warm([WORKER, folder], processes=2)
    assert done.returncode == 0, done.stderr
    return Results(
        [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)],
        torch.load(folder / "alone.pt", weights_only=True),
    )


def _check_gradients(two: dict[str, torch.Tensor], one: dict[str, torch.Tensor]) -> None:
    assert two.keys() == one.keys() and len(two) > 20
    assert max(float(gradient.abs().max()) for gradient in one.values()) > 1e-3
    wrong = {}
    for name, gradient in one.items():
        difference, size = float((two[name] - gradient).abs().max()), float(gradient.abs().max())
        if difference > 1e-5 * max(1.0, size):
            wrong[name] = f"off by {difference:.1e} of {size:.1e}"
    assert not wrong, wrong


def _mean(results: Results, case: str, name: str) -> torch.Tensor:
    return torch.stack([found[case]["metrics"][name] for found in results.ranks]).mean()


def test_gathering_keeps_rank_order_and_sums_every_ranks_gradient(results: Results) -> None:
    weight = torch.arange(12.0).view(4, 3)
    for rank, found in enumerate(ranks["gather"] for ranks in results.ranks):
        assert found["gathered"][:, 0].tolist() == [0, 0, 1, 1] and found["numbers"].tolist() == [0, 0, 1, 1]
        assert found["distributed"]
        assert torch.equal(found["gradient"], weight[2 * rank : 2 * rank + 2] * (1 + 10))


def test_the_gathers_backward_leaves_other_gradients_alone(results: Results) -> None:
    """A tensor that shares its gradient with the gathered one must not get the sum over ranks."""
    weight = torch.arange(12.0).view(4, 3)
    for rank, found in enumerate(results.ranks):
        assert torch.equal(found["gather"]["beside"], weight * 10**rank)


def test_the_contrastive_gradient_is_that_of_one_process(results: Results) -> None:
    one = results.alone["contrastive"]
    for found in results.ranks:
        _check_gradients(found["contrastive"]["gradients"], one["gradients"])
    for name in ("contrastive_loss", "acc_i2t", "acc_t2i"):
        torch.testing.assert_close(_mean(results, "contrastive", name), one["metrics"][name], rtol=1e-5, atol=1e-6)
    # The ranks' own losses differ: only their mean is the whole.
    first, second = (found["contrastive"]["metrics"]["contrastive_loss"] for found in results.ranks)
    assert not torch.isclose(first, second)
    assert any("lora_" in name and gradient.abs().max() > 1e-6 for name, gradient in one["gradients"].items())


@pytest.mark.parametrize("case", ["memory-equal", "text-equal"])
def test_memory_and_language_gradients_are_those_of_one_process(results: Results, case: str) -> None:
    """With captions of one length: each rank averages over its own tokens, so both must hold equally many."""
    one = results.alone[case]
    for found in results.ranks:
        _check_gradients(found[case]["gradients"], one["gradients"])
    name = "memory_kl_loss" if case == "memory-equal" else "caption_loss"
    torch.testing.assert_close(_mean(results, case, name), one["metrics"][name], rtol=1e-5, atol=1e-6)


def test_the_priors_gradient_is_that_of_one_process_whatever_the_lengths(results: Results) -> None:
    one = results.alone["memory"]["gradients"]
    prior = [name for name in one if ".gpm." in name]
    assert len(prior) == 2
    for found in results.ranks:
        for name in prior:
            assert one[name].abs().max() > 1e-3
            torch.testing.assert_close(found["memory"]["gradients"][name], one[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", ["memory", "all"])
def test_the_posterior_is_equal_on_both_ranks_and_that_of_the_whole_batch(results: Results, case: str) -> None:
    first, second = (found[case] for found in results.ranks)
    assert torch.equal(first["posterior"], second["posterior"])
    torch.testing.assert_close(first["posterior"], results.alone[case]["posterior"], rtol=1e-4, atol=1e-4)
    assert torch.equal(first["metrics"]["memory_quality"], second["metrics"]["memory_quality"])


def test_all_losses_leave_both_ranks_with_equal_gradients(results: Results) -> None:
    first, second = (found["all"]["gradients"] for found in results.ranks)
    assert all(torch.equal(first[name], second[name]) for name in first)
