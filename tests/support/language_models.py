"""Tiny random language models of every family that is known."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from bitgen.vlm.language import LanguageModel, build_language_model, supervised_logits
from support.models import FEATURES, tiny_config

VOCABULARY = 64
_SIZES = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
_TIED = dict(tie_word_embeddings=True)
_LOCAL = ["sliding_attention", "full_attention", "sliding_attention"]
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": dict(model_type="llama"),
    "llama_tied": dict(model_type="llama", **_TIED),
    "mistral": dict(model_type="mistral", sliding_window=4),
    "qwen2": dict(model_type="qwen2", **_TIED),
    "qwen2_sliding": dict(model_type="qwen2", use_sliding_window=True, sliding_window=4, layer_types=_LOCAL),
    "qwen3": dict(model_type="qwen3", head_dim=16, **_TIED),
    "phi3": dict(model_type="phi3"),
    "gemma": dict(model_type="gemma", head_dim=16, **_TIED),
    "gemma2": dict(model_type="gemma2", head_dim=16, query_pre_attn_scalar=16, sliding_window=4, **_TIED),
    "gemma3": dict(
        model_type="gemma3_text", head_dim=16, query_pre_attn_scalar=16, sliding_window=4, layer_types=_LOCAL, **_TIED
    ),
}
BITGEN_KINDS = {"bitgen": {}, "bitgen_rope": dict(positions="rope", feed_forward="swiglu", fusion="concat_mlp")}
KINDS = (*CONFIGS, *BITGEN_KINDS)
# For adapters, which go on any model of transformers; GPT-2, which BitGen does not open, has layers of another class.
ADAPTED = ("llama", "llama_tied", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "gpt2")


def config_of(kind: str) -> dict[str, Any]:
    """What ``build_language_model`` takes, for one of :data:`KINDS`."""
    if kind in CONFIGS:
        return _SIZES | CONFIGS[kind]
    special = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
    config = tiny_config(FEATURES, vocab_size=VOCABULARY, max_seq_len=64, dropout=0.0, **special, **BITGEN_KINDS[kind])
    return config.to_dict()


def tiny_language_model(kind: str, seed: int = 0) -> LanguageModel:
    """A model in eval mode whose weights are spread so widely that its logits tell tokens apart."""
    torch.manual_seed(seed)
    lm = build_language_model(config_of(kind))
    with torch.no_grad():
        for parameter in lm.model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=0.2)
    return lm


def tiny_lm(kind: str = "llama", seed: int = 0) -> PreTrainedModel:
    """transformers' own model of one of :data:`ADAPTED`, of two layers with its own random weights, in eval mode."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(**_SIZES | CONFIGS.get(kind, {"model_type": kind}) | {"num_hidden_layers": 2})
    return AutoModelForCausalLM.from_config(config).float().eval()


def ragged(lengths: tuple[int, ...] = (9, 5, 12), seed: int = 3) -> list[torch.Tensor]:
    """Rows of ids, none of them special."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCABULARY, (length,), generator=generator) for length in lengths]


def padded(rows: list[torch.Tensor], side: str = "right") -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask ``[B, T]``, by a loop."""
    longest = max(len(row) for row in rows)
    ids, mask = torch.zeros(len(rows), longest, dtype=torch.long), torch.zeros(len(rows), longest, dtype=torch.long)
    for i, row in enumerate(rows):
        part = slice(0, len(row)) if side == "right" else slice(longest - len(row), longest)
        ids[i, part], mask[i, part] = row, 1
    return ids, mask


def supervised_loss(
    lm: LanguageModel | nn.Module,
    embeds: torch.Tensor,
    attention_mask: torch.Tensor | None,
    labels: torch.Tensor,
    position_ids: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of ``supervised_logits``, summed, and how many tokens are predicted: a row's first is not."""
    keep = F.pad(labels[:, 1:] != -100, (0, 1))
    logits = supervised_logits(lm, embeds, attention_mask, keep, position_ids)
    return F.cross_entropy(logits, labels[:, 1:][keep[:, :-1]], reduction="sum"), keep.sum()
