"""Image tokens must not say which pairs are true: not by smoothing, rounding or age, nor by whose pictures are drawn.

A matching pass has four parts: true pairs, hard texts, hard images and the partners' own true pairs. A classifier sees
the image tokens alone. Every picture is in as many true pairs as wrong ones, so over the whole pass it must stay at
chance, also where negatives are drawn hard and a few hubs are everybody's partner. That the balance carries this is
shown by the first three parts alone, where the same classifier succeeds.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bitgen.model.modeling_bitgen import BitGenModel
from support.stage1 import forward, generator, make_batch, make_objective, make_queue, weights

GRID, BATCH, STEPS, WARM_UP = 10, 16, 70, 10
UNIFORM, USUAL = 100.0, 0.07  # temperatures of drawing negatives


def _photographs(count: int, feature_dim: int, random: torch.Generator) -> Tensor:
    """Patch features that vary smoothly over a 10 x 10 grid, with some noise: averaging takes the noise away."""
    coarse = torch.randn(count, feature_dim, 4, 4, generator=random)
    smooth = F.interpolate(coarse, (GRID, GRID), mode="bilinear").flatten(2).transpose(1, 2)
    return smooth + 0.5 * torch.randn(count, GRID * GRID, feature_dim, generator=random)


def _statistics(tokens: Tensor) -> Tensor:
    """What is left of ``[N, P, D]`` without the picture itself: means, deviations, roughness, rounding."""
    rounding = (tokens - tokens.to(torch.bfloat16).float()).abs().mean(dim=(1, 2))
    neighbours = (tokens[:, 1:] - tokens[:, :-1]).abs().mean(dim=(1, 2))
    deviation = tokens.std(dim=1)
    return torch.cat((tokens.mean(dim=1), deviation, neighbours[:, None], 1e3 * rounding[:, None]), dim=1)


def _held_out_accuracy(features: Tensor, labels: Tensor) -> float:
    """Accuracy of a logistic regression on the half of the passes that it was not fitted to."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    features, labels = features[order].double(), labels[order]
    features = (features - features.mean(dim=0)) / features.std(dim=0).clamp_min(1e-9)
    half = len(labels) // 2
    weight = torch.zeros(features.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=60, line_search_fn="strong_wolfe")

    def score(rows: Tensor) -> Tensor:
        return rows @ weight[:-1] + weight[-1]

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(score(features[:half]), labels[:half].double())
        loss = loss + 1e-3 * weight[:-1].square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return ((score(features[half:]) > 0) == labels[half:].bool()).double().mean().item()


@pytest.fixture
def advantage(monkeypatch) -> Callable:
    """Trains, captures what enters every matching pass, and returns how far above chance a classifier of the image
    tokens gets: over the whole pass, and of the batch's own true pairs against hard images."""

    def measure(
        change_rows: Callable | None = None, change_queue: Callable | None = None, itm_temperature: float = UNIFORM
    ) -> tuple[float, float]:
        settings = weights(memory_kl_weight=0.0, text_loss_weight=0.0, itm_temperature=itm_temperature)
        objective = make_objective(settings, feature_tokens=GRID**2, use_memory=False)
        model, random = objective.model, generator(4)
        assert model.config.pooled_tokens == 49
        queue = make_queue(model.config, 128)
        pictures = _photographs(512, model.config.feature_dim, random)
        captured: list[Tensor] = []
        unpooled: dict[str, Tensor] = {}
        run_stack, pool = BitGenModel.run_stack, BitGenModel.pool_image_tokens

        def watched_pool(self, tokens: Tensor) -> Tensor:
            unpooled["tokens"] = tokens
            return pool(self, tokens)

        def watched_stack(self, input_ids, attention_mask=None, image_tokens=None, reader=None, cache=None):
            if image_tokens is not None:
                if change_rows is not None:
                    image_tokens = change_rows(image_tokens, unpooled["tokens"])
                captured.append(image_tokens.detach())
            return run_stack(self, input_ids, attention_mask, image_tokens, reader, cache)

        monkeypatch.setattr(BitGenModel, "pool_image_tokens", watched_pool)
        monkeypatch.setattr(BitGenModel, "run_stack", watched_stack)
        optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=5e-4)
        for _ in range(STEPS):
            rows = torch.randperm(len(pictures), generator=random)[:BATCH]
            batch = make_batch(model.config, BATCH, random, image_ids=rows)
            batch["vision_features"] = pictures[rows]
            output = forward(objective, batch, queue)
            optimizer.zero_grad()
            output.loss.backward()
            optimizer.step()
            entries = output.entries
            if change_queue is not None:
                entries = entries._replace(image_tokens=change_queue(unpooled["tokens"].detach()))
            queue.enqueue(entries)
        monkeypatch.setattr(BitGenModel, "run_stack", run_stack)
        monkeypatch.setattr(BitGenModel, "pool_image_tokens", pool)
        assert len(queue) == 128 and len(captured) == STEPS
        features = torch.stack([_statistics(tokens) for tokens in captured[WARM_UP:]])  # passes, 4 B, statistics
        is_true = torch.tensor([1, 0, 0, 1]).repeat_interleave(BATCH).expand(len(features), -1)
        whole = _held_out_accuracy(features.flatten(0, 1), is_true.flatten()) - 1 / 2
        pairs = torch.cat((torch.arange(BATCH), torch.arange(2 * BATCH, 3 * BATCH)))
        against_images = _held_out_accuracy(features[:, pairs].flatten(0, 1), is_true[:, pairs].flatten()) - 1 / 2
        return whole, against_images

    return measure


def _sampled(tokens: Tensor) -> Tensor:
    """49 tokens picked from the grid, not averaged: of the right shape, and without the smoothing."""
    side = torch.arange(7) * GRID // 7
    return tokens[:, (side[:, None] * GRID + side[None]).flatten()]


def _first_part(image_tokens: Tensor, replacement: Tensor) -> Tensor:
    return torch.cat((replacement, image_tokens[len(replacement) :]))


@pytest.mark.parametrize("itm_temperature", [USUAL, UNIFORM])
def test_image_tokens_alone_stay_within_3_points_of_chance(advantage, itm_temperature: float) -> None:
    whole, against_images = advantage(itm_temperature=itm_temperature)
    assert whole < 0.03
    assert against_images < 0.03 + 0.02  # 960 held-out rows: their own standard error is 1.6 points


def test_tokens_of_the_queue_may_differ_because_they_are_in_true_pairs_too(advantage) -> None:
    whole, against_images = advantage(change_queue=_sampled)
    assert whole < 0.03 and against_images > 0.3


def test_the_same_test_fails_when_true_pairs_skip_the_pooling(advantage) -> None:
    whole, _ = advantage(lambda rows, full: _first_part(rows, _sampled(full).to(torch.bfloat16).float()))
    assert whole > 0.15


def test_the_same_test_fails_when_true_pairs_skip_the_rounding(advantage) -> None:
    def unrounded(rows: Tensor, full: Tensor) -> Tensor:
        grid = full.transpose(1, 2).unflatten(-1, (GRID, GRID))
        return _first_part(rows, F.adaptive_avg_pool2d(grid, 7).flatten(2).transpose(1, 2))

    whole, _ = advantage(unrounded)
    assert whole > 0.15
