"""Tiny causal models of other kinds than BitGen, as folders, and the words that their evaluation sets are made of."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from tokenizers.processors import TemplateProcessing
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from bitgen.data.tokenizer import train_bpe
from support.runs import scratch

WORDS = "the a cat cats dog dogs sits sit runs run on under red blue mat hat box Box contains and is was".split()


@functools.cache
def model_folder(kind: str = "gpt2", context: int = 128, bos: bool = False) -> Path:
    """The folder of a saved model with random weights, and of its tokenizer; the same arguments give the same."""
    tokenizer = train_bpe([f"{one} {two} {three}." for one in WORDS for two in WORDS[::2] for three in WORDS[::3]], 300)
    if bos:
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]
        )
    torch.manual_seed(1)
    common = dict(vocab_size=len(tokenizer), initializer_range=0.3, bos_token_id=0, eos_token_id=1, pad_token_id=2)
    if kind == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(n_positions=context, n_embd=24, n_layer=2, n_head=2, **common))
    else:
        sizes = dict(hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2)
        model = LlamaForCausalLM(LlamaConfig(max_position_embeddings=context, **sizes, **common))
    folder = scratch()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(str(folder))
    return folder
