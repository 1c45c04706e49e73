"""A model from its description, with the weights that lie under the names in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from bitgen.guards.printable import printable
from bitgen.model.frozen_tower import resolve_lora_targets
from bitgen.vlm.adapter_config import AdapterConfig
from bitgen.vlm.adapters import attach, enable_checkpointing
from bitgen.vlm.connectors import ConnectorConfig, build_connector
from bitgen.vlm.description import Description, LanguageSource, VisionSource
from bitgen.vlm.language import LanguageModel, build_language_model, open_language_model
from bitgen.vlm.modeling import LANGUAGE, VISION, VisionLanguageModel
from bitgen.vlm.vision import OURS, RANDOM, StoredFeatures, VisionSpec, VisionTower, build_tower, open_tower


class Assembled(NamedTuple):
    """A model, its language model's tokenizer (None: of a random one, which lies elsewhere), and its description with
    everything that was found out on the way."""

    model: VisionLanguageModel
    tokenizer: PreTrainedTokenizerBase | None
    description: Description


def assemble(
    description: Description,
    connector_of: Callable[[VisionSpec, LanguageModel, int], ConnectorConfig] | None = None,
    checkpointing: bool = False,
    device: torch.device | str = "cpu",
) -> Assembled:
    """Open encoder and language model, and put connector and adapters on them, with fresh weights.

    Parts whose weights lie beside the description (``own_parts``) are built at random, or with the weights under their
    names where a run is only beginning to train those.

    Args:
        connector_of: says what the connector is, once both its sides are known; None: the description says it.
        checkpointing: recompute the language model's activations in the backward pass.
        device: of the run. A quantized language model is made there, because bitsandbytes leaves the scales of 8-bit
            weights behind when a model that holds them is moved; all else is made on the CPU, for the caller to move.

    Raises:
        ValueError: a part cannot be opened, has other weights than those that the description names, or parts do not
            fit one another.
    """
    language = _language(description.language, LANGUAGE in description.own_parts, device)
    vision, tower = description.vision, None
    if vision is not None:
        tower = _tower(vision, VISION in description.own_parts)
        vision = dataclasses.replace(vision, config=tower.vision_config)
    connector, plan = None, None
    if connector_of is not None and tower is not None:
        plan = connector_of(tower.spec, language, len(tower.layers))
    elif description.connector is not None:
        plan = ConnectorConfig.from_dict(description.connector)
    if plan is not None:
        connector = build_connector(plan)
    lm = language.model
    lm.requires_grad_(False)
    if description.adapter is not None:
        attach(lm, _adapter(description.adapter))
    if checkpointing:
        enable_checkpointing(lm)
    source = dataclasses.replace(
        description.language, revision=language.revision, weights_sha256=language.weights_sha256
    )
    model = VisionLanguageModel(tower, connector, lm, frozenset(description.own_parts))
    settings = None if connector is None else connector.config.to_dict()
    settled = dataclasses.replace(description, language=source, vision=vision, connector=settings)
    return Assembled(model, language.tokenizer, settled)


def _adapter(settings: dict[str, Any]) -> AdapterConfig:
    try:
        return AdapterConfig(**settings)
    except TypeError as error:  # of a file that was changed: a field that there is not, or of another kind
        raise ValueError(f"config.json: its adapter has a field of another kind ({printable(error, 100)})") from error


def _language(source: LanguageSource, is_own: bool, device: torch.device | str) -> LanguageModel:
    if source.config is not None:
        return build_language_model(source.config)._replace(name=source.name)
    place = "cpu" if source.quantization is None else str(device)  # transformers compares texts
    found = open_language_model(source.name, source.revision, source.dtype, source.quantization, place)
    if source.weights_sha256 not in (None, found.weights_sha256) and not is_own:
        raise ValueError(
            f"the language model {source.name} has other weights than the one that this model was trained on "
            f"(SHA-256 {found.weights_sha256[:12]}, then {str(source.weights_sha256)[:12]}): put that one there."
        )
    return found


def _tower(vision: VisionSource, is_own: bool) -> VisionTower | StoredFeatures:
    ours: dict[str, Any] = vision.config.get(OURS) or {}
    name = ours.get("source")
    tower: VisionTower | StoredFeatures
    if name == RANDOM:
        # With random weights of its own, whose seed is the run's.
        tower = open_tower(RANDOM, vision.select_layer, None, ours.get("image_size"), _without_ours(vision.config))
    elif name is None:
        tower = build_tower(vision.config, vision.select_layer)
    else:
        tower = open_tower(name, vision.select_layer, ours.get("revision"), ours.get("image_size"))
        expected = ours.get("weights")
        if expected not in (None, tower.spec.weights) and not is_own:
            raise ValueError(
                f"the vision encoder {name} has other weights than the one that this model was trained on (SHA-256 "
                f"{str(tower.spec.weights)[:12]}, then {str(expected)[:12]}): put that one there."
            )
    if vision.tuning == "lora":
        adapt(tower, vision)
    return tower


def adapt(tower: VisionTower | StoredFeatures, vision: VisionSource) -> None:
    """Put LoRA on the encoder's linear layers."""
    from peft import LoraConfig, inject_adapter_in_model

    assert isinstance(tower, VisionTower)
    lora = LoraConfig(
        r=vision.adapter_rank, lora_alpha=vision.adapter_alpha, target_modules=resolve_lora_targets(tower.tower)
    )
    inject_adapter_in_model(lora, tower.tower)


def _without_ours(config: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name != OURS}
