"""Names and shapes of the weights of the connectors' originals, by their constructors' arguments; random weights."""

from __future__ import annotations

from typing import Any

import torch

Shapes = dict[str, tuple[int, ...]]


def _linear(name: str, width: int, output: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (output, width)} | ({f"{name}.bias": (output,)} if bias else {})


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _conv(name: str, width: int, output: int, kernel: int = 1, bias: bool = False) -> Shapes:
    return {f"{name}.weight": (output, width, kernel, kernel)} | ({f"{name}.bias": (output,)} if bias else {})


def _excite(name: str, width: int, squeezed: int) -> Shapes:
    return _conv(f"{name}.fc1", width, squeezed, bias=True) | _conv(f"{name}.fc2", squeezed, width, bias=True)


def tac(mm_hidden_size: int, hidden_size: int, layers: int, **_: Any) -> Shapes:
    width, shapes = mm_hidden_size, {"LFE_prior_bias": ()}
    for step, (count, fused) in enumerate(((layers, layers // 2), (layers // 2, layers // 4), (layers // 4, 1))):
        shapes |= _excite(f"LFE.{2 * step}", count, fused) | _conv(f"LFE.{2 * step + 1}", count, fused)
    for name in ("cur_self_attention", "prior_self_attention", "cros_attention"):
        shapes |= {f"{name}.in_proj_weight": (3 * width, width), f"{name}.in_proj_bias": (3 * width,)}
        shapes |= {f"{name}.bias_k": (1, 1, width), f"{name}.bias_v": (1, 1, width)}
        shapes |= _linear(f"{name}.out_proj", width, width)
    for number in (1, 2, 3, 4):
        shapes |= _norm(f"norm{number}", width)
    shapes |= _linear("mlp_attn.0", width, width) | _linear("mlp_attn.3", width, width)
    for step in (0, 2, 4, 6):
        shapes |= _linear(f"mlp_final.{step}", width if step == 0 else hidden_size, hidden_size)
    return shapes


def c_abstractor(
    encoder_hidden_size: int,
    hidden_size: int,
    output_hidden_size: int,
    depth: int,
    mlp_depth: int,
    num_input_tokens: int,
    pos_emb: bool,
    num_eos_tokens: int,
    prenorm: bool,
    **_: Any,
) -> Shapes:
    shapes: Shapes = {}
    width = encoder_hidden_size
    for stage in (0, 2):
        for number in range(1, depth + 1):
            name = f"net.{stage}.b{number}"
            shapes |= _excite(f"{name}.se", hidden_size, round(width / 4))
            for part, (inner, kernel) in {"conv1": (width, 1), "conv2": (1, 3), "conv3": (hidden_size, 1)}.items():
                shapes |= _conv(f"{name}.{part}.conv", inner, hidden_size, kernel)
                shapes |= _norm(f"{name}.{part}.bn", hidden_size)
            if width != hidden_size:
                shapes |= _conv(f"{name}.downsample.conv", width, hidden_size)
                shapes |= _norm(f"{name}.downsample.bn", hidden_size)
            width = hidden_size
    for number in range(mlp_depth):
        shapes |= _linear(f"readout.{2 * number}", output_hidden_size if number else width, output_hidden_size)
    shapes |= {"pos_emb": (1, num_input_tokens, encoder_hidden_size)} if pos_emb else {}
    shapes |= {"eos_tokens": (1, num_eos_tokens, output_hidden_size)} if num_eos_tokens else {}
    return shapes | (_norm("prenorm", encoder_hidden_size) if prenorm else {})


def perceiver(
    dim: int,
    depth: int,
    dim_head: int,
    heads: int,
    num_latents: int,
    max_num_frames: int | None = None,
    max_num_media: int | None = None,
    ff_mult: int = 4,
    **_: Any,
) -> Shapes:
    shapes: Shapes = {"latents": (num_latents, dim)} | _norm("norm", dim)
    shapes |= {"frame_embs": (max_num_frames, dim)} if max_num_frames else {}
    shapes |= {"media_time_embs": (max_num_media, 1, dim)} if max_num_media else {}
    for number in range(depth):
        name, inner = f"layers.{number}.0", dim_head * heads
        shapes |= _norm(f"{name}.norm_media", dim) | _norm(f"{name}.norm_latents", dim)
        shapes |= _linear(f"{name}.to_q", dim, inner, bias=False) | _linear(f"{name}.to_kv", dim, 2 * inner, bias=False)
        shapes |= _linear(f"{name}.to_out", inner, dim, bias=False)
        name = f"layers.{number}.1"
        shapes |= _norm(f"{name}.0", dim) | _linear(f"{name}.1", dim, ff_mult * dim, bias=False)
        shapes |= _linear(f"{name}.3", ff_mult * dim, dim, bias=False)
    return shapes


def random_state(shapes: Shapes, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Weights of the scale of a trained module; gains around 1, so that a missing or a swapped one shows."""
    state = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=generator)
        if len(shape) < 2:
            state[name] = 0.3 * values + (1 if name.endswith("weight") else 0)
        else:
            state[name] = values / max(1, values[0].numel()) ** 0.5
    return state
