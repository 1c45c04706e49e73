"""The contrastive loss against a loop that spells it out, its floor, and its temperature."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bitgen.objectives.contrastive import contrastive_loss, recentre
from support.stage1 import make_objective, weights


def _by_hand(
    images: Tensor, texts: Tensor, ids: list[int], all_images: Tensor, all_texts: Tensor, all_ids: list[int], t: float
) -> tuple[float, float, float]:
    """Loss and both accuracies by plain loops over floats."""
    losses, accuracies = [], []
    for queries, candidates in ((images, all_texts), (texts, all_images)):
        total = hits = 0.0
        for query, own in zip(queries.double().tolist(), ids, strict=True):
            scores = [
                sum(a * b for a, b in zip(query, other, strict=True)) / t for other in candidates.double().tolist()
            ]
            normaliser = math.log(sum(math.exp(score) for score in scores))
            positives = [score for score, other in zip(scores, all_ids, strict=True) if other == own]
            total += sum(normaliser - score for score in positives) / len(positives)
            hits += all_ids[scores.index(max(scores))] == own
        losses.append(total / len(ids))
        accuracies.append(hits / len(ids))
    return sum(losses) / 2, *accuracies


@pytest.mark.parametrize("seed", [0, 1, 3])
def test_equals_a_loop_with_several_captions_an_image_and_a_queue(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    ids = [7, 3, 7, 9, 3, 3]
    queue_ids = [1, 7, 2, 2, 3, 11, 12, 9, 13]
    features = F.normalize(torch.randn(2, len(ids) + len(queue_ids), 8, generator=generator), dim=-1)
    # Some rows are near their partner, so that the accuracies are neither 0 nor 1.
    features[1, :4] = F.normalize(features[0, :4] + 0.8 * features[1, :4], dim=-1)
    all_ids, n = ids + queue_ids, len(ids)
    expected = _by_hand(features[0, :n], features[1, :n], ids, features[0], features[1], all_ids, 0.2)

    found = contrastive_loss(
        features[0, :n],
        features[1, :n],
        torch.tensor(ids),
        features[0],
        features[1],
        torch.tensor(all_ids),
        torch.tensor(0.2),
    )

    assert found.loss.item() == pytest.approx(expected[0], rel=1e-5)
    assert (found.acc_i2t.item(), found.acc_t2i.item()) == pytest.approx(expected[1:])
    assert 0 < found.acc_i2t < 1 and 0 < found.acc_t2i < 1


def test_the_default_temperature_has_a_floor_of_6_35_below_a_chance_of_8_35() -> None:
    rows, candidates = 128, 4096 + 128
    aligned = torch.eye(candidates)
    ids = torch.arange(candidates)

    def loss(queries: Tensor, others: Tensor) -> float:
        args = (queries, queries, ids[:rows], others, others, ids, torch.tensor(0.5))
        return contrastive_loss(*args).loss.item()

    assert loss(aligned[:rows], aligned) == pytest.approx(math.log(1 + (candidates - 1) * math.exp(-2)), abs=1e-4)
    assert loss(aligned[:rows], aligned) == pytest.approx(6.35, abs=0.01)
    same = torch.ones(candidates, 1)
    assert loss(same[:rows], same) == pytest.approx(math.log(candidates), abs=1e-4) == pytest.approx(8.35, abs=0.01)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_smoothed_targets_are_torch_s_where_each_row_has_one_positive(smoothing: float) -> None:
    generator = torch.Generator().manual_seed(3)
    images, texts = F.normalize(torch.randn(2, 6, 8, generator=generator), dim=-1)
    ids, temperature = torch.arange(6), torch.tensor(0.3)
    found = contrastive_loss(images, texts, ids, images, texts, ids, temperature, smoothing).loss
    logits = images @ texts.T / temperature
    expected = [F.cross_entropy(part, ids, label_smoothing=smoothing) for part in (logits, logits.T)]
    torch.testing.assert_close(found, sum(expected) / 2)
    shared = contrastive_loss(images, texts, ids // 2, images, texts, ids // 2, temperature, smoothing).loss
    targets = (1 - smoothing) * (ids[:, None] // 2 == ids // 2) / 2 + smoothing / 6
    expected = [F.cross_entropy(part, targets) for part in (logits, logits.T)]
    torch.testing.assert_close(shared, sum(expected) / 2)


def test_gradients_reach_both_sides_and_the_temperature() -> None:
    generator = torch.Generator().manual_seed(0)
    images, texts = (
        part.requires_grad_(True) for part in F.normalize(torch.randn(2, 5, 6, generator=generator), dim=-1)
    )
    log_temperature = torch.tensor(math.log(0.5), requires_grad=True)
    ids = torch.arange(5)

    def loss(log_t: Tensor) -> Tensor:
        return contrastive_loss(images, texts, ids, images, texts, ids, log_t.exp()).loss

    loss(log_temperature).backward()
    step = 1e-2
    with torch.no_grad():
        slope = (loss(log_temperature + step) - loss(log_temperature - step)) / (2 * step)
    assert log_temperature.grad.item() == pytest.approx(slope.item(), rel=1e-3)
    assert images.grad.abs().sum(dim=1).min() > 0 and texts.grad.abs().sum(dim=1).min() > 0


def test_similarities_stay_float32_under_autocast() -> None:
    generator = torch.Generator().manual_seed(1)
    images, texts = F.normalize(torch.randn(2, 16, 64, generator=generator), dim=-1)
    args = (images, texts, torch.arange(16), images, texts, torch.arange(16), torch.tensor(0.02))
    exact = contrastive_loss(*args).loss
    with torch.autocast("cpu", torch.bfloat16):
        found = contrastive_loss(*args).loss
    # bfloat16 similarities, divided by 0.02, are off by about 0.2 each.
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-6)


def test_clamp_keeps_the_temperature_between_a_hundredth_and_one() -> None:
    objective = make_objective(weights())
    assert objective.log_temperature.exp().item() == pytest.approx(0.5)
    for wild, kept in ((-9.0, 0.01), (2.0, 1.0), (math.log(0.3), 0.3)):
        with torch.no_grad():
            objective.log_temperature.fill_(wild)
        objective.clamp_temperature_()
        assert objective.log_temperature.exp().item() == pytest.approx(kept, rel=1e-5)
    assert objective.log_temperature.requires_grad


def test_recentred_keys_differ_as_before_and_have_the_mean_of_todays() -> None:
    generator = torch.Generator().manual_seed(2)
    keys, fresh = torch.randn(9, 5, generator=generator), torch.randn(4, 5, generator=generator) + 2
    found = recentre(keys, fresh)
    for row in range(9):
        moved = [float(keys[row, c] - keys[:, c].mean() + fresh[:, c].mean()) for c in range(5)]
        length = math.sqrt(sum(value * value for value in moved))
        assert found[row].tolist() == pytest.approx([value / length for value in moved], abs=1e-5)
    # Keys that are as today's stay where they are.
    unit = F.normalize(keys, dim=-1)
    torch.testing.assert_close(recentre(unit, unit), unit)
