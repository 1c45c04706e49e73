"""Tiny causal language models from configuration alone."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

_SIZES: dict[str, Any] = dict(
    vocab_size=60,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
FAMILIES: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**_SIZES),
    "llama-tied": LlamaConfig(**_SIZES, tie_word_embeddings=True),
    "mistral": MistralConfig(**_SIZES, sliding_window=8),
    "qwen2": Qwen2Config(**_SIZES),
    "qwen3": Qwen3Config(**_SIZES, head_dim=16),
    "phi3": Phi3Config(**_SIZES),
    "gemma2": Gemma2Config(**_SIZES, head_dim=8),
    "gpt2": GPT2Config(vocab_size=60, n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2),
}


def tiny_lm(family: str = "llama", seed: int = 0) -> PreTrainedModel:
    """A language model of a family with random weights, in eval mode."""
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(copy.deepcopy(FAMILIES[family])).float().eval()
