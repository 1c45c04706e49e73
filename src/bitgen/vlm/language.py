"""Any causal language model of a known family: opened, fed with embeddings, read where it learns, made to write."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers.modeling_utils
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerBase

from bitgen.guards.printable import printable
from bitgen.machine.files import digest, file_hash
from bitgen.machine.hub import hub_folder, revision_of
from bitgen.model.causal_lm_bitgen import BitGenForCausalLM
from bitgen.model.configuration_bitgen import BitGenConfig
from bitgen.vlm.library_attention import ATTENTION, packed_lengths, use_fast_attention
from bitgen.vlm.pretrained import (
    BITGEN,
    DTYPES,
    FAMILIES,
    FILES,
    WEIGHTS,
    check_choice,
    family_of,
    make_savable,
    opened,
    quantized,
    tokenizer_of,
)

# How text is written unless a caller says otherwise, whatever a model's own generation_config.json says: scores of two
# models are comparable, and a published file that contradicts itself does no harm.
DECODING = {
    "do_sample": False,
    "num_beams": 1,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "length_penalty": 1.0,
}
# Attention whose masks keep packed samples apart by their positions (held by tests); others are refused.
_PACKING_ATTENTION = (ATTENTION, "sdpa", "eager")


class LanguageModel(NamedTuple):
    """A causal language model in eval mode, and what identifies it.

    ``name``: as it was asked for; ``revision``: the commit, where it came from the hub's cache.
    ``weights_sha256``: of the weights as they were published, whatever type they were opened in.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase | None
    name: str
    revision: str | None
    weights_sha256: str


def open_language_model(
    name_or_folder: str | Path,
    revision: str | None = None,
    dtype: str = "float32",
    quantization: str | None = None,
    device: torch.device | str = "cpu",
) -> LanguageModel:
    """The model of a folder or a hub id. Only safetensors are read, and code that a repository brings is not run.

    Args:
        dtype: ``float32`` | ``bfloat16``; with ``quantization`` what is not quantized, and what is computed in.
        quantization: ``4bit`` (nf4) | ``8bit`` of every linear layer but the head, by bitsandbytes.

    Raises:
        ValueError: it is not there and the hub does not give it; its family is unknown; weights or tokenizer are
            missing, damaged or another model's; bitsandbytes is missing.
    """
    check_choice("dtype", dtype, DTYPES)
    options: dict[str, Any] = {"dtype": DTYPES[dtype], "use_safetensors": True, "trust_remote_code": False}
    if quantization is not None:
        options |= {"quantization_config": quantized(quantization, DTYPES[dtype]), "device_map": {"": device}}
    folder = hub_folder(name_or_folder, revision, "language model", FILES)
    kind = family_of(folder)
    weights = sorted({path for pattern in WEIGHTS for path in folder.glob(pattern)})
    if not weights:
        raise ValueError(f"{folder} holds no model.safetensors; download the model's safetensors files into it")
    if kind == BITGEN and quantization is not None:
        raise ValueError(f"{folder} is an export of BitGen, too small to gain by quantization; leave it out")
    tokenizer = tokenizer_of(folder, kind)
    loader: Any = AutoModelForCausalLM
    if kind == BITGEN:
        loader = BitGenForCausalLM
        options.pop("trust_remote_code")
    model, report = opened(folder, lambda: loader.from_pretrained(folder, output_loading_info=True, **options))
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"{folder} lacks {len(missing)} weights, first {printable(missing[0], 100)}, which would be random; "
            "download it again"
        )
    largest, rows = max(tokenizer.get_vocab().values(), default=-1), model.get_input_embeddings().weight.shape[0]
    if largest >= rows:
        raise ValueError(
            f"{folder}: its tokenizer has ids up to {largest} and the model {rows} embeddings; put the model's own "
            "tokenizer there"
        )
    make_savable(model.generation_config)
    if kind != BITGEN:
        use_fast_attention(model)
    if quantization is None:
        model = model.to(device)
    found = hashlib.sha256("".join(file_hash(path) for path in weights).encode()).hexdigest()
    return LanguageModel(model.eval(), tokenizer, str(name_or_folder), revision_of(folder), found)


def build_language_model(config: dict[str, Any]) -> LanguageModel:
    """A model of random weights in float32 without a tokenizer, for tests and for models trained from the start.

    Args:
        config: ``model_type`` of :data:`FAMILIES`, and that family's sizes by their names in ``config.json``.

    Raises:
        ValueError: the family is unknown, or the sizes do not fit together.
    """
    kind = str(config.get("model_type"))
    check_choice("model_type", kind, FAMILIES)
    sizes = {name: value for name, value in config.items() if name != "model_type"}

    def build() -> Any:
        if kind == BITGEN:
            return BitGenForCausalLM(BitGenConfig(**sizes))
        return AutoModelForCausalLM.from_config(
            AutoConfig.for_model(kind, **sizes), dtype=torch.float32, trust_remote_code=False
        )

    model = opened(f"a new {kind} model", build)
    if kind != BITGEN:
        use_fast_attention(model)
    found = digest(model.named_parameters())
    return LanguageModel(model.eval(), None, kind, None, found)


# ---- training: the head where something is learned ----


def supervised_logits(
    lm: LanguageModel | nn.Module,
    embeds: torch.Tensor,
    attention_mask: torch.Tensor | None,
    keep: torch.Tensor,
    position_ids: torch.Tensor | None = None,
) -> torch.Tensor:
    """Logits ``[n, V]`` in float32 at the n positions where ``keep [B, T]`` is true, in reading order.

    The head runs there alone: all logits of a batch take gigabytes. ``embeds`` is ``[B, T, H]``, padded on either side
    as ``attention_mask [B, T]`` says. Rows of several samples have no mask: ``position_ids [B, T]`` that start anew at
    each sample keep samples apart (:func:`check_packing`).
    """
    model = _module(lm)
    if attention_mask is None and position_ids is not None and model.config.model_type == BITGEN:
        attention_mask = same_document(position_ids)
    inputs: dict[str, Any] = {"inputs_embeds": embeds, "use_cache": False}  # with a cache, packing is not looked for
    inputs |= {"attention_mask": attention_mask, "position_ids": position_ids}
    if attention_mask is None and position_ids is not None:
        inputs |= packed_lengths(model, position_ids)
    keep = keep.bool()
    if _takes_masks(model):
        return model(**inputs, logits_to_keep=keep).logits.float()
    columns = keep.any(dim=0).nonzero().flatten()  # of any row: earlier releases know columns alone
    return model(**inputs, logits_to_keep=columns).logits[keep[:, columns]].float()


def same_document(position_ids: torch.Tensor) -> torch.Tensor:
    """Whether two positions of a packed row are of one sample, ``[B, T, T]``; a sample starts where counting does."""
    jumps = position_ids.diff(dim=1) != 1
    documents = F.pad(jumps.long().cumsum(dim=1), (1, 0))
    return documents[:, :, None] == documents[:, None, :]


def check_packing(lm: LanguageModel | nn.Module) -> None:
    """Raises ``ValueError`` where a model's attention would not keep packed samples apart."""
    model = _module(lm)
    kind, attention = model.config.model_type, model.config._attn_implementation
    if kind not in FAMILIES:
        raise ValueError(f"packing is not known to be right for {printable(kind, 40)} models; write packing False")
    if kind != BITGEN and attention not in _PACKING_ATTENTION:
        raise ValueError(
            f"packing is not known to keep samples apart with the attention {printable(attention, 40)}; open the model "
            "with sdpa or eager, or write packing False"
        )


# ---- writing ----


@torch.no_grad()
def generate(
    lm: LanguageModel | nn.Module,
    embeds: torch.Tensor,
    attention_mask: torch.Tensor,
    max_new_tokens: int = 64,
    synced_gpus: bool | None = None,
    **settings: Any,
) -> torch.Tensor:
    """New tokens ``[B, n]`` after prompts ``embeds [B, T, H]``, greedily unless ``settings`` change :data:`DECODING`.

    Prompts may be padded on either side, as ``attention_mask [B, T]`` says: they are moved to the right here, because
    a model goes on from the last column. Shorter answers are filled with the padding token.

    Args:
        synced_gpus: True where ranks share the weights of one model: they then take equally many steps.
        settings: fields of transformers' ``GenerationConfig``.

    Raises:
        ValueError: an unknown setting, settings that contradict each other, a prompt without a token, or prompt and
            answer together longer than the model's positions.
    """
    model = _module(lm)
    embeds, attention_mask = left_padded(embeds, attention_mask)
    length, most = embeds.shape[1], model.config.max_position_embeddings
    if length + max_new_tokens > most:
        raise ValueError(
            f"a prompt of {length} tokens and {max_new_tokens} new ones are more than the {most} positions of the "
            "model; shorten the prompt or lower max_new_tokens"
        )
    config = _decoding(model, max_new_tokens, settings)
    training = model.training
    model.eval()
    try:
        return model.generate(
            inputs_embeds=embeds, attention_mask=attention_mask, generation_config=config, synced_gpus=synced_gpus
        )
    finally:
        model.train(training)


def left_padded(embeds: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of ``[B, T, H]`` and their mask with all padding on the left, and no column that is padding everywhere."""
    real = attention_mask.bool()
    if not bool(real.any(dim=1).all()):
        raise ValueError("a prompt has no token; give every prompt some text or an image")
    order = real.to(torch.uint8).argsort(dim=1, stable=True)[:, int((~real).sum(dim=1).min()) :]
    return embeds.gather(1, order[..., None].expand(-1, -1, embeds.shape[2])), attention_mask.gather(1, order)


def _decoding(model: Any, max_new_tokens: int, settings: dict[str, Any]) -> GenerationConfig:
    own = model.generation_config
    ids = {name: getattr(own, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    if ids["pad_token_id"] is None:
        end = settings.get("eos_token_id", ids["eos_token_id"])
        ids["pad_token_id"] = end[0] if isinstance(end, list) else end
    config = GenerationConfig(**(ids | DECODING))
    if unknown := sorted(name for name in settings if not hasattr(config, name)):
        raise ValueError(f"{printable(', '.join(unknown), 100)}: no setting of generation has this name")
    config.update(max_new_tokens=max_new_tokens, **settings)
    try:
        config.validate(strict=True)
    except ValueError as error:
        raise ValueError(f"the settings of generation do not fit together: {printable(error)}") from error
    return config


def _module(lm: LanguageModel | nn.Module) -> Any:
    return lm.model if isinstance(lm, LanguageModel) else lm


def _takes_masks(model: Any) -> bool:
    """Whether ``logits_to_keep`` may be a boolean ``[B, T]``; releases of transformers before 5.23 do not know it."""
    return model.config.model_type == BITGEN or hasattr(transformers.modeling_utils, "slice_logits_to_keep")
