"""How many floating-point operations a step of stage 1 takes, of the passes that its losses really make.

Written out, with n tokens through a matrix of w weights as 2 n w forward, 2 n w back to the input and 2 n w to the
weights. T: tokens of a caption as padded, W: of the captions in the matching pass, P: image tokens, P': pooled ones, V:
vocabulary, D: width, L: blocks, K, C: the memory's slots and code width.

- ``alone(T)``, one pass without an image: T (blocks' weights) + 2 L T^2 D for attention's products, and where there is
  a memory T (2 K C + its projections' weights).
- ``fused(T)``: ``alone(T)``, and for each cross-attention T (query, output) + P' (key, value) + 2 T P' D.
- Contrast: ``alone(T)``, again with dropped tokens where tokens are dropped and matching reads likelihoods.
- Matching by token: 4 ``fused(W)``. By likelihood: 3 more passes, of which one ``fused(W)`` and one ``alone(W)`` only
  forward, and 2 (T + W) V D forward. Without matching the other losses share one ``fused(T)``.
- Captions: W V D; where matching reads likelihoods, T V D more for the captions without their image.
- Images: the weights of compressor and convolutions times P, and the tower's times its tokens, with 2 n^2 c a layer
  for attention.

Left out, a few per cent together: similarities with batch and queue, the episode's write and the memory's inverse (one
of each a step), norms and activations, DoRA's magnitudes. What gradient checkpointing computes again is no use of the
device, and not counted either.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from bitgen.model.cross_modal_fusion import ConcatMLP, CrossAttention
from bitgen.model.modeling_bitgen import BitGenModel
from bitgen.model.vision_encoder import VisionEncoder
from bitgen.objectives.stage1_reach import Stage1Settings


class Pass(NamedTuple):
    """Multiply-adds of one pass: with ``learned`` weights (or between activations), and with matrices that are
    ``fixed`` in a step, to which no gradient goes."""

    learned: float
    fixed: float = 0.0

    def flops(self, trains: bool) -> float:
        """Forward alone, or forward and backward."""
        return 6 * self.learned + 4 * self.fixed if trains else 2 * (self.learned + self.fixed)


def pair_flops(
    model: BitGenModel,
    settings: Stage1Settings,
    phase_is_adapting: bool,
    text_tokens: float,
    partner_tokens: float | None = None,
    runs_tower: bool = True,
) -> float:
    """Floating-point operations of one image-caption pair, forward and backward.

    Args:
        phase_is_adapting: whether what ``vision_tuning`` names is unfrozen (phase 2).
        text_tokens: T, padded length of the batch's captions.
        partner_tokens: length of the longest caption drawn as a partner; None: no longer than T.
        runs_tower: False where features come from a cache.
    """
    config = model.config
    matches, contrasts, speaks = (
        bool(weight) for weight in (settings.itm_weight, settings.contrastive_weight, settings.text_loss_weight)
    )
    drops = settings.token_dropout > 0
    weighs = matches and config.itm_likelihood
    writes = model.memory is not None and bool(settings.memory_kl_weight)
    width = max(text_tokens, partner_tokens or 0.0) if matches else text_tokens
    alone, fused = stack_pass(model, text_tokens), stack_pass(model, width, config.pooled_tokens)
    logits = Pass(float(config.vocab_size * config.embed_dim))  # of one token
    by_token = matches and not weighs
    fused_trains = by_token or speaks or writes

    total = 0.0
    if drops and (matches or contrasts):
        total += alone.flops(contrasts)
    if weighs or (not drops and (matches or contrasts)):
        total += alone.flops((contrasts and not drops) or (weighs and speaks))
    if matches or speaks or writes:
        total += (4 if by_token else 1) * fused.flops(fused_trains)
    if weighs:
        total += fused.flops(False) + stack_pass(model, width).flops(False)
        total += 2 * (text_tokens + width) * logits.flops(False)
    if speaks:
        total += (width + (text_tokens if weighs else 0)) * logits.flops(True)
    adapts = phase_is_adapting and runs_tower and config.vision_tuning != "frozen" and model.vision_encoder is not None
    total += _image_flops(model, contrasts, contrasts or fused_trains, adapts)
    if model.vision_encoder is not None and runs_tower:
        total += tower_flops(model.vision_encoder, config.tower_grid**2, adapts, config.lora_layers)
    return total


def text_flops(model: BitGenModel, text_tokens: float) -> float:
    """Floating-point operations of one packed sequence of ``text_tokens``, forward and backward."""
    logits = Pass(float(text_tokens * model.config.vocab_size * model.config.embed_dim))
    return stack_pass(model, text_tokens).flops(True) + logits.flops(True)


def stack_pass(model: BitGenModel, tokens: float, image_tokens: float = 0.0) -> Pass:
    """One pass of the text stack over a sequence, fused with ``image_tokens`` or (0) alone."""
    config = model.config
    mixers = [module for module in model.modules() if isinstance(module, (CrossAttention, ConcatMLP))]
    blocks = _weights(model.decoder) - sum(_weights(m) for m in mixers if config.fusion == "backbone")
    learned = tokens * blocks + 2 * config.num_layers * tokens**2 * config.embed_dim
    if image_tokens:
        for mixer in mixers:
            if isinstance(mixer, ConcatMLP):
                learned += tokens * _weights(mixer)
                continue
            of_image = _weights(mixer.key_value)
            learned += tokens * (_weights(mixer) - of_image) + image_tokens * of_image
            learned += 2 * tokens * image_tokens * config.embed_dim
    if model.memory is None:
        return Pass(learned)
    return Pass(learned + tokens * _weights(model.memory), 2 * tokens * config.memory_size * config.memory_dim)


def tower_flops(encoder: VisionEncoder, patches: int, adapts: bool, layers: list[int] | None = None) -> float:
    """One image through the tower: forward, and where it ``adapts`` backward too.

    Below the first of the adapted ``layers`` (None: all) nothing is passed back, nor from that layer's own queries,
    keys and values to what enters it.
    """
    config, tokens = encoder.tower.config, patches + encoder.prefix_tokens
    base, adapters = 0.0, 0.0
    for name, module in encoder.tower.named_modules():
        if isinstance(module, nn.Linear) and not name.startswith(encoder.kind.unused):
            if "lora_" in name:
                adapters += module.weight.numel() * tokens
            else:
                base += module.weight.numel() * tokens
    base += 2 * config.num_hidden_layers * tokens**2 * config.hidden_size
    embedding = patches * sum(m.weight.numel() for m in encoder.tower.modules() if isinstance(m, nn.Conv2d))
    forward = 2 * (base + embedding)
    if not adapts:
        return forward  # adapters that still add nothing are not computed
    if encoder.tuning == "full":
        return 6 * base + 4 * embedding
    above = 1 - min(layers or [0]) / config.num_hidden_layers
    return forward + 2 * (above * base - 3 * config.hidden_size**2 * tokens) + 6 * adapters


def _image_flops(model: BitGenModel, contrasts: bool, trains: bool, adapts: bool) -> float:
    """Compressor and the image's vector; the compressor passes nothing back to a tower that does not learn."""
    config = model.config
    first, second = (config.image_tokens * _weights(m) for m in model.compressor if isinstance(m, nn.Linear))
    vector = config.image_tokens * (_weights(model.image_pooling) + config.embed_dim) + _weights(model.image_projection)
    mixing = model.compressor_convolutions
    convolutions = sum(part.weight.numel() for part in mixing.modules() if isinstance(part, nn.Conv2d))
    second += config.image_tokens * (_weights(mixing) + convolutions)
    total = Pass(second).flops(trains) + Pass(float(vector)).flops(contrasts)
    return total + Pass(first).flops(trains) - (2 * first if trains and not adapts else 0)


def _weights(module: nn.Module) -> float:
    return float(sum(part.weight.numel() for part in module.modules() if isinstance(part, nn.Linear)))
