"""The causal text stack: text encoder and language model without an image, fusion encoder and captioner with one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.cache_utils import Cache

from .attention import attend, attending_dtype, attention_weights, split_heads
from .configuration_bitgen import BitGenConfig
from .cross_modal_fusion import GatedCrossAttention
from .dropout import Dropout
from .recall import Recall
from .recalled import Beside
from .rotary import rotate, rotations


class _OneGradient(torch.autograd.Function):
    """A table as it is. Its lookups' sparse gradients meet here, and become dense unless there is already a dense one
    that they can be added to."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor) -> torch.Tensor:
        ctx.weight = weight
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient.to_dense() if gradient.is_sparse and ctx.weight.grad is None else gradient


class TextEmbeddings(nn.Module):
    """Token embeddings, plus learned position embeddings unless attention is rotary: ``input_ids [B, T] -> [B, T, D]``.

    Positions count from ``start``, or are those given as ``positions [B, T]``, each below ``max_seq_len``. Where the
    tokens' own embeddings are at hand, ``embedded [B, T, D]`` takes the place of the table's.
    """

    def __init__(
        self, vocab_size: int, max_seq_len: int, embed_dim: int, dropout: float, learned_positions: bool = True
    ) -> None:
        super().__init__()
        self.max_seq_len = max_seq_len
        self.token = nn.Embedding(vocab_size, embed_dim)
        self.position = nn.Embedding(max_seq_len, embed_dim) if learned_positions else None
        self.dropout = Dropout(dropout)
        self._shared: tuple[torch.Tensor] | None = None
        nn.init.normal_(self.token.weight, std=0.02)
        if self.position is not None:
            nn.init.normal_(self.position.weight, std=0.02)

    def forward(
        self,
        input_ids: torch.Tensor,
        start: int = 0,
        positions: torch.Tensor | None = None,
        embedded: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if positions is None:
            positions = self._consecutive(input_ids, start)
        tokens = self._tokens(input_ids) if embedded is None else embedded
        return self.dropout(tokens if self.position is None else tokens + self.position(positions))

    def _consecutive(self, input_ids: torch.Tensor, start: int) -> torch.Tensor:
        end = start + input_ids.shape[1]
        if end > self.max_seq_len:
            raise ValueError(
                f"A sequence of {end} tokens is longer than max_seq_len={self.max_seq_len}; truncate it "
                "(BitGenProcessor does) or build the model with a larger max_seq_len."
            )
        return torch.arange(start, end, device=input_ids.device)

    def _tokens(self, input_ids: torch.Tensor) -> torch.Tensor:
        if self._shared is None:
            return self.token(input_ids)
        return F.embedding(input_ids, self._shared[0], sparse=True)

    @contextmanager
    def one_gradient(self) -> Iterator[None]:
        """On CPUs, lookups inside the block share one gradient of the token table.

        A gradient of each lookup is a table of zeros with a few hundred rows in it; writing those zeros took a third
        of a small training step (docs/lab_log.md).
        """
        weight = self.token.weight
        if weight.requires_grad and weight.device.type == "cpu" and torch.is_grad_enabled():
            self._shared = (_OneGradient.apply(weight),)  # in a tuple, so that it is no parameter
        try:
            yield
        finally:
            self._shared = None


class CausalSelfAttention(nn.Module):
    """Multi-head causal attention with an optional key-value cache; ``[B, T, D] -> [B, T, D]``.

    Sequences are padded on the right, so that causality alone keeps real positions away from padding; where that does
    not hold, ``allowed [B, 1, T, S]`` says which of the S cached and new positions each of the T new ones may see.
    With ``turns`` (:func:`rotary.rotations`) queries and keys are rotated to their positions; the cache holds rotated
    keys. The weights ``[B, H, T, S]`` are appended to ``attentions`` where that is given.
    """

    def __init__(self, embed_dim: int, num_heads: int, layer_index: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.layer_index = layer_index
        self.query_key_value = nn.Linear(embed_dim, 3 * embed_dim, bias=False)
        self.output = nn.Linear(embed_dim, embed_dim)

    def forward(
        self,
        hidden: torch.Tensor,
        cache: Cache | None = None,
        allowed: torch.Tensor | None = None,
        turns: torch.Tensor | None = None,
        attentions: list[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        projected = self.query_key_value(hidden)
        query, key, value = (split_heads(part, self.num_heads) for part in projected.chunk(3, dim=-1))  # (B, H, T, d)
        if turns is not None:
            # Cast as `attend` would, but first: rotating is in float32 anyway, and the cache needs one dtype.
            query, key, value = (part.to(attending_dtype(part)) for part in (query, key, value))
            query, key = rotate(query, turns), rotate(key, turns)
        length = query.shape[2]
        if cache is not None:
            key, value = cache.update(key, value, self.layer_index)
        past = key.shape[2] - length
        if allowed is None and past and length > 1:
            allowed = torch.ones(length, key.shape[2], dtype=torch.bool, device=query.device).tril(past)
        attended = attend(query, key, value, allowed, is_causal=allowed is None and not past)
        if attentions is not None:
            attentions.append(attention_weights(query, key, allowed))
        return self.output(attended.to(projected.dtype))


class SwiGLU(nn.Module):
    """The activation of a gated feed-forward part (Shazeer, arXiv 2002.05202): ``[..., 2F] -> [..., F]``.

    The first half, through SiLU, gates the second.
    """

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        gate, up = hidden.chunk(2, dim=-1)
        return F.silu(gate) * up


def feed_forward(config: BitGenConfig) -> nn.Sequential:
    """Pre-norm feed-forward part, ``D -> ffn_dim -> D``. SwiGLU's first layer is twice as wide for its gates."""
    width, hidden = config.embed_dim, config.ffn_dim
    gated = config.feed_forward == "swiglu"
    return nn.Sequential(
        nn.LayerNorm(width),
        nn.Linear(width, 2 * hidden if gated else hidden),
        SwiGLU() if gated else nn.GELU(),
        nn.Linear(hidden, width),
    )


class DecoderBlock(nn.Module):
    """Pre-norm block: causal attention, cross-attention to the image (``backbone`` fusion only), feed-forward."""

    def __init__(self, config: BitGenConfig, layer_index: int) -> None:
        super().__init__()
        width, heads, dropout = config.embed_dim, config.num_heads, config.dropout
        self.attention_norm = nn.LayerNorm(width)
        self.attention = CausalSelfAttention(width, heads, layer_index)
        fuses = config.fusion == "backbone"
        self.fusion = GatedCrossAttention(width, heads, dropout, config.gate_start) if fuses else None
        self.feed_forward = feed_forward(config)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        hidden: torch.Tensor,
        image_tokens: torch.Tensor | None = None,
        cache: Cache | None = None,
        allowed: torch.Tensor | None = None,
        turns: torch.Tensor | None = None,
        attentions: list[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        hidden = hidden + self.dropout(self.attention(self.attention_norm(hidden), cache, allowed, turns, attentions))
        if self.fusion is not None and image_tokens is not None:
            hidden = self.fusion(hidden, image_tokens)
        return hidden + self.dropout(self.feed_forward(hidden))


class TextDecoder(nn.Module):
    """The stack of blocks; the final norm belongs to the model, because the memory may stand between them."""

    # Under these two names transformers switches on that activations are computed anew in the backward pass.
    gradient_checkpointing = False
    _gradient_checkpointing_func: Any = None

    def __init__(self, config: BitGenConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(DecoderBlock(config, index) for index in range(config.num_layers))
        self.rotary_dim = config.embed_dim // config.num_heads if config.positions == "rope" else None

    def forward(
        self,
        hidden: torch.Tensor,
        image_tokens: torch.Tensor | None = None,
        cache: Cache | None = None,
        allowed: torch.Tensor | None = None,
        trace: list[torch.Tensor] | None = None,
        positions: torch.Tensor | None = None,
        attentions: list[torch.Tensor] | None = None,
        recall: Recall | None = None,
        beside: Beside | None = None,
    ) -> torch.Tensor:
        """``[B, T, D] -> [B, T, D]``; what enters each block is appended to ``trace``, its weights to ``attentions``.

        After each block its reader, of ``recall``, looks at what is ``beside`` the text.

        ``positions [B, T]`` are read by rotary attention alone; by default they go on from the cache's length.
        """
        turns = self._turns(hidden, cache, positions) if self.rotary_dim is not None else None
        for index, block in enumerate(self.blocks):
            if trace is not None:
                trace.append(hidden)
            inputs = (hidden, image_tokens, cache, allowed, turns)
            if self.gradient_checkpointing and self.training and cache is None and attentions is None:
                hidden = self._gradient_checkpointing_func(block.__call__, *inputs)
            else:
                hidden = block(*inputs, attentions)
            if recall is not None and beside is not None:
                hidden = recall.readers[index](hidden, beside)
        return hidden

    def _turns(self, hidden: torch.Tensor, cache: Cache | None, positions: torch.Tensor | None) -> torch.Tensor:
        if positions is None:
            start = cache.get_seq_length() if cache is not None else 0
            positions = torch.arange(start, start + hidden.shape[1], device=hidden.device)
        assert self.rotary_dim is not None
        return rotations(positions, self.rotary_dim)
