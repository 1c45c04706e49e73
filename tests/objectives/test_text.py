"""Packed text: each document as if it were alone, and gradients exactly where the losses of the run reach."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bitgen.model.likelihood import IGNORED
from bitgen.objectives.stage1 import Stage1Objective
from support.models import open_gates
from support.stage1 import advance, forward, generator, make_batch, make_objective, make_queue, make_text_batch, weights

BOS, EOS = 0, 1
FUSIONS = ("concat_mlp", "cross_attention", "backbone")
LOSSES = ("contrastive_weight", "itm_weight", "memory_kl_weight", "text_loss_weight")
WITHOUT_INFLUENCE = ("key.bias", "k_proj.bias")  # a constant added to every key moves no softmax
ROUNDING = 1e-9


def _documents(random: torch.Generator, *shape: tuple[int, ...]) -> list[list[list[int]]]:
    """Rows of documents ``BOS words EOS`` of these lengths."""

    def one(length: int) -> list[int]:
        return [BOS, *torch.randint(3, 37, (length - 2,), generator=random).tolist(), EOS]

    return [[one(length) for length in row] for row in shape]


def _open(objective: Stage1Objective) -> Stage1Objective:
    """Gates open and a memory that holds something: else neither reaches a loss."""
    open_gates(objective)
    if objective.model.memory is not None:
        objective.model.memory.state.normal_(generator=torch.Generator().manual_seed(7))
    return objective


def _run(objective: Stage1Objective, batch: dict[str, Tensor]):
    return forward(objective, batch)


def _alone(objective: Stage1Objective, ids: list[int]) -> Tensor:
    """The sum of a document's losses, from full logits of a row of its own."""
    logits = objective.model(torch.tensor([ids]))[0, :-1]
    return F.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum")


@pytest.mark.parametrize("positions", ["learned", "rope"])
@pytest.mark.parametrize("use_memory", [True, False])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_loss_is_the_mean_over_documents_read_one_by_one(fusion: str, use_memory: bool, positions: str) -> None:
    objective = make_objective(weights(text_loss_weight=0.3), fusion=fusion, use_memory=use_memory, positions=positions)
    objective = _open(objective).eval()
    rows = _documents(generator(1), (4, 5, 3), (12,), (2, 2, 3))
    rows[1][0] = rows[1][0][:-1] + [9]  # the start of a longer document
    rows[2][0] = [20, 21]  # the end of another: no BOS
    output = _run(objective, make_text_batch(rows, 12))
    documents = [ids for row in rows for ids in row]
    expected = sum(_alone(objective, ids) for ids in documents) / sum(len(ids) - 1 for ids in documents)
    assert output.metrics["text_loss"].item() == pytest.approx(expected.item(), rel=1e-6)
    assert output.loss.item() == pytest.approx(0.3 * expected.item(), rel=1e-6)
    assert set(output.metrics) == {"text_loss", "loss"} and output.entries is output.posterior is None
    parameters = [p for p in objective.parameters() if p.requires_grad]
    found = torch.autograd.grad(output.loss, parameters, allow_unused=True, materialize_grads=True)
    wanted = torch.autograd.grad(0.3 * expected, parameters, allow_unused=True, materialize_grads=True)
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("positions", ["learned", "rope"])
@pytest.mark.parametrize("changed", [0, 2])
def test_a_document_does_not_feel_another_one_in_its_row(positions: str, changed: int) -> None:
    """The loss of the middle one, and its gradients, as the one before or behind it becomes another."""
    objective = _open(make_objective(positions=positions)).eval()
    row, other = _documents(generator(1), (4, 5, 3), (4, 5, 3))
    results = []
    for documents in (row, [*row[:changed], other[changed], *row[changed + 1 :]]):
        batch = make_text_batch([documents], 12)
        batch["labels"][batch["document_ids"] != 1] = IGNORED
        parameters = {name: p for name, p in objective.named_parameters() if p.requires_grad}
        loss = _run(objective, batch).loss
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True)
        results.append((loss.detach(), dict(zip(parameters, gradients, strict=True))))
    assert row[changed] != other[changed]
    (loss, gradients), (other_loss, other_gradients) = results
    assert torch.equal(loss, other_loss)
    for name, gradient in gradients.items():
        assert torch.equal(gradient, other_gradients[name]), name


def test_the_memory_is_read_and_not_written() -> None:
    objective = _open(make_objective()).eval()
    batch = make_text_batch(_documents(generator(1), (5, 7)), 12)
    state = objective.model.memory.state.clone()
    loss = _run(objective, batch).loss
    assert torch.equal(objective.model.memory.state, state)
    objective.model.memory.state.normal_(generator=generator(8))
    assert _run(objective, batch).loss != loss


def _reached(objective: Stage1Objective, kinds: str, make_batch, make_text_batch, make_queue, random) -> set[str]:
    """Parameters that ever have a gradient in six steps, each on a batch of pairs (p) or of text (t) in turn."""
    config = objective.model.config
    trainable = {name: p for name, p in objective.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trainable.values(), lr=1e-2)
    queue = make_queue(config, 24)
    reached: set[str] = set()
    for kind in itertools.islice(itertools.cycle(kinds), 6):
        if kind == "t":
            batch = make_text_batch(_documents(random, (4, 8), (7, 5)), 12)
        else:
            batch = make_batch(config, 6, random)
        output = forward(objective, batch, queue)
        optimizer.zero_grad(set_to_none=True)
        output.loss.backward()
        grads = {name: p.grad for name, p in trainable.items() if p.grad is not None}
        reached |= {name for name, grad in grads.items() if grad.abs().max() > ROUNDING}
        optimizer.step()
        advance(objective, output)
    return reached


def _frozen(objective: Stage1Objective) -> set[str]:
    return {name for name, p in objective.named_parameters() if not p.requires_grad}


@pytest.mark.parametrize("positions", ["learned", "rope"])
@pytest.mark.parametrize("memory", [{}, {"memory_dim": 8}, {"use_memory": False}], ids=["memory", "narrow", "none"])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_text_alone_freezes_exactly_what_it_does_not_reach(fusion: str, memory: dict, positions: str) -> None:
    objective = make_objective(sees_pairs=False, fusion=fusion, positions=positions, **memory)
    frozen = _frozen(objective)
    assert frozen == {name for name, _ in objective.unreached_parameters()}
    assert {"log_temperature", "model.compressor.0.weight", "model.itm_head.weight"} <= frozen
    objective.requires_grad_(True)  # ask the loss itself
    reached = _reached(objective, "t", make_batch, make_text_batch, make_queue, generator(2))
    unreached = {name for name, _ in objective.named_parameters()} - reached
    assert unreached == frozen, (
        f"trained in vain: {sorted(unreached - frozen)}; frozen in vain: {sorted(frozen - unreached)}"
    )


def test_text_alone_leaves_a_tower_alone() -> None:
    objective = make_objective(sees_pairs=False, tower=True)
    assert not [name for name, p in objective.named_parameters() if p.requires_grad and "vision_encoder" in name]


def _subsets() -> list[tuple[str, ...]]:
    others = LOSSES[:-1]
    return [kept for count in range(4) for kept in itertools.combinations(others, count)]


@pytest.mark.parametrize("kept", _subsets(), ids=lambda kept: "+".join(kept) or "text alone")
@pytest.mark.parametrize("use_memory", [True, False])
def test_text_and_pairs_together_reach_what_is_trained(use_memory: bool, kept: tuple[str, ...]) -> None:
    settings = weights(**{name: 0.0 for name in LOSSES[:-1] if name not in kept})
    objective = make_objective(settings, use_memory=use_memory, memory_dim=8)
    frozen = _frozen(objective)
    objective.requires_grad_(True)
    reached = _reached(objective, "tp", make_batch, make_text_batch, make_queue, generator(2))
    unreached = {name for name, _ in objective.named_parameters()} - reached
    assert unreached == frozen, (
        f"trained in vain: {sorted(unreached - frozen)}; frozen in vain: {sorted(frozen - unreached)}"
    )


def test_the_tower_s_adapters_are_reached_through_captions() -> None:
    """Captions alone: neither contrastive nor matching."""
    objective = _open(make_objective(weights(contrastive_weight=0.0, itm_weight=0.0), tower=True))
    objective.model.set_adapters_trainable(True)
    expected = {name for name, p in objective.named_parameters() if p.requires_grad}
    expected = {name for name in expected if not name.endswith(WITHOUT_INFLUENCE)}
    assert any("lora_" in name for name in expected)
    reached = _reached(objective, "tp", make_batch, make_text_batch, make_queue, generator(2))
    assert not expected - reached, f"no gradient for {sorted(expected - reached)}"
