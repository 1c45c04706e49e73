"""Tiny vision-language models of parts, batches for them, and recipes that train in seconds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bitgen.config.vlm import VlmConfig
from bitgen.model.factory import random_vision_config
from bitgen.vlm.adapter_config import AdapterConfig
from bitgen.vlm.adapters import attach
from bitgen.vlm.connectors import ConnectorConfig, build_connector
from bitgen.vlm.modeling import VisionLanguageModel
from bitgen.vlm.splice import IMAGE_ID
from bitgen.vlm.vision import build_tower
from support.language_models import VOCABULARY, tiny_language_model

SIDE, WIDTH = 28, 32  # pixels of a picture, and width of the encoder
CONNECTORS: dict[str, dict[str, Any]] = {"linear": {}, "perceiver": {"queries": 3, "depth": 1, "heads": 2}}


def tiny_vlm(
    connector: str = "linear",
    own: Sequence[str] = (),
    adapter: str | None = None,
    lm: str = "llama",
    select_layer: int | list[int] = -1,
    dropout: float = 0.0,
    seed: int = 0,
) -> VisionLanguageModel:
    """An encoder of two layers and 16 patches, a connector for visuals of up to 3 pictures, a language model of three
    layers; nothing is drawn outside of ``seed``."""
    torch.manual_seed(seed)
    tower = build_tower(random_vision_config(WIDTH, 2, 2, 7, SIDE), select_layer)
    language = tiny_language_model(lm, seed).model
    spec, layers = tower.spec, len(tower.layers)
    width = language.get_input_embeddings().weight.shape[1]
    plan = ConnectorConfig(connector, spec.width, width, spec.tokens, layers, 3, 4, CONNECTORS[connector])
    language.requires_grad_(False)
    if adapter is not None:
        attach(language, AdapterConfig(adapter, 4, 8.0, dropout))
    return VisionLanguageModel(tower, build_connector(plan), language, frozenset(own))


def sample_of(model: VisionLanguageModel, frames: Sequence[int], words: int, answer: int, seed: int) -> dict[str, Any]:
    """A sample as ``ConversationDataset`` gives it: visuals of so many ``frames`` each among ``words`` words, then an
    ``answer`` of so many tokens."""
    draw = torch.Generator().manual_seed(seed)
    text = torch.randint(3, VOCABULARY, (words,), generator=draw).tolist()
    said = torch.randint(3, VOCABULARY, (answer,), generator=draw).tolist()
    assert model.connector is not None
    ids = text[:1]
    for number, count in enumerate(frames):
        ids += [IMAGE_ID] * model.connector.tokens(count) + text[1 + number : 2 + number]
    ids += text[1 + len(frames) :]
    sample = {
        "input_ids": torch.tensor(ids + said),
        "labels": torch.tensor([-100] * len(ids) + said),
        "frames": list(frames),
        **{"index": seed, "image_id": -1, "words": answer, "truncated": False},
    }
    if frames:
        sample["pixel_values"] = torch.randn(sum(frames), 3, SIDE, SIDE, generator=draw)
    return sample


RECIPE: list[dict[str, Any]] = [
    {"name": "words", "connector": "none", "trains": "language", "learning_rate": 3e-3},
    {"name": "align", "trains": "connector", "learning_rate": 3e-3},
    {"name": "tune", "trains": "connector,adapter", "adapter": "lora", "adapter_rank": 4, "learning_rate": 3e-3},
]
TINY: dict[str, object] = dict(
    vision_encoder="random",
    image_size=SIDE,
    vision_hidden_size=32,
    vision_num_layers=2,
    vision_num_heads=2,
    vision_patch_size=7,
    language_model="random",
    language_hidden_size=32,
    language_num_layers=2,
    language_num_heads=2,
    language_vocab_size=300,
    language_positions=96,
    template="plain",
    max_length=64,
    train_data="scenes",
    val_data="scenes",
    scenes_train=32,
    scenes_val=6,
    caption_sampling="one",
    batch_size=4,
    max_steps=4,
    val_generated=2,
    val_max_new_tokens=4,
    precision="fp32",
    device="cpu",
    save_steps=1000,
    eval_steps=1000,
    log_steps=1,
    progress=False,
)


def recipe(folder: Path, stages: list[dict[str, Any]] | None = None, **changes: object) -> VlmConfig:
    """The settings of a tiny recipe (``stages``, else the three of :data:`RECIPE`) that writes below ``folder``."""
    places = {"output_dir": str(folder / "runs"), "log_dir": str(folder / "logs")}
    config = VlmConfig.from_flat({**TINY, **places, "stages": json.dumps(stages or RECIPE), **changes})
    config.validate()
    return config
