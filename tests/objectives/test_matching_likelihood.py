"""A matching head that reads the caption's likelihood: its loss written out, and what teaches what."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from bitgen.objectives import matching, stage1
from bitgen.objectives.stage1 import Stage1Objective
from support.models import open_gates
from support.stage1 import Seen, forward, generator, make_batch, make_objective, make_queue, weights

PARTNERS = [1, 0, 3, 4, 2]  # of the batch itself: row i is paired with row PARTNERS[i]


@pytest.fixture
def step(monkeypatch) -> Callable:
    """An objective with open gates in eval mode, a batch of 5, and the partners that it will draw."""

    def build(weights=None, **model) -> tuple[Stage1Objective, dict, object]:
        objective = make_objective(weights, itm_likelihood=True, **model).eval()
        open_gates(objective)
        return objective, make_batch(objective.model.config, 5, generator(0)), make_queue(objective.model.config, 10)

    def draw(queries, candidates, *_, **__):
        rows = torch.tensor(PARTNERS[::2] if len(queries) == 3 else PARTNERS[1::2])
        return matching.HardNegatives(rows, torch.ones(len(rows)), torch.ones(len(rows)))

    monkeypatch.setattr(stage1, "draw_hard_negatives", draw)
    return build


def run(objective: Stage1Objective, batch: dict, queue) -> Seen:
    return forward(objective, batch, queue)


@pytest.mark.parametrize("fusion", ["concat_mlp", "cross_attention", "backbone"])
def test_the_losses_are_those_written_out_pair_by_pair(step, fusion: str) -> None:
    objective, batch, queue = step(fusion=fusion)
    model, settings = objective.model, objective.settings
    with torch.no_grad():
        model.itm_head.weight.copy_(torch.tensor([[-0.3, 0.2], [0.4, 0.1]]))
        model.itm_head.bias.copy_(torch.tensor([0.2, -0.1]))
        output = run(objective, batch, queue)
        reader = model.memory.reader(model.memory.state)
        pooled = model.pool_image_tokens(model.encode_image(None, batch["vision_features"]).image_tokens)
        features = model.image_features(pooled)
        texts = model.encode_text(batch["input_ids"], batch["attention_mask"], reader)

        def log_probs(caption: int, image: int | None) -> torch.Tensor:
            ids = batch["input_ids"][caption, : batch["attention_mask"][caption].sum()][None]
            shown = None if image is None else pooled[image][None]
            logits = model(ids, torch.ones_like(ids), shown, reader)
            return -F.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="none")

        losses = []
        for row, partner in enumerate(PARTNERS):
            hard = (partner, row) if row % 2 == 0 else (row, partner)
            for caption, image in ((row, row), hard):
                logit = 0.7 * (log_probs(caption, image) - log_probs(caption, None)).sum() - 0.3
                logit = logit - 0.1 * (features[image] @ texts[caption] - 0.5) / 0.02
                losses.append(F.softplus(-logit if caption == image else logit))
        alone = torch.cat([-log_probs(caption, None) for caption in range(5)])
    torch.testing.assert_close(output.metrics["itm_loss"], torch.stack(losses).mean(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.metrics["caption_prior_loss"], alone.mean(), rtol=1e-4, atol=1e-5)
    weighted = {
        "contrastive_loss": settings.contrastive_weight,
        "itm_loss": settings.itm_weight,
        "memory_kl_loss": settings.memory_kl_weight,
        "caption_loss": settings.text_loss_weight,
        "caption_prior_loss": settings.text_loss_weight,
    }
    expected = sum(weight * output.metrics[name].item() for name, weight in weighted.items())
    assert output.loss.item() == pytest.approx(expected, rel=1e-5)


def test_matching_reads_the_likelihood_and_does_not_teach_it(step) -> None:
    only = weights(contrastive_weight=0.0, memory_kl_weight=0.0, text_loss_weight=0.0)
    objective, batch, queue = step(only)
    torch.nn.init.constant_(objective.model.itm_head.weight[1], 0.5)
    run(objective, batch, queue).loss.backward()
    reached = {n for n, p in objective.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert reached == {"model.itm_head.weight", "model.itm_head.bias"}


def test_deleted_tokens_change_the_contrastive_pass_alone(step) -> None:
    objective, batch, queue = step(
        weights(token_dropout=0.9), use_memory=False
    )  # reading a memory in training adds noise
    whole = run(objective, batch, queue).metrics
    objective.train()
    torch.manual_seed(0)
    dropped = run(objective, batch, queue).metrics
    assert dropped["contrastive_loss"] != whole["contrastive_loss"]
    torch.testing.assert_close(dropped["caption_prior_loss"], whole["caption_prior_loss"])
    torch.testing.assert_close(dropped["itm_loss"], whole["itm_loss"], rtol=1e-4, atol=1e-5)


def test_captions_alone_are_learned_for_matching_only(step) -> None:
    objective, batch, queue = step(weights(contrastive_weight=0.0, itm_weight=0.0))
    output = run(objective, batch, queue)
    assert output.entries is None and "caption_prior_loss" not in output.metrics
    assert not objective.model.itm_head.weight.requires_grad
