"""The objective as a whole: its sum, what it reads, what it leaves alone, and that it always runs."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from bitgen.model.modeling_bitgen import BitGenModel
from bitgen.objectives import matching, matching_pass, stage1
from bitgen.objectives.feature_queue import QueueEntries
from support.stage1 import (
    pooled_tokens,
    run_once,
    spy_on_stack,
    step,
    weights,
)

FUSIONS = ("concat_mlp", "cross_attention", "backbone")


@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_loss_is_the_weighted_sum_of_its_parts(fusion: str) -> None:
    asked = {"contrastive_weight": 0.7, "itm_weight": 0.3, "memory_kl_weight": 0.2, "text_loss_weight": 0.11}
    parts = {"contrastive_weight": "contrastive_loss", "itm_weight": "itm_loss"}
    parts |= {"memory_kl_weight": "memory_kl_loss", "text_loss_weight": "caption_loss"}
    output = run_once(*step(weights(**asked), fusion=fusion))
    expected = sum(weight * output.metrics[parts[name]].item() for name, weight in asked.items())
    assert output.loss.item() == pytest.approx(expected, rel=1e-6)
    assert all(output.metrics[name] > 0 for name in parts.values())
    names = {
        "temperature",
        "acc_i2t",
        "acc_t2i",
        "itm_acc_drawn",
        "itm_negative_rank",
        "memory_utilization",
        "memory_quality",
    }
    assert set(output.metrics) - {"loss"} == names | set(parts.values())
    assert all(value.dim() == 0 and not value.requires_grad for value in output.metrics.values())
    for name in parts:
        off = run_once(*step(weights(**{**asked, name: 0.0}), fusion=fusion))
        # The memory is written, and reported, whether or not its KL is minimised.
        assert (parts[name] in off.metrics) == (name == "memory_kl_weight")


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_contrastive_gradient_flows_through_queries_and_candidates(smoothing: float) -> None:
    """Every gradient equals that of the formula written out for distinct images: keys of the batch carry a gradient in
    the term without the queue, no key does in the term with it."""
    only = weights(itm_weight=0.0, memory_kl_weight=0.0, text_loss_weight=0.0, label_smoothing=smoothing)
    objective, batch, queue = step(only, use_memory=False)
    run_once(objective, batch, queue).loss.backward()
    found = {name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None}
    objective.zero_grad()
    images = objective.model.encode_image(None, batch["vision_features"]).image_features
    texts = objective.model.encode_text(batch["input_ids"], batch["attention_mask"])
    past, target, temperature = queue.valid(), torch.arange(5), objective.log_temperature.exp()
    weight, loss = objective.settings.queue_weight, 0.0
    assert 0 < weight < 1
    cross_entropy = partial(torch.nn.functional.cross_entropy, label_smoothing=smoothing)
    for queries, keys, old in ((images, texts, past.text_features), (texts, images, past.image_features)):
        moved = torch.stack([key - old.mean(dim=0) + keys.detach().mean(dim=0) for key in old])
        moved = moved / moved.norm(dim=1, keepdim=True)
        with_queue = torch.cat((queries @ keys.detach().T, queries @ moved.T), dim=1)
        loss = loss + (1 - weight) / 2 * cross_entropy(queries @ keys.T / temperature, target)
        loss = loss + weight / 2 * cross_entropy(with_queue / temperature, target)
    loss.backward()
    expected = {name: p.grad for name, p in objective.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_without_a_memory_there_is_no_kl_and_no_posterior() -> None:
    output = run_once(*step(use_memory=False))
    assert output.posterior is None and not any(name.startswith("memory") for name in output.metrics)


@pytest.mark.parametrize("filled", [0, 7])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_batch_of_one_image_still_runs(fusion: str, filled: int) -> None:
    """No row has a candidate (unless the queue has): weight 0 for hard pairs, finite loss, finite gradients."""
    objective, batch, queue = step(filled=filled, fusion=fusion, batch_options={"image_ids": torch.full((5,), 5000)})
    if filled:
        queue.entries.image_ids.fill_(5000)
    output = run_once(objective, batch, queue)
    output.loss.backward()
    assert torch.isfinite(output.loss)
    assert all(torch.isfinite(p.grad).all() for p in objective.parameters() if p.grad is not None)
    assert objective.model.itm_head.weight.grad.abs().sum() > 0  # from the true pairs
    # Only the true pairs count, with label 1.
    pooled = objective.model.pool_image_tokens(
        objective.model.encode_image(None, batch["vision_features"]).image_tokens
    )
    objective.eval()
    with torch.no_grad():
        quiet = run_once(objective, batch, queue)
        logits = objective.model.match(pooled, batch["input_ids"], batch["attention_mask"])
    expected = torch.nn.functional.cross_entropy(logits, torch.ones(5, dtype=torch.long))
    torch.testing.assert_close(quiet.metrics["itm_loss"], expected, rtol=1e-5, atol=1e-6)


def test_gradient_flows_into_a_local_negative_image_and_not_into_the_queue(monkeypatch) -> None:
    """Only the hard images count here, so image tokens get a gradient where a row was drawn as one."""
    only = weights(contrastive_weight=0.0, memory_kl_weight=0.0, text_loss_weight=0.0)
    kept: dict[str, torch.Tensor] = {}
    plain = BitGenModel.pool_image_tokens

    def keep(self, tokens):
        kept["tokens"] = tokens
        tokens.retain_grad()
        return plain(self, tokens)

    monkeypatch.setattr(BitGenModel, "pool_image_tokens", keep)

    def draw(index: list[int]):
        parts = {3: index[::2], 2: index[1::2]}

        def fake(queries, candidates, *_, **__):
            rows = parts[len(queries)]
            return matching.HardNegatives(torch.tensor(rows), torch.ones(len(rows)), torch.ones(len(rows)))

        return fake

    def only_hard_images_count(logits, labels, weights):
        return real_loss(logits, labels, torch.cat((torch.zeros(10), torch.ones(5), torch.zeros(5))))

    real_loss = matching_pass.matching_loss
    monkeypatch.setattr(matching_pass, "matching_loss", only_hard_images_count)
    for index, reached in (([1, 0, 1, 0, 1], {0, 1}), ([5, 6, 7, 8, 9], set()), ([4, 11, 3, 5, 6], {3, 4})):
        objective, batch, queue = step(only)
        queue.entries.image_tokens.requires_grad_(True)
        monkeypatch.setattr(stage1, "draw_hard_negatives", draw(index))
        run_once(objective, batch, queue).loss.backward()
        grad = kept["tokens"].grad
        rows = set() if grad is None else set(grad.abs().sum(dim=(1, 2)).nonzero().flatten().tolist())
        assert rows == reached, index


def test_forward_changes_neither_queue_nor_memory_nor_batch() -> None:
    objective, batch, queue = step()
    memory = objective.model.memory.state.add_(0.1)
    before = [t.clone() for t in (*queue.entries, memory, objective.model.memory.state, *batch.values())]
    place = (queue.position, len(queue))
    output = run_once(objective, batch, queue, memory)
    output.loss.backward()
    after = (*queue.entries, memory, objective.model.memory.state, *batch.values())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)) and place == (queue.position, len(queue))
    assert memory.grad is None and not output.posterior.requires_grad


def test_entries_are_this_batch_detached_and_fit_the_queue() -> None:
    objective, batch, queue = step()
    entries = run_once(objective, batch, queue).entries
    assert not any(tensor.requires_grad for tensor in entries)
    for new, kept in zip(entries, queue.entries, strict=True):
        assert new.shape == (5, *kept.shape[1:])
    assert torch.equal(entries.image_ids, batch["image_ids"])
    length = batch["input_ids"].shape[1]
    assert (
        torch.equal(entries.input_ids[:, :length], batch["input_ids"]) and entries.attention_mask[:, length:].sum() == 0
    )
    queue.enqueue(QueueEntries(*entries))
    assert len(queue) == 10


@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_pass_reads_the_memory_it_was_given_and_not_its_own_write(monkeypatch, fusion: str) -> None:
    objective, batch, queue = step(fusion=fusion)
    given = torch.randn(objective.model.memory.state.shape, generator=torch.Generator().manual_seed(9))
    calls = spy_on_stack(monkeypatch)
    first = run_once(objective, batch, queue, given)
    assert len(calls) == 2 and all(torch.equal(call["reader"].mean, given) for call in calls)
    assert not torch.allclose(first.posterior, given, atol=1e-3)
    # A forward leaves the state as it was: the next one gives the same.
    again = run_once(objective, batch, queue)
    assert torch.equal(first.loss, again.loss) and torch.equal(first.posterior, again.posterior)
    other = run_once(objective, batch, queue, first.posterior)
    assert not torch.isclose(first.metrics["contrastive_loss"], other.metrics["contrastive_loss"], rtol=1e-5)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_pair_does_not_read_what_its_neighbours_write(fusion: str) -> None:
    """The features and codes of pair 0 do not depend on the other pairs of its step."""
    objective, batch, queue = step(fusion=fusion)
    objective.eval()
    other = {name: value.clone() for name, value in batch.items()}
    other["vision_features"][1:] += 1
    other["input_ids"][1:, 1] = 20
    a, b = run_once(objective, batch, queue), run_once(objective, other, queue)
    torch.testing.assert_close(a.entries.text_features[0], b.entries.text_features[0])
    torch.testing.assert_close(a.entries.image_features[0], b.entries.image_features[0])
    assert not torch.allclose(a.posterior, b.posterior)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_posterior_is_the_write_of_the_true_pairs_codes(fusion: str) -> None:
    objective, batch, queue = step(fusion=fusion)
    objective.eval()
    model = objective.model
    output = run_once(objective, batch, queue)
    pooled = pooled_tokens(objective, batch)
    fused = model.run_stack(batch["input_ids"], batch["attention_mask"], pooled)
    # Longhand Bayesian regression of the codes on their addresses, in float64.
    codes, prior = fused.codes.double(), model.memory.gpm.prior_mean.double()
    addresses = codes @ torch.linalg.pinv(prior)
    variance = model.memory.gpm.prior_logvar.double().exp()
    noise = model.memory.gpm.sigma**2
    precision = torch.diag(1 / variance) + addresses.T @ addresses / noise
    mean = torch.linalg.solve(precision, torch.diag(1 / variance) @ prior + addresses.T @ codes / noise)
    torch.testing.assert_close(output.posterior.double(), mean, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("itm_weight", [0.0, 0.5])
def test_text_loss_does_not_depend_on_how_long_the_hard_captions_are(fusion: str, itm_weight: float) -> None:
    """Every hard caption is longer than the batch's longest: padding must add nothing to the language loss."""
    objective, batch, queue = step(weights(itm_weight=itm_weight), fusion=fusion, batch_options={"longest": 4})
    objective.eval()
    queue.entries.attention_mask[:, :11] = 1
    with torch.no_grad():  # near: surely drawn
        queue.entries.text_features.copy_(run_once(objective, batch, queue).entries.image_features[0])
        output = run_once(objective, batch, queue)
        model = objective.model
        pooled = pooled_tokens(objective, batch)
        logits = model(batch["input_ids"], batch["attention_mask"], pooled)
    labels = batch["input_ids"][:, 1:].masked_fill(batch["attention_mask"][:, 1:] == 0, -100)
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten())
    torch.testing.assert_close(output.metrics["caption_loss"], expected, rtol=1e-5, atol=1e-6)


def test_token_dropout_touches_the_contrastive_pass_in_training_only(monkeypatch) -> None:
    objective, batch, queue = step(weights(token_dropout=0.9))
    calls = spy_on_stack(monkeypatch)
    entries = run_once(objective, batch, queue).entries
    real = batch["attention_mask"].sum()
    assert calls[0]["mask"].sum() < real and calls[1]["mask"][:5].sum() == real
    assert entries.attention_mask.sum() == real  # the queue keeps the whole caption
    objective.eval()
    run_once(objective, batch, queue)
    assert calls[2]["mask"].sum() == real


def test_eval_mode_is_repeatable_but_for_the_draw_of_negatives() -> None:
    objective, batch, queue = step()
    objective.eval()
    a, b = run_once(objective, batch, queue, seed=1), run_once(objective, batch, queue, seed=2)
    for name in ("contrastive_loss", "memory_kl_loss", "caption_loss", "memory_quality", "memory_utilization"):
        assert torch.equal(a.metrics[name], b.metrics[name]), name


@pytest.mark.parametrize("memory_dim", [16, 8])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_runs_under_bfloat16_autocast_with_losses_near_float32(fusion: str, memory_dim: int) -> None:
    exact = run_once(*step(fusion=fusion, memory_dim=memory_dim))
    with torch.autocast("cpu", torch.bfloat16):
        output = run_once(*step(fusion=fusion, memory_dim=memory_dim))
    output.loss.backward()
    assert output.loss.dtype == torch.float32 and output.posterior.dtype == torch.float32
    for name in ("contrastive_loss", "memory_kl_loss", "caption_loss"):
        torch.testing.assert_close(output.metrics[name], exact.metrics[name], rtol=0.05, atol=0.01)
