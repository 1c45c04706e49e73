"""Tiny models, objectives and batches of stage 1, from configuration alone."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from bitgen.machine.ranks import Processes
from bitgen.model.configuration_bitgen import BitGenConfig
from bitgen.model.factory import random_vision_config
from bitgen.model.likelihood import IGNORED
from bitgen.model.modeling_bitgen import BitGenModel
from bitgen.objectives.feature_queue import FeatureQueue, QueueEntries
from bitgen.objectives.stage1 import Stage1Objective, Stage1Update
from support import models

BOS, EOS, FIRST_WORD = 0, 1, 3
VOCAB, MAX_LENGTH, FEATURE_DIM = 37, 12, 12


@dataclass(frozen=True)
class Weights:
    """The objective's settings: all four losses on, everything random off."""

    contrastive_weight: float = 1.0
    itm_weight: float = 0.5
    memory_kl_weight: float = 0.1
    text_loss_weight: float = 0.25
    queue_weight: float = 0.4
    label_smoothing: float = 0.0
    temperature: float = 0.5
    itm_temperature: float = 0.07
    itm_temperature_start: float | None = None
    token_dropout: float = 0.0
    queue_size: int = 32


def tiny_config(tower: bool = False, **changes: Any) -> BitGenConfig:
    """A model of a few thousand parameters without dropout, on features of 9 tokens or on a DINOv2 of two layers."""
    sizes: dict[str, Any] = {
        "ffn_dim": 24,
        "compressor_dim": 20,
        "vocab_size": VOCAB,
        "max_seq_len": MAX_LENGTH,
        "memory_size": 6,
        "dropout": 0.0,
        "compressor_dropout": 0.0,
        "lora_dropout": 0.0,
        "lora_rank": 2,
        "lora_alpha": 4,
    }
    if tower:
        sizes |= {"vision_config": random_vision_config(16, 2, 2, patch_size=4, image_size=12), "image_size": 12}
    return models.tiny_config(None if tower else (9, FEATURE_DIM), **(sizes | changes))


def make_objective(
    weights: Weights | None = None, seed: int = 0, sees_pairs: bool = True, **model: Any
) -> Stage1Objective:
    """An objective in training mode around a tiny model; ``model`` goes to :func:`tiny_config`."""
    torch.manual_seed(seed)
    return Stage1Objective(BitGenModel(tiny_config(**model)), weights or Weights(), sees_pairs).train()


def make_batch(
    config: BitGenConfig, size: int, generator: torch.Generator, image_ids: Tensor | None = None, longest: int = 8
) -> dict[str, Tensor]:
    """Pairs with captions BOS words EOS of 3 to ``longest`` tokens, the first one being the longest."""
    lengths = torch.randint(3, longest + 1, (size,), generator=generator)
    lengths[0] = longest
    positions = torch.arange(longest)[None]
    ids = torch.randint(FIRST_WORD, config.vocab_size, (size, longest), generator=generator)
    ids[:, 0] = BOS
    ids = ids.masked_fill(positions == lengths[:, None] - 1, EOS).masked_fill(positions >= lengths[:, None], EOS)
    batch = {
        "input_ids": ids,
        "attention_mask": (positions < lengths[:, None]).long(),
        "image_ids": torch.arange(size) + 1000 if image_ids is None else image_ids,
    }
    if config.takes_features:
        shape = (size, config.feature_tokens, config.feature_dim)
        batch["vision_features"] = torch.randn(shape, generator=generator)
    else:
        batch["pixel_values"] = torch.randn(size, 3, config.image_size, config.image_size, generator=generator)
    return batch


def make_text_batch(documents: list[list[list[int]]], length: int, pad: int = EOS) -> dict[str, Tensor]:
    """Rows of packed documents, each row a list of documents' ids, as ``collate_blocks`` gives them."""
    rows = []
    for row in documents:
        real = sum(map(len, row))
        padding = length - real
        rows.append(
            {
                "input_ids": [*itertools.chain(*row), *[pad] * padding],
                "labels": [*itertools.chain(*([*ids[1:], IGNORED] for ids in row)), *[IGNORED] * padding],
                "attention_mask": [1] * real + [0] * padding,
                "document_ids": [*itertools.chain(*([n] * len(ids) for n, ids in enumerate(row))), *[-1] * padding],
                "position_ids": [*itertools.chain(*(range(len(ids)) for ids in row)), *[0] * padding],
            }
        )
    return {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}


def make_queue(config: BitGenConfig, size: int) -> FeatureQueue:
    """An empty queue of a model's sizes."""
    return FeatureQueue(size, config.embed_dim, config.max_seq_len, config.pooled_tokens)


def make_entries(config: BitGenConfig, size: int, generator: torch.Generator, first_id: int = 5000) -> QueueEntries:
    """Queue entries that no model made: unit features, random captions, image tokens that bfloat16 holds exactly."""
    batch = make_batch(config, size, generator, longest=min(10, config.max_seq_len))
    features = torch.randn(2, size, config.embed_dim, generator=generator)
    tokens = torch.randn(size, config.pooled_tokens, config.embed_dim, generator=generator)
    return QueueEntries(
        *torch.nn.functional.normalize(features, dim=-1),
        torch.arange(size) + first_id,
        batch["input_ids"],
        batch["attention_mask"],
        tokens.to(torch.bfloat16),
    )


class Seen(NamedTuple):
    """An output and the update in it, side by side."""

    loss: Tensor
    metrics: dict[str, Tensor]
    entries: QueueEntries | None
    posterior: Tensor | None


def forward(
    objective: torch.nn.Module,
    batch: dict[str, Tensor],
    queue: FeatureQueue | None = None,
    memory: Tensor | None = None,
) -> Seen:
    """One forward that reads this queue, and this running memory where one is given.

    ``objective`` may be wrapped, as by DistributedDataParallel.
    """
    inner = getattr(objective, "module", objective)
    if queue is not None:
        inner.queue = queue
    if memory is not None:
        inner.model.memory.state = memory
    output = objective(batch)
    return Seen(output.loss, output.metrics, *output.update)


def advance(objective: Stage1Objective, seen: Seen, alpha: float = 0.2) -> None:
    """What follows an optimizer's step, in one process."""
    objective.memory_alpha = alpha
    objective.advance([Stage1Update(seen.entries, seen.posterior)], Processes(0, 1, torch.device("cpu")))


def generator(seed: int) -> torch.Generator:
    """A seeded generator."""
    return torch.Generator().manual_seed(seed)


def weights(**changes: float) -> Weights:
    """The objective's settings, some of them changed."""
    return replace(Weights(), **changes)


def pooled_tokens(objective: Stage1Objective, batch: dict) -> torch.Tensor:
    """The batch's image tokens as matching sees them."""
    return objective.model.pool_image_tokens(objective.model.encode_image(None, batch["vision_features"]).image_tokens)


def spy_on_stack(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """Everything ``run_stack`` is called with."""
    calls: list[dict] = []
    plain = BitGenModel.run_stack

    def spy(self, input_ids, attention_mask=None, image_tokens=None, reader=None, cache=None):
        calls.append({"ids": input_ids, "mask": attention_mask, "tokens": image_tokens, "reader": reader})
        return plain(self, input_ids, attention_mask, image_tokens, reader, cache)

    monkeypatch.setattr(BitGenModel, "run_stack", spy)
    return calls


def step(weights=None, filled: int = 7, seed: int = 0, batch_options: dict | None = None, **model):
    """An objective with open gates, a batch of 5 and a queue holding 7 of 10."""
    objective = make_objective(weights, seed=seed, **model)
    models.open_gates(objective)
    config, random = objective.model.config, generator(seed)
    queue = make_queue(config, 10)
    if filled:
        queue.enqueue(make_entries(config, filled, random))
    return objective, make_batch(config, 5, random, **(batch_options or {})), queue


def run_once(
    objective: Stage1Objective, batch: dict, queue: FeatureQueue, memory: torch.Tensor | None = None, seed: int = 3
):
    torch.manual_seed(seed)
    return forward(objective, batch, queue, memory)
