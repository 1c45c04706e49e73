"""Tiny vision-language models of parts, whose encoder and language model are folders of random weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, CLIPImageProcessor, PreTrainedTokenizerBase

from bitgen.data.conversations.records import Turn
from bitgen.data.conversations.speech import Speech
from bitgen.export.vlm_folder import write_vlm_folder
from bitgen.trained_vlm import TrainedVlm
from bitgen.vlm.assembly import assemble
from bitgen.vlm.connectors import ConnectorConfig
from bitgen.vlm.description import Description, LanguageSource, SpeechSource, VisionSource
from bitgen.vlm.vision import OURS
from support.chat_templates import styled

_TOWER: dict[str, Any] = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, patch_size=14, image_size=28)
_LANGUAGE: dict[str, Any] = dict(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    bos_token_id=0,
    eos_token_id=1,
    pad_token_id=2,
)
LORA = {"kind": "lora", "rank": 4, "alpha": 8, "dropout": 0.0, "rslora": False, "targets": "all-linear"}
SPEECH = SpeechSource(system_prompt="helpful")
LANGUAGE_SETTINGS: dict[str, dict[str, Any]] = {"gemma2": dict(head_dim=8), "qwen3": dict(head_dim=8)}


def tower_folder(folder: Path, kind: str = "clip_vision_model", **settings: Any) -> Path:
    """A saved encoder with its image processor."""
    torch.manual_seed(7)
    sizes = _TOWER | ({} if kind.startswith("dinov2") else {"intermediate_size": 48}) | settings
    AutoModel.from_config(AutoConfig.for_model(kind, **sizes)).save_pretrained(folder)
    side = {"height": 28, "width": 28}
    crops = kind != "siglip_vision_model"
    size = {"shortest_edge": 32} if crops else side
    processor = CLIPImageProcessor(size=size, crop_size=side, do_center_crop=crops, image_mean=[0.5, 0.4, 0.3])
    processor.save_pretrained(folder)
    return folder


def language_folder(
    folder: Path, kind: str = "llama", tokenizer: PreTrainedTokenizerBase | None = None, **more
) -> Path:
    """A saved language model with its tokenizer; its logits tell tokens apart."""
    tokenizer = tokenizer or styled("chatml")
    torch.manual_seed(3)
    sizes = {**_LANGUAGE, "vocab_size": len(tokenizer), **LANGUAGE_SETTINGS.get(kind, {}), **more}
    lm = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes)).float()
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=0.2)
        lm.get_output_embeddings().weight[len(tokenizer) :] = 0  # ids that are nothing
    lm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_vlm(
    tower: Path | None,
    language: Path,
    connector: str = "mlp",
    layers: Any = -2,
    adapter: dict[str, Any] | None = LORA,
    own_parts: tuple[str, ...] = (),
    speech: SpeechSource = SPEECH,
    tuning: str = "frozen",
    frames: int = 2,
    options: dict[str, Any] | None = None,
    quantization: str | None = None,
) -> TrainedVlm:
    """A model as a run would leave it, whose own weights are all random, also B of its adapters."""
    vision = None
    if tower is not None:
        vision = VisionSource({OURS: {"source": str(tower)}}, layers, tuning, adapter_rank=2)
    description = Description(
        LanguageSource(str(language), quantization=quantization),
        vision,
        adapter=adapter,
        own_parts=own_parts,
        speech=speech,
    )

    def plan(spec, lm, count) -> ConnectorConfig:
        width = lm.model.get_input_embeddings().weight.shape[1]
        return ConnectorConfig(connector, spec.width, width, spec.tokens, count, frames, 4, options or {})

    torch.manual_seed(5)
    made = assemble(description, plan)
    with torch.no_grad():
        for name, tensor in made.model.state_dict().items():
            if "lora_B" in name or name.startswith("connector."):
                tensor.normal_(std=0.2)
            elif not name.startswith("language.") or "lora_" not in name:
                tensor.add_(0.01 * torch.randn_like(tensor))  # parts that were trained
    assert made.tokenizer is not None
    speaks = Speech(made.tokenizer, speech.template, speech.system_prompt)
    settled = dataclasses.replace(made.description, own_parts=tuple(sorted(own_parts)))
    return TrainedVlm(made.model.eval(), made.tokenizer, speaks, settled, language)


def exported_vlm(folder: Path) -> Path:
    """An export of a tiny model, and its parts beside it."""
    trained = tiny_vlm(tower_folder(folder / "tower"), language_folder(folder / "lm"))
    (folder / "vlm").mkdir()
    write_vlm_folder(trained, folder / "vlm", {})
    return folder / "vlm"


def an_input(trained: TrainedVlm, question: str = "<image>\nWhat is it?", pictures: int = 1) -> dict[str, torch.Tensor]:
    """A question about random pixels with an answer, as training has it; all pictures are of one visual."""
    connector = trained.model.connector
    assert connector is not None
    turns = [Turn("user", question), Turn("assistant", "A red dog.")]
    ids, labels = trained.speech(turns, [connector.tokens(pictures)])
    pixels = torch.randn(pictures, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    given = torch.tensor([ids])
    return {
        "input_ids": given,
        "labels": torch.tensor([labels]),
        "attention_mask": torch.ones_like(given),
        "pictures": pixels,
        "frames": torch.tensor([pictures]),
    }


@torch.no_grad()
def logits_of(trained: TrainedVlm, inputs: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
    """Logits of the supervised positions, ``[n, V]``."""
    return trained.model(inputs if inputs is not None else an_input(trained)).logits
