"""How much memory a stage takes before it is trained: counted on models without weights (torch's meta device).

Of each part: weights in the numbers that they are kept in; a gradient of the same numbers for each weight that trains;
and the optimizer's state, two numbers like it for AdamW (arXiv 1711.05101) and one for a matrix under Muon.
Activations are not in it: they follow from batch and length.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from bitgen.config.vlm import VlmConfig
from bitgen.machine.hub import hub_folder
from bitgen.machine.sharded import elements_of_lists
from bitgen.model.causal_lm_bitgen import BitGenForCausalLM
from bitgen.model.configuration_bitgen import BitGenConfig
from bitgen.model.pretrained_tower import pretrained_vision_config
from bitgen.objectives.supervised import NextTokens
from bitgen.show.tables import format_table
from bitgen.stages import Stage
from bitgen.tasks.vlm import groups
from bitgen.tasks.vlm_data import conversations_of, most_pictures
from bitgen.tasks.vlm_description import ConnectorPlan, describe, random_language
from bitgen.training.optimizer import freeze_and_unfreeze
from bitgen.vlm.adapter_config import AdapterConfig
from bitgen.vlm.adapters import attach
from bitgen.vlm.assembly import adapt
from bitgen.vlm.connectors import build_connector
from bitgen.vlm.language import LanguageModel
from bitgen.vlm.modeling import LANGUAGE, MATRIX, VisionLanguageModel
from bitgen.vlm.pretrained import BITGEN, DTYPES, family_of
from bitgen.vlm.vision import OURS, RANDOM, build_tower

FORMULA = (
    "weights + gradients (of what trains) + optimizer (AdamW 2, Muon 1 numbers for each that trains). Sharded: all of "
    "it / processes, and beside it, while they compute, whole weights of all but the language model's layers, and of "
    "one layer. Without activations, logits, and the scales of quantized weights."
)


class Memory(NamedTuple):
    """Bytes of a part, or of a whole stage."""

    weights: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """All together."""
        return sum(self)


def empty_model(config: VlmConfig) -> VisionLanguageModel:
    """The model of a stage on the meta device, with what trains unfrozen; no weights are opened.

    Raises:
        ValueError: a part cannot be found, or parts do not fit one another.
    """
    language = config.language
    is_random = language.language_model == RANDOM
    named = config.replace(language_model="none") if is_random else config  # its tokenizer need not be there
    shape, frames = None, config.data.num_frames
    if config.data.train_data is not None and config.connector.connector != "none":
        source = conversations_of(config, config.data.train_data, "train")
        shape, frames = source.feature_shape, most_pictures(config, source)
    description = describe(named, shape, None, None)
    wanted = language.language_model, language.language_revision, "language model", ("config.json",)
    folder = None if is_random else hub_folder(*wanted)
    tower = connector = None
    with torch.device("meta"):
        if folder is None:
            settings = dict(random_language(config, language.language_vocab_size, {}))
            made = AutoConfig.for_model(settings.pop("model_type"), **settings)
            lm: Any = AutoModelForCausalLM.from_config(made, trust_remote_code=False)
        elif family_of(folder) == BITGEN:
            lm = BitGenForCausalLM(BitGenConfig.from_pretrained(folder))
        else:
            found = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            lm = AutoModelForCausalLM.from_config(found, trust_remote_code=False)
        lm.to(torch.float32 if is_random else DTYPES[language.language_dtype]).requires_grad_(False)
        if description.vision is not None:
            name = (description.vision.config.get(OURS) or {}).get("source")
            found = description.vision.config
            if name not in (None, RANDOM):
                found = {**pretrained_vision_config(name, config.vision.vision_revision), **found}
            tower = build_tower(found, description.vision.select_layer)
            opened = LanguageModel(lm, None, language.language_model, None, "")
            connector = build_connector(ConnectorPlan(config, frames)(tower.spec, opened, len(tower.layers)))
            if description.vision.tuning == "lora":
                adapt(tower, description.vision)
        if description.adapter is not None:
            attach(lm, AdapterConfig(**description.adapter))
    own = set(description.own_parts) | ({"language"} if is_random else set())
    model = VisionLanguageModel(tower, connector, lm, frozenset(own))
    objective = NextTokens(model)
    freeze_and_unfreeze(objective, objective.roles(), Stage("vlm", groups(config), 1, 1), 0)
    return model


def memory_by_part(config: VlmConfig, model: VisionLanguageModel) -> dict[str, Memory]:
    """Bytes of each part of a stage's model; see :data:`FORMULA`."""
    muon = {group.name.removesuffix("_matrix") for group in groups(config) if group.optimizer != "adamw"}
    bits = {"4bit": 4, "8bit": 8}.get(config.language.quantization, 0)
    found: dict[str, Memory] = {}
    for name, parameter in model.named_parameters():
        role, size = model.role_of(name, parameter), parameter.numel() * parameter.element_size()
        if role.part == LANGUAGE and role.kind == MATRIX:
            size = parameter.numel() * bits // 8 if bits else size
        states = 1 if role.part in muon and role.kind == MATRIX else 2
        learned = size if parameter.requires_grad else 0
        before = found.get(role.part, Memory(0, 0, 0))
        found[role.part] = Memory(
            before.weights + size, before.gradients + learned, before.optimizer + states * learned
        )
    return found


def sharded(parts: dict[str, Memory], model: VisionLanguageModel, processes: int) -> int:
    """Bytes of each process while it computes, where ``processes`` share the model."""
    layers = [sum(p.numel() * p.element_size() for p in e.parameters()) for e in elements_of_lists(model.language)]
    weights, total = sum(part.weights for part in parts.values()), sum(part.total for part in parts.values())
    return total // processes + weights - sum(layers) + max(layers)


def memory_table(name: str, config: VlmConfig, processes: int) -> str:
    """What a stage takes, part by part, as a person reads it."""
    model = empty_model(config)
    parts = memory_by_part(config, model)
    whole = Memory(*(sum(values) for values in zip(*parts.values(), strict=True)))
    rows = [(part, *(_readable(size) for size in (*memory, memory.total))) for part, memory in parts.items()]
    rows.append(("all", *(_readable(size) for size in (*whole, whole.total))))
    if processes > 1 and config.language.quantization != "none":
        rows.append((f"sharded on {processes}", "", "", "", "no: quantized"))
    elif processes > 1:
        each = sharded(parts, model, processes)
        rows.append((f"sharded on {processes}, each", "", "", "", _readable(each)))
    return format_table(("part", "weights", "gradients", "optimizer", "together"), rows, title=f"Stage {name}".strip())


def _readable(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
