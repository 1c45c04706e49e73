"""The connectors' equations once more, in plain loops and einsums over an original's weights, in float64.

Written from the papers and descriptions of the originals, and held against their own numbers in
``tests/vlm/test_connectors_fixtures.py``. They share no code with ``bitgen.vlm.connectors``, and no module of torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

Tensors = dict[str, torch.Tensor]
Activation = Callable[[torch.Tensor], torch.Tensor]


def _linear(x: torch.Tensor, state: Tensors, name: str) -> torch.Tensor:
    y = torch.einsum("...i,oi->...o", x, state[f"{name}.weight"].flatten(1))
    return y + state[f"{name}.bias"] if f"{name}.bias" in state else y


def _norm(x: torch.Tensor, state: Tensors, name: str, eps: float = 1e-5) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    variance = (centred**2).mean(-1, keepdim=True)
    return centred / (variance + eps).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]


def _gelu(x: torch.Tensor) -> torch.Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def _sigmoid(x: torch.Tensor) -> torch.Tensor:
    return 1 / (1 + torch.exp(-x))


def _silu(x: torch.Tensor) -> torch.Tensor:
    return x * _sigmoid(x)


def _attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int) -> torch.Tensor:
    """Each head by itself: ``[..., Q, D], [..., S, D], [..., S, D] -> [..., Q, D]``."""
    parts = []
    for q, k, v in zip(*(x.chunk(heads, dim=-1) for x in (query, key, value)), strict=True):
        scores = torch.einsum("...qd,...sd->...qs", q, k) / math.sqrt(q.shape[-1])
        weights = torch.exp(scores - scores.amax(-1, keepdim=True))
        parts.append(torch.einsum("...qs,...sd->...qd", weights / weights.sum(-1, keepdim=True), v))
    return torch.cat(parts, dim=-1)


def _excite(x: torch.Tensor, state: Tensors, name: str, act: Activation) -> torch.Tensor:
    """Squeeze and excitation of ``[B, ..., channels]`` over everything between."""
    mean = x.flatten(1, -2).mean(1)
    scale = _sigmoid(_linear(act(_linear(mean, state, f"{name}.fc1")), state, f"{name}.fc2"))
    return x * scale.reshape(len(x), *[1] * (x.ndim - 2), -1)


def _biased_attention(query: torch.Tensor, seen: torch.Tensor, state: Tensors, name: str, heads: int) -> torch.Tensor:
    """Multi-head attention with one learned key and value more."""
    weights, biases = state[f"{name}.in_proj_weight"].chunk(3), state[f"{name}.in_proj_bias"].chunk(3)
    q, k, v = (
        torch.einsum("bni,oi->bno", x, w) + b for x, w, b in zip((query, seen, seen), weights, biases, strict=True)
    )
    k, v = (
        torch.cat([x, state[f"{name}.{extra}"].expand(len(x), 1, -1)], dim=1)
        for x, extra in ((k, "bias_k"), (v, "bias_v"))
    )
    return _linear(_attention(q, k, v, heads), state, f"{name}.out_proj")


def tac(state: Tensors, current: torch.Tensor, prior: torch.Tensor, heads: int) -> Tensors:
    """Libra's connector: ``[B, L, N, C]`` twice -> its intermediates and the output ``[B, N, H]``."""
    fused = []
    for image in (current, prior):
        x = image.movedim(1, -1)  # (B, N, C, L): the layers are channels
        for step in (0, 2, 4):
            x = _linear(_excite(x, state, f"LFE.{step}", _gelu), state, f"LFE.{step + 1}")
        fused.append(x[..., 0])
    now, then = fused
    weights = []
    for a, b in zip(now.flatten(1), then.flatten(1), strict=True):
        cosine = (a * b).sum() / (a.norm() * b.norm())
        weights.append(((cosine + 1) / 2) ** 8)
    weight = torch.stack(weights).reshape(-1, 1, 1)
    marked = then + weight * state["LFE_prior_bias"]
    seen = _norm(now + _biased_attention(now, now, state, "cur_self_attention", heads), state, "norm1")
    before = _norm(marked + _biased_attention(marked, marked, state, "prior_self_attention", heads), state, "norm2")
    both = _norm(seen + _biased_attention(seen, before, state, "cros_attention", heads), state, "norm3")
    mixed = _linear(_gelu(_linear(both, state, "mlp_attn.0")), state, "mlp_attn.3")
    x = _linear(_norm(now + mixed, state, "norm4"), state, "mlp_final.0")
    for step in (2, 4, 6):
        x = _linear(_gelu(x), state, f"mlp_final.{step}")
    return {"lfe_current": now, "lfe_prior": then, "cos_weight": weight, "output": x}


def _depthwise(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """A 3 x 3 convolution of ``[B, h, w, D]``, each channel by itself, with zeros around."""
    padded = x.new_zeros(len(x), x.shape[1] + 2, x.shape[2] + 2, x.shape[3])
    padded[:, 1:-1, 1:-1] = x
    y = torch.zeros_like(x)
    for i in range(3):
        for j in range(3):
            y += padded[:, i : i + x.shape[1], j : j + x.shape[2]] * weight[:, 0, i, j]
    return y


def _block(x: torch.Tensor, state: Tensors, name: str) -> torch.Tensor:
    y = _silu(_norm(_linear(x, state, f"{name}.conv1.conv"), state, f"{name}.conv1.bn"))
    y = _silu(_norm(_depthwise(y, state[f"{name}.conv2.conv.weight"]), state, f"{name}.conv2.bn"))
    y = _excite(y, state, f"{name}.se", _silu)
    y = _norm(_linear(y, state, f"{name}.conv3.conv"), state, f"{name}.conv3.bn")
    if f"{name}.downsample.conv.weight" in state:
        x = _norm(_linear(x, state, f"{name}.downsample.conv"), state, f"{name}.downsample.bn")
    return _silu(x + y)


def _pool(x: torch.Tensor, side: int) -> torch.Tensor:
    """Means over ``side`` x ``side`` windows that cover the map: from floor(i h / side) to ceil((i + 1) h / side)."""
    height = x.shape[1]
    spans = [(i * height // side, -(-(i + 1) * height // side)) for i in range(side)]
    return torch.stack([torch.stack([x[:, a:b, c:d].mean((1, 2)) for c, d in spans], dim=1) for a, b in spans], dim=1)


def c_abstractor(state: Tensors, pictures: torch.Tensor, queries: int, depth: int, mlp_depth: int) -> torch.Tensor:
    """Honeybee's: ``[B, N, D] -> [B, M, H]``; prenorm, positions and end tokens where the state has them."""
    x = _norm(pictures, state, "prenorm", eps=1e-6) if "prenorm.weight" in state else pictures
    x = x + state["pos_emb"] if "pos_emb" in state else x
    side = round(math.sqrt(x.shape[1]))
    x = x.reshape(len(x), side, side, -1)
    for stage in (0, 2):
        for number in range(1, depth + 1):
            x = _block(x, state, f"net.{stage}.b{number}")
        x = _pool(x, round(math.sqrt(queries))) if stage == 0 else x
    x = _linear(x.flatten(1, 2), state, "readout.0")
    for number in range(1, mlp_depth):
        x = _linear(_silu(x), state, f"readout.{2 * number}")
    return torch.cat([x, state["eos_tokens"].expand(len(x), -1, -1)], dim=1) if "eos_tokens" in state else x


def perceiver(state: Tensors, features: torch.Tensor, depth: int, heads: int) -> torch.Tensor:
    """Flamingo's resampler: ``[B, T, F, N, D] -> [B, T, Q, D]``, one medium after the other."""
    outputs = []
    for t in range(features.shape[1]):
        frames = []
        for f in range(features.shape[2]):
            frame = features[:, t, f]
            frames.append(frame + state["frame_embs"][f] if "frame_embs" in state else frame)
        media = torch.cat(frames, dim=1)
        media = media + state["media_time_embs"][t] if "media_time_embs" in state else media
        latents = state["latents"].expand(len(media), -1, -1)
        for number in range(depth):
            name = f"layers.{number}.0"
            own = _norm(latents, state, f"{name}.norm_latents")
            seen = torch.cat([_norm(media, state, f"{name}.norm_media"), own], dim=1)
            key, value = _linear(seen, state, f"{name}.to_kv").chunk(2, dim=-1)
            attended = _attention(_linear(own, state, f"{name}.to_q"), key, value, heads)
            latents = latents + _linear(attended, state, f"{name}.to_out")
            name = f"layers.{number}.1"
            inner = _gelu(_linear(_norm(latents, state, f"{name}.0"), state, f"{name}.1"))
            latents = latents + _linear(inner, state, f"{name}.3")
        outputs.append(_norm(latents, state, "norm"))
    return torch.stack(outputs, dim=1)
