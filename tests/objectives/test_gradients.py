"""Every trainable parameter gets a gradient within three steps of each phase, or it is not trained."""

from __future__ import annotations

import itertools

import pytest
import torch

from bitgen.objectives.stage1 import Stage1Objective
from support.stage1 import advance, forward, generator, make_batch, make_objective, make_queue, weights

FUSIONS = ("concat_mlp", "cross_attention", "backbone")
LOSSES = ("contrastive_weight", "itm_weight", "memory_kl_weight", "text_loss_weight")
# A constant added to every key moves no softmax: without influence, in any transformer.
WITHOUT_INFLUENCE = ("key.bias", "k_proj.bias")
# A gradient that is 0 on paper comes out below 1e-10 here, the smallest real one above 1e-7.
ROUNDING = 1e-9


class Recorder:
    """Three optimizer steps on random batches; which parameters, and which embedding rows, ever had a gradient."""

    def __init__(self, objective: Stage1Objective, make_batch, make_queue, random: torch.Generator) -> None:
        self.objective, self.make_batch, self.random = objective, make_batch, random
        self.queue = make_queue(objective.model.config, 24)
        self.objective.train()

    def steps(self, count: int = 3) -> set[str]:
        objective = self.objective
        trainable = {name: p for name, p in objective.named_parameters() if p.requires_grad}
        optimizer = torch.optim.AdamW(trainable.values(), lr=1e-2)
        reached: set[str] = set()
        self.seen_tokens: set[int] = set()
        self.rows_reached: dict[str, set[int]] = {"token": set(), "position": set()}
        self.longest = 0
        for _ in range(count):
            batch = self.make_batch(objective.model.config, 6, self.random)
            output = forward(objective, batch, self.queue)
            optimizer.zero_grad(set_to_none=True)
            output.loss.backward()
            for name, parameter in trainable.items():
                if parameter.grad is not None and parameter.grad.abs().max() > ROUNDING:
                    reached.add(name)
            for kind in self.rows_reached:
                table = getattr(objective.model.embeddings, kind)
                grad = table.weight.grad if table is not None else None
                if grad is not None:
                    self.rows_reached[kind] |= set(grad.abs().sum(dim=1).nonzero().flatten().tolist())
            self.seen_tokens |= set(batch["input_ids"][batch["attention_mask"].bool()].tolist())
            self.longest = max(self.longest, int(batch["attention_mask"].sum(dim=1).max()))
            optimizer.step()
            advance(objective, output)
        return reached


def _names(objective: Stage1Objective) -> set[str]:
    trained = {name for name, p in objective.named_parameters() if p.requires_grad}
    return {name for name in trained if not name.endswith(WITHOUT_INFLUENCE)}


@pytest.mark.parametrize("tuning", ["frozen", "lora", "full"])
@pytest.mark.parametrize("use_memory", [True, False])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_everything_trainable_is_reached_in_each_phase(fusion: str, use_memory: bool, tuning: str) -> None:
    objective = make_objective(tower=True, fusion=fusion, use_memory=use_memory, vision_tuning=tuning)
    recorder = Recorder(objective, make_batch, make_queue, generator(1))
    for phase in (1, 2):
        objective.model.set_adapters_trainable(phase == 2)
        expected = _names(objective)
        reached = recorder.steps()
        assert not expected - reached, f"phase {phase}: no gradient for {sorted(expected - reached)}"
        of_tower = {name for name in reached if "vision_encoder" in name}
        assert bool(of_tower) == (phase == 2 and tuning != "frozen")
        if tuning == "lora":
            assert all("lora_" in name for name in of_tower)
        assert recorder.seen_tokens <= recorder.rows_reached["token"]
        assert set(range(recorder.longest)) <= recorder.rows_reached["position"]


@pytest.mark.parametrize("fusion", FUSIONS)
def test_rotary_positions_and_swiglu_are_reached_too(fusion: str) -> None:
    objective = make_objective(fusion=fusion, positions="rope", feed_forward="swiglu")
    expected = _names(objective)
    recorder = Recorder(objective, make_batch, make_queue, generator(1))
    assert not expected - recorder.steps()
    assert recorder.seen_tokens <= recorder.rows_reached["token"] and not recorder.rows_reached["position"]


@pytest.mark.parametrize("itm_weight", [0.0, 0.5])
def test_a_head_that_reads_the_likelihood_is_reached_too(itm_weight: float) -> None:
    objective = make_objective(weights(itm_weight=itm_weight), itm_likelihood=True)
    expected = _names(objective)
    assert ("model.itm_head.weight" in expected) == (itm_weight > 0)
    assert not expected - Recorder(objective, make_batch, make_queue, generator(1)).steps()


def _subsets() -> list[tuple[str, ...]]:
    all_of_them = (kept for count in range(1, 5) for kept in itertools.combinations(LOSSES, count))
    return [kept for kept in all_of_them if kept != ("memory_kl_weight",)]  # refused: it trains no encoder


@pytest.mark.parametrize("kept", _subsets(), ids="+".join)
@pytest.mark.parametrize("use_memory", [True, False])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_frozen_are_exactly_those_that_no_loss_reaches(fusion: str, use_memory: bool, kept: tuple[str, ...]) -> None:
    settings = weights(**{name: 0.0 for name in LOSSES if name not in kept})
    objective = make_objective(settings, fusion=fusion, use_memory=use_memory, memory_dim=8)
    frozen = {name for name, p in objective.named_parameters() if not p.requires_grad}
    assert frozen == {name for name, _ in objective.unreached_parameters()}
    objective.requires_grad_(True)  # ask the losses themselves
    reached = Recorder(objective, make_batch, make_queue, generator(2)).steps()
    unreached = {name for name, _ in objective.named_parameters()} - reached
    assert unreached == frozen, (
        f"trained in vain: {sorted(unreached - frozen)}; frozen in vain: {sorted(frozen - unreached)}"
    )


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("image_pooling", ["attention", "mean"])
def test_one_vector_an_image_leaves_nothing_trained_in_vain(fusion: str, image_pooling: str) -> None:
    """With a single image token attention over the image is constant: what only shapes it cannot learn."""
    objective = make_objective(feature_tokens=1, fusion=fusion, image_pooling=image_pooling)
    expected = _names(objective)
    reached = Recorder(objective, make_batch, make_queue, generator(3)).steps()
    assert not expected - reached, f"no gradient for {sorted(expected - reached)}"
