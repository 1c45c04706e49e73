"""Hard negatives: who may be drawn, how often, at which rank; and the loss on them."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import chisquare
from torch.nn import functional as F

from bitgen.objectives.matching import draw_hard_negatives, matching_loss


def _unit(rows: int, width: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_drawn_as_often_as_the_softmax_of_the_cosines_says_and_never_from_the_same_image() -> None:
    candidates, draws, temperature = _unit(12, 4, seed=0), 20_000, 0.4
    ids = torch.tensor([5, 1, 2, 5, 3, 4, 6, 7, 5, 8, 9, 9])
    query = _unit(1, 4, seed=1)
    scores = [float(c) / temperature for c in (candidates.double() @ query[0].double())]
    mass = [0.0 if own == 5 else math.exp(score) for score, own in zip(scores, ids.tolist(), strict=True)]
    expected = torch.tensor(mass, dtype=torch.float64) / sum(mass) * draws

    drawn = draw_hard_negatives(
        query.expand(draws, -1),
        candidates,
        torch.full((draws,), 5),
        ids,
        temperature,
        torch.Generator().manual_seed(2),
    )

    counts = torch.bincount(drawn.index, minlength=12).double()
    allowed = ids != 5
    assert counts[~allowed].sum() == 0
    assert chisquare(counts[allowed].numpy(), expected[allowed].numpy()).pvalue > 1e-3
    # The test has teeth: without the temperature the same counts would be impossible.
    undivided = torch.tensor([m**temperature if m else 0.0 for m in mass], dtype=torch.float64)
    assert chisquare(counts[allowed].numpy(), (undivided / undivided.sum() * draws)[allowed].numpy()).pvalue < 1e-6


@pytest.mark.parametrize("seed", range(3))
def test_rank_counts_the_harder_candidates_of_other_images(seed: int) -> None:
    queries, candidates = _unit(9, 5, seed), _unit(14, 5, seed + 50)
    generator = torch.Generator().manual_seed(seed)
    query_ids, ids = torch.randint(0, 4, (9,), generator=generator), torch.randint(0, 4, (14,), generator=generator)
    drawn = draw_hard_negatives(queries, candidates, query_ids, ids, 0.3, generator)
    for row in range(9):
        own = float(queries[row] @ candidates[drawn.index[row]])
        harder = [j for j in range(14) if ids[j] != query_ids[row] and float(queries[row] @ candidates[j]) > own + 1e-6]
        assert ids[drawn.index[row]] != query_ids[row]
        assert drawn.rank[row] == 1 + len(harder)
    assert drawn.weight.tolist() == [1.0] * 9
    assert drawn.rank.max() > 1


def test_a_low_temperature_draws_the_hardest() -> None:
    queries, candidates = _unit(6, 8, 3), _unit(20, 8, 4)
    drawn = draw_hard_negatives(queries, candidates, torch.arange(6), torch.arange(20) + 50, 1e-4)
    assert torch.equal(drawn.index, (queries @ candidates.T).argmax(dim=1)) and drawn.rank.tolist() == [1] * 6


def test_a_row_without_candidates_gets_weight_0_and_the_others_do_not() -> None:
    drawn = draw_hard_negatives(_unit(3, 4, 0), _unit(2, 4, 1), torch.tensor([1, 2, 1]), torch.tensor([1, 1]), 0.07)
    assert drawn.weight.tolist() == [0.0, 1.0, 0.0]
    assert drawn.index.min() >= 0 and drawn.index.max() < 2


def test_loss_and_balanced_accuracy_by_hand() -> None:
    logits = torch.tensor([[0.0, 2.0], [1.0, 0.0], [3.0, 0.0], [0.0, 1.0], [0.0, 5.0], [2.0, 1.0]])
    labels = torch.tensor([1, 1, 0, 0, 0, 0])
    weights = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0, 1.0])
    total = 0.0
    for row, label, weight in zip(logits.tolist(), labels.tolist(), weights.tolist(), strict=True):
        total += weight * (math.log(math.exp(row[0]) + math.exp(row[1])) - row[label])
    found = matching_loss(logits, labels, weights)
    assert found.loss.item() == pytest.approx(total / 5, rel=1e-6)
    # True pairs: 1 of 2 right; hard pairs that count: 2 of 3 right.
    assert found.accuracy.item() == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_balanced_accuracy_of_always_the_same_answer_is_half() -> None:
    labels = torch.tensor([1, 0, 0, 0, 0, 0])
    for answer in (0, 1):
        logits = F.one_hot(torch.full((6,), answer), 2).float()
        assert matching_loss(logits, labels, torch.ones(6)).accuracy.item() == pytest.approx(0.5)


def test_rows_of_weight_0_give_no_gradient() -> None:
    logits = torch.randn(4, 2, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    matching_loss(logits, torch.tensor([1, 1, 0, 0]), torch.tensor([1.0, 1.0, 1.0, 0.0])).loss.backward()
    assert logits.grad[3].abs().sum() == 0 and logits.grad[:3].abs().sum(dim=1).min() > 0


def test_similarities_for_the_draw_stay_float32_under_autocast() -> None:
    # Two candidates closer together than bfloat16 can tell: the nearer one must win at a low temperature.
    query = torch.tensor([[1.0, 0.0]])
    angles = torch.tensor([0.1000, 0.1005])
    candidates = torch.stack((angles.cos(), angles.sin()), dim=1)
    with torch.autocast("cpu", torch.bfloat16):
        drawn = draw_hard_negatives(query.expand(64, -1), candidates, torch.zeros(64), torch.ones(2), 1e-6)
    assert drawn.index.tolist() == [0] * 64
