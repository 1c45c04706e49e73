"""What a stage's configuration describes: the parts of its model, before and after their sizes are known."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from bitgen.config.values import ConfigError
from bitgen.config.vlm import LANGUAGE, VISION, VlmConfig
from bitgen.model.factory import random_vision_config
from bitgen.trained_vlm import read_description
from bitgen.vlm.connectors import KINDS, SETTINGS, ConnectorConfig
from bitgen.vlm.description import Description, LanguageSource, SpeechSource, VisionSource
from bitgen.vlm.language import LanguageModel
from bitgen.vlm.vision import FEATURES, OURS, RANDOM, VisionSpec


def describe(
    config: VlmConfig,
    feature_shape: tuple[int, int] | None,
    tokenizer: PreTrainedTokenizerBase | None,
    before: Path | None,
    frames: int = 1,
) -> Description:
    """What the configuration describes, before encoder and language model are opened.

    Args:
        before: the folder of the run that this one goes on from.
        frames: the most pictures that a visual of the data has, so that no more are shown later.
    """
    language, adapter, speech = config.language, config.adapter, config.language
    own = set(read_description(before).own_parts) if before is not None else set()
    own |= {part for part in config.trained_parts if part in (LANGUAGE, VISION)}
    if config.vision.vision_tuning == "lora":
        own.discard(VISION)
    vision = _vision_source(config, feature_shape)
    if vision is None:
        own.discard(VISION)
    elif (vision.config.get(OURS) or {}).get("source") == RANDOM:
        own.add(VISION)
    random_language = language.language_model == RANDOM
    if random_language:
        own.add(LANGUAGE)
    settings = None
    if adapter.adapter != "none":
        targets = adapter.adapter_targets
        settings = {
            "kind": adapter.adapter,
            "rank": adapter.adapter_rank,
            "alpha": adapter.adapter_alpha,
            "dropout": adapter.adapter_dropout,
            "rslora": adapter.adapter_rslora,
            "targets": targets if "," not in targets else [name.strip() for name in targets.split(",")],
        }
    return Description(
        LanguageSource(
            language.language_model,
            language.language_revision,
            config=_random_language(config, tokenizer) if random_language else None,
            dtype=language.language_dtype,
            quantization=None if language.quantization == "none" else language.quantization,
        ),
        vision,
        adapter=settings,
        own_parts=tuple(sorted(own)),
        speech=SpeechSource(speech.template, speech.system_prompt, speech.max_length, frames, config.prompt_list[0]),
    )


def _random_language(config: VlmConfig, tokenizer: PreTrainedTokenizerBase | None) -> dict[str, Any]:
    assert tokenizer is not None
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return random_language(config, len(tokenizer), {name: getattr(tokenizer, name) for name in names})


def random_language(config: VlmConfig, vocabulary: int, special: dict[str, int]) -> dict[str, Any]:
    """The configuration of a 'random' language model of so many tokens, ``special`` ones of them by their names."""
    language = config.language
    return {
        "model_type": "llama",
        "hidden_size": language.language_hidden_size,
        "intermediate_size": 4 * language.language_hidden_size,
        "num_hidden_layers": language.language_num_layers,
        "num_attention_heads": language.language_num_heads,
        "num_key_value_heads": language.language_num_heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": language.language_positions,
        "tie_word_embeddings": True,
        **special,
    }


def _vision_source(config: VlmConfig, feature_shape: tuple[int, int] | None) -> VisionSource | None:
    vision = config.vision
    if config.connector.connector == "none":
        return None
    if (feature_shape is not None) != (vision.vision_encoder == FEATURES):
        holds = "features" if feature_shape is not None else "pictures"
        raise ConfigError(
            f"train_data {config.data.train_data} holds {holds}, and vision_encoder is {vision.vision_encoder!r}: "
            f"write vision_encoder {'features' if feature_shape is not None else 'random, a folder or a hub id'}."
        )
    if feature_shape is not None:
        tokens, width = feature_shape
        return VisionSource({"model_type": FEATURES, "feature_tokens": tokens, "feature_dim": width}, "all")
    ours: dict[str, Any] = {"source": vision.vision_encoder, "image_size": vision.image_size}
    ours["revision"] = vision.vision_revision
    settings: dict[str, Any] = {}
    if vision.vision_encoder == RANDOM:
        assert vision.image_size is not None
        settings = random_vision_config(
            vision.vision_hidden_size,
            vision.vision_num_layers,
            vision.vision_num_heads,
            vision.vision_patch_size,
            vision.image_size,
        )
    return VisionSource(
        {**settings, OURS: ours},
        config.layers,
        vision.vision_tuning,
        config.adapter.vision_adapter_rank,
        config.adapter.vision_adapter_alpha,
    )


@dataclass(frozen=True)
class ConnectorPlan:
    """The connector that a configuration asks for, once both its sides are open.

    ``frames``: the most pictures that a visual of the data has.
    """

    config: VlmConfig
    frames: int

    def __call__(self, spec: VisionSpec, language: LanguageModel, layers: int) -> ConnectorConfig:
        settings, lm = self.config.connector, language.model.config
        kind = KINDS[settings.connector].connector
        taken = {option.name for option in fields(kind.Options)}
        options = {name: getattr(settings, of) for name, of in SETTINGS.items() if name in taken}
        embedding = language.model.get_input_embeddings()
        if "token_std" in taken:
            options["token_std"] = _token_std(embedding)
        return ConnectorConfig(
            settings.connector,
            spec.width,
            embedding.weight.shape[1],
            spec.tokens,
            layers,
            self.frames if kind.most_frames is None else min(self.frames, kind.most_frames),
            getattr(lm, "num_attention_heads", None) or lm.num_heads,
            {name: value for name, value in options.items() if value is not None},
        )


@torch.no_grad()
def _token_std(embedding: Any) -> float:
    """Standard deviation of what a language model's embedding gives, about which what enters beside it begins with.
    Gemma's multiplies its table by a number on the way out."""
    table = embedding.weight
    if table.is_meta:  # an estimate of sizes, which needs no weights
        return 1.0
    total, squares, count = 0.0, 0.0, table.numel()
    for rows in torch.arange(len(table), device=table.device).split(4096):  # a whole table may be gigabytes
        part = embedding(rows).double()
        total, squares = total + part.sum().item(), squares + part.square().sum().item()
    return round(((squares - total**2 / count) / (count - 1)) ** 0.5, 4)
