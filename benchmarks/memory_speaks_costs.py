"""Milliseconds of a memory that a model speaks from: writing, reading, and one more token of a text."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import DynamicCache

from bitgen.memory.address_space import IMAGE
from bitgen.memory.answering import facts_space
from bitgen.memory.associative import AssociativeMemory
from bitgen.model.modeling_bitgen import BitGenModel
from bitgen.model.recalled import Recalled
from bitgen.objectives.recall import RecallObjective


def costs(objective: RecallObjective) -> None:
    """Milliseconds of a write, a read and their sums, by slots."""
    model = objective.model
    for slots in (32, 128, 512, 1024, 4096):
        space = facts_space(model, slots)
        count = min(slots, space.half)
        pairs = torch.nn.functional.normalize(torch.randn(count, sum(space.halves), dtype=torch.float64), dim=1)
        memory = AssociativeMemory.empty(space).written(pairs)
        cue = pairs[:1, : space.half]
        timed = {
            "sums_ms": _milliseconds(partial(getattr, memory, "precision")),
            "write_ms": _milliseconds(partial(memory.written, pairs[:1])),
            "prepare_ms": _milliseconds(partial(memory.read, cue, IMAGE)),
            "read_ms": _milliseconds(partial(memory.read, cue, IMAGE)),
        }
        for name, value in timed.items():
            print(json.dumps({"name": name, "slots": slots, "facts": count, "value": value}), flush=True)


def cost_of_a_token(objective: RecallObjective, tokens: int = 32, rounds: int = 20) -> None:
    """Milliseconds of a token of one text, the median of rounds that take turns."""
    model, recall = objective.model, objective.recall
    width = model.config.embed_dim
    picture, ids = torch.randn(1, model.config.pooled_tokens, width), torch.randint(3, model.config.vocab_size, (1, 40))
    values = recall.values(ids.expand(2, -1), torch.ones(2, 40)).detach()[None]
    given = {
        facts: recall.tokens(values[:, :facts], torch.randn(1, facts, width), torch.ones(1, facts, dtype=torch.bool))
        for facts in (1, 2)
    }
    found: dict[int, list[float]] = {0: [], 1: [], 2: []}
    for _ in range(rounds):
        for facts, times in found.items():
            times.append(_milliseconds(partial(_written, model, picture, ids[:, :tokens], given.get(facts))) / tokens)
    for facts, times in found.items():
        print(json.dumps({"name": "token_ms", "facts": facts, "value": statistics.median(times)}), flush=True)


@torch.no_grad()
def _written(model: BitGenModel, picture: torch.Tensor, ids: torch.Tensor, recalled: Recalled | None) -> None:
    cache = DynamicCache()
    for at in range(ids.shape[1]):
        here = recalled._replace(after=ids[:, :at]) if recalled is not None and at else recalled
        output = model.run_stack(ids[:, at : at + 1], None, picture, cache=cache, recalled=here)
        last = output.hidden_states
        model.lm_logits(last if output.said is None else torch.cat([last, output.said], dim=-1))


def _milliseconds(work: Callable[[], Any]) -> float:
    began = time.process_time()
    work()
    return 1000 * (time.process_time() - began)
