"""BitGen: the parts put together, and the four things that the network can do.

Order of the fused pass: embeddings -> fusion -> memory -> decoder. With ``backbone`` fusion, which happens inside the
decoder's blocks, the memory stands after the last block. Without an image the same stack is a text encoder.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from .configuration_bitgen import BitGenConfig
from .cross_modal_fusion import build_fusion
from .episodic_memory import MemoryLayer, MemoryReader
from .feature_compressor import FeatureCompressor, LocalMixing, TokenPooling
from .full_precision import full_precision
from .likelihood import next_token_labels, sequence_log_probs
from .parameter_roles import ADAPTER_KINDS, BASE, ParameterRole, role_of
from .recall import Recall
from .recalled import Recalled
from .sequence_layout import SequenceLayout
from .text_decoder import TextDecoder, TextEmbeddings
from .vision_encoder import VisionEncoder

# Cosines of hard pairs end at 0.4 to 0.8, some 0.05 apart: shifted and scaled, or weight and bias would learn slowly.
COSINE_CENTRE, COSINE_UNIT = 0.5, 0.02


class ImageEncoding(NamedTuple):
    """``image_tokens [B, P, D]`` and the normalised ``image_features [B, D]``."""

    image_tokens: torch.Tensor
    image_features: torch.Tensor


class StackOutput(NamedTuple):
    """``hidden_states [B, T, D]`` after the final norm, the sequence's ``codes [B, C]`` and mean read weights
    ``[B, T, K]`` (both None without a memory), and the codes of recalled tokens that are pointed at, ``said [B, T, d]``
    (None where nothing was recalled)."""

    hidden_states: torch.Tensor
    codes: torch.Tensor | None
    read_weights: torch.Tensor | None
    said: torch.Tensor | None = None


def last_token(hidden_states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """The hidden state at each row's last real token (its EOS): ``[B, T, D], [B, T] -> [B, D]``.

    The stack is causal, so only this position has seen the whole caption.
    """
    last = attention_mask.sum(dim=1).clamp_min(1) - 1
    return hidden_states[torch.arange(len(last), device=last.device), last]


def mean_token(hidden_states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """The mean hidden state over each row's real tokens: ``[B, T, D], [B, T] -> [B, D]``."""
    mask = attention_mask[..., None].to(hidden_states.dtype)
    return (hidden_states * mask).sum(dim=1) / mask.sum(dim=1).clamp_min(1)


class BitGenModel(PreTrainedModel):
    """The trainable network around a frozen vision tower. See ``factory.build_model`` for pretrained weights."""

    config_class = BitGenConfig
    base_model_prefix = "bitgen"
    supports_gradient_checkpointing = False

    def __init__(self, config: BitGenConfig) -> None:
        super().__init__(config)
        width = config.embed_dim
        self.vision_encoder = None if config.takes_features else VisionEncoder(config)
        self.compressor = FeatureCompressor(
            config.vision_feature_dim, config.compressor_dim, width, config.compressor_dropout
        )
        self.compressor_convolutions = nn.Sequential(*map(LocalMixing, [width] * config.compressor_convolutions))
        self.image_pooling = TokenPooling(width, config.num_heads, config.image_pooling)
        self.embeddings = TextEmbeddings(
            config.vocab_size, config.max_seq_len, width, config.dropout, config.positions == "learned"
        )
        self.fusion = build_fusion(
            config.fusion, width, config.num_heads, config.ffn_dim, config.dropout, config.gate_start
        )
        self.memory = MemoryLayer(config) if config.use_memory else None
        self.decoder = TextDecoder(config)
        self.recall = Recall(config) if config.recall_tokens else None
        self.final_norm = nn.LayerNorm(width)
        self.image_projection = nn.Linear(width, width)
        self.text_projection = nn.Linear(width, width)
        self.itm_head = nn.Linear(2 if config.itm_likelihood else width, 2)
        if config.itm_likelihood:  # what a nat and a cosine are worth, from nothing
            nn.init.zeros_(self.itm_head.weight)
            nn.init.zeros_(self.itm_head.bias)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: each module initialises itself when it is built, and pretrained weights must not be touched."""

    # --- the four things it does ---------------------------------------------------------------------------------

    def encode_image(
        self, pixel_values: torch.Tensor | None = None, vision_features: torch.Tensor | None = None
    ) -> ImageEncoding:
        """Images ``pixel_values [B, 3, H, W]``, or features computed earlier ``vision_features [B, P, C]`` or
        ``[B, C]`` (of a model with a tower: what :meth:`patch_features` gives), to image tokens and one normalised
        vector each.

        Raises:
            ValueError: not exactly one of the two, the wrong one for this model, or features of another shape.
        """
        if (pixel_values is None) == (vision_features is None):
            raise ValueError("encode_image takes either pixel_values or vision_features.")
        if pixel_values is not None:
            if self.vision_encoder is None:
                raise ValueError("This model takes vision_features (it was trained on features, without a tower).")
            vision_features = self.patch_features(pixel_values)
        else:
            assert vision_features is not None
            if vision_features.dim() == 2:
                vision_features = vision_features[:, None]
        expected = (self.config.image_tokens, self.config.vision_feature_dim)
        if tuple(vision_features.shape[1:]) != expected:
            raise ValueError(f"vision_features are {tuple(vision_features.shape[1:])}, the model expects {expected}.")
        if not torch.is_autocast_enabled(vision_features.device.type):
            vision_features = vision_features.to(self.image_projection.weight.dtype)  # stored ones may be bfloat16
        image_tokens = self.compressor_convolutions(self.compressor(vision_features))
        return ImageEncoding(image_tokens, self.image_features(image_tokens))

    def patch_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """``[B, 3, H, W]`` to what the compressor takes, ``[B, P, C]``: the tower's patches, averaged to a grid of
        ``feature_pool`` a side where the configuration says so."""
        assert self.vision_encoder is not None
        patches = self.vision_encoder(pixel_values).patches
        side, pooled = self.config.tower_grid, self.config.feature_pool
        if pooled is None or pooled >= side:
            return patches
        grid = patches.float().transpose(1, 2).unflatten(-1, (side, side))
        return F.adaptive_avg_pool2d(grid, pooled).flatten(2).transpose(1, 2)

    def encode_text(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, reader: MemoryReader | None = None
    ) -> torch.Tensor:
        """``[B, T]`` ids (BOS ... EOS, padded on the right) and mask -> normalised ``text_features [B, D]``."""
        return self.text_features(
            self.run_stack(input_ids, attention_mask, reader=reader).hidden_states, attention_mask
        )

    def pool_image_tokens(self, image_tokens: torch.Tensor) -> torch.Tensor:
        """``[B, P, D] -> [B, P', D]``: average-pooled to at most ``pooled_grid`` a side, rounded to bfloat16.

        Every matching pass sees image tokens through here, true pairs, hard negatives and evaluation alike: otherwise
        the rounding and smoothing of the queue's tokens would tell which images are negatives.
        """
        tokens = image_tokens.float()
        if tokens.shape[1] > self.config.pooled_tokens:
            channels_first = tokens.transpose(1, 2)
            side = self.config.image_grid
            if side is not None:
                grid = channels_first.unflatten(-1, (side, side))
                channels_first = F.adaptive_avg_pool2d(grid, self.config.pooled_grid).flatten(2)
            else:
                channels_first = F.adaptive_avg_pool1d(channels_first, self.config.pooled_tokens)
            tokens = channels_first.transpose(1, 2)
        return tokens.to(torch.bfloat16).to(torch.float32)

    def match(
        self,
        pooled_tokens: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        reader: MemoryReader | None = None,
    ) -> torch.Tensor:
        """Image-text matching logits ``[B, 2]`` (index 1: they belong together) of pooled image tokens
        ``[B, P', D]`` and captions ``[B, T]``."""
        fused = self.run_stack(input_ids, attention_mask, pooled_tokens, reader).hidden_states
        if not self.config.itm_likelihood:
            return self.itm_logits(fused, attention_mask)
        alone = self.run_stack(input_ids, attention_mask, reader=reader).hidden_states
        return self.evidence_logits(*self.pair_evidence(fused, alone, input_ids, attention_mask, pooled_tokens))

    def log_odds(
        self, pooled_tokens: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> torch.Tensor:
        """Log odds ``[B]`` that pairs belong together, where half of all pairs do; arguments as of :meth:`match`.

        With ``itm_likelihood`` it is log p(caption | image) - log p(caption), by Bayes' rule for wrong pairs that were
        put together at random. The head itself is for wrong pairs that were picked for being similar.
        """
        if not self.config.itm_likelihood:
            no, yes = self.match(pooled_tokens, input_ids, attention_mask).unbind(dim=1)
            return yes - no
        fused, alone = (
            self.run_stack(input_ids, attention_mask, tokens).hidden_states for tokens in (pooled_tokens, None)
        )
        return self.pair_evidence(fused, alone, input_ids, attention_mask, pooled_tokens)[0]

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        image_tokens: torch.Tensor | None = None,
        reader: MemoryReader | None = None,
        cache: Cache | None = None,
    ) -> torch.Tensor:
        """Next-token logits ``[B, T, V]``, for text alone or for text given image tokens."""
        return self.lm_logits(self.run_stack(input_ids, attention_mask, image_tokens, reader, cache).hidden_states)

    # --- the stack and its heads ---------------------------------------------------------------------------------

    def run_stack(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        image_tokens: torch.Tensor | None = None,
        reader: MemoryReader | None = None,
        cache: Cache | None = None,
        layout: SequenceLayout | None = None,
        trace: list[torch.Tensor] | None = None,
        attentions: list[torch.Tensor] | None = None,
        embedded: torch.Tensor | None = None,
        recalled: Recalled | None = None,
    ) -> StackOutput:
        """One pass of embeddings, fusion, memory and decoder; see the module docstring for the order.

        Args:
            attention_mask: ``[B, T]``, padding on the right. For codes alone: the layout, or causality, does the rest.
            image_tokens: ``[B, P, D]``, or None for text alone.
            reader: a memory prepared by ``memory.reader``, default the running state.
            cache: key-value cache of the positions before ``input_ids``.
            layout: positions and visibility of sequences that are not simply padded on the right.
            trace, attentions: lists to which what enters each block, and its attention's weights, are appended.
            embedded: ``[B, T, D]`` in place of the embeddings of ``input_ids``, whose shape alone is then read.
            recalled: of a memory, for these rows.
        """
        positions, allowed = (layout.positions, layout.allowed) if layout is not None else (None, None)
        start = cache.get_seq_length() if cache is not None else 0
        hidden = self.embeddings(input_ids, start, positions, embedded)
        if self.fusion is not None and image_tokens is not None:
            hidden = self.fusion(hidden, image_tokens)
        codes = read_weights = None
        memory_last = self.config.fusion == "backbone"
        if self.memory is not None and not memory_last:
            codes = self._sequence_codes(hidden, attention_mask)
            hidden, read_weights = self.memory(hidden, reader)
        facts = None if self.recall is None else self.recall.beside(recalled, input_ids, attention_mask)
        hidden = self.decoder(hidden, image_tokens, cache, allowed, trace, positions, attentions, self.recall, facts)
        said = None if self.recall is None or facts is None else self.recall.pointer(hidden, facts)
        if self.memory is not None and memory_last:
            codes = self._sequence_codes(hidden, attention_mask)
            hidden, read_weights = self.memory(hidden, reader)
        return StackOutput(self.final_norm(hidden), codes, read_weights, said)

    def _sequence_codes(self, hidden: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """What the memory stores of a sequence: the code of the mean over its real tokens, ``[B, C]``."""
        assert self.memory is not None
        if attention_mask is None:
            return self.memory.code(hidden.mean(dim=1))
        return self.memory.code(mean_token(hidden, attention_mask))

    def image_features(self, image_tokens: torch.Tensor) -> torch.Tensor:
        """Normalised ``[B, D]`` of image tokens ``[B, P, D]``, pooled ones or all."""
        return F.normalize(self.image_projection(self.image_pooling(image_tokens)).float(), dim=-1)

    def text_features(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Normalised ``[B, D]`` of captions that the stack read without an image."""
        return F.normalize(self.text_projection(last_token(hidden_states, attention_mask)).float(), dim=-1)

    def itm_logits(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Matching logits ``[B, 2]`` of the fused states, read as ``itm_pooling`` says."""
        pool = last_token if self.config.itm_pooling == "last" else mean_token
        return self.itm_head(pool(hidden_states, attention_mask)).float()

    @torch.no_grad()
    def pair_evidence(
        self,
        fused: torch.Tensor,
        alone: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        pooled_tokens: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What an ``itm_likelihood`` head reads of B pairs, from the stack's outputs ``[B, T, D]`` on their captions
        with the image and ``alone``: for :meth:`evidence_logits`, ``[B]`` each."""
        prior = self.log_likelihood(alone, input_ids, attention_mask)
        cosines = (self.image_features(pooled_tokens) * self.text_features(alone, attention_mask)).sum(dim=-1)
        return self.log_likelihood(fused, input_ids, attention_mask) - prior, cosines

    def evidence_logits(self, evidence: torch.Tensor, cosines: torch.Tensor) -> torch.Tensor:
        """Matching logits ``[B, 2]`` of a head with ``itm_likelihood``.

        Args:
            evidence: ``[B]``, log p(caption | image) - log p(caption) in nats (VisualGPTScore, arXiv 2306.01879,
                section 3): a comparison word by word.
            cosines: ``[B]``, of the two features. Hard pairs are picked by it, wrong ones for being similar, and the
                head learns how much to take off for that.
        """
        inputs = torch.stack((evidence.float(), (cosines.float() - COSINE_CENTRE) / COSINE_UNIT), dim=1)
        with full_precision(inputs.device.type):  # autocast would round the nats
            return F.linear(inputs, self.itm_head.weight.float(), self.itm_head.bias.float())

    def log_likelihood(
        self, hidden_states: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> torch.Tensor:
        """log p of captions ``[B, T]`` after their BOS, EOS included, from the stack's output on them: ``[B]`` nats,
        float32, without a gradient."""
        labels = next_token_labels(input_ids, attention_mask)
        return sequence_log_probs(hidden_states, self.embeddings.token.weight, labels)

    def lm_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The output head, tied to the token embedding: ``[..., D] -> [..., V]``; of ``[..., D + d]``, where the codes
        of recalled tokens that are pointed at follow each state, with what those gain."""
        width = self.config.embed_dim
        logits = F.linear(hidden_states[..., :width], self.embeddings.token.weight)
        if hidden_states.shape[-1] == width:
            return logits
        assert self.recall is not None
        return logits + self.recall.said_logits(hidden_states[..., width:])

    # --- bookkeeping ---------------------------------------------------------------------------------------------

    def roles(self) -> dict[str, ParameterRole]:
        """What each parameter is, by its name here."""
        tower, tuning, encoder = "vision_encoder.", self.config.vision_tuning, self.vision_encoder
        return {
            name: role_of(
                name,
                parameter.dim(),
                tuning,
                encoder is None or not name.startswith(tower) or encoder.reaches(name.removeprefix(tower)),
            )
            for name, parameter in self.named_parameters()
        }

    def set_adapters_trainable(self, trainable: bool) -> None:
        """Freeze or unfreeze what phase 2 trains of the vision tower; nothing to do for features computed earlier."""
        if self.vision_encoder is not None:
            self.vision_encoder.set_adapters_trainable(trainable)

    def adapter_names(self) -> set[str]:
        """Names of the parameters that phase 2 unfreezes."""
        return {name for name, role in self.roles().items() if role.kind in ADAPTER_KINDS}

    def base_names(self) -> set[str]:
        """Names of the pretrained weights that no run changes."""
        return {name for name, role in self.roles().items() if role.kind == BASE}
