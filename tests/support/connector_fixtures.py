"""Reads connector fixtures: weights under an original's names, its inputs, what it computed, and its arguments.

A safetensors file holds ``state.<name>`` and ``io.<name>``; its metadata, all text, holds the original constructor's
arguments. Which original it is follows from the names of the arguments.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import nn

from bitgen.vlm.connectors import ConnectorConfig, build_connector
from bitgen.vlm.connectors.perceiver import PerceiverResampler
from bitgen.vlm.connectors.tac import similarity_weight

Tensors = dict[str, torch.Tensor]


class Fixture(NamedTuple):
    arguments: dict[str, Any]
    state: Tensors
    io: Tensors


def read(path: Path) -> tuple[dict[str, Any], Tensors]:
    """Metadata as Python values, and all tensors."""
    with safe_open(path, "pt") as file:
        metadata = {name: _value(text) for name, text in (file.metadata() or {}).items()}
        return metadata, {name: file.get_tensor(name) for name in file.keys()}


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _below(tensors: Tensors, prefix: str) -> Tensors:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def compare(path: Path) -> dict[str, float]:
    """How far each output of a file is from ours (see ``_difference``); nothing for a splice, which has no parameters.

    Raises:
        LookupError: nobody knows what the file is of, or what one of its outputs is.
    """
    metadata, tensors = read(path)
    if "image_token" in metadata:  # a splice of features into text has no parameters and is tested elsewhere
        return {}
    original = next((o for o in ORIGINALS if o.mark in metadata), None)
    if original is None:
        raise LookupError(f"{path.name} is of no known connector: {metadata}")
    fixture = Fixture(metadata, _below(tensors, "state."), _below(tensors, "io."))
    found = original.compute(fixture)
    inputs = {name for name in fixture.io if name.startswith(original.inputs)}
    unknown = sorted(set(fixture.io) - inputs - set(found))
    if unknown or not set(fixture.io) & set(found):
        raise LookupError(f"{path.name} has the outputs {unknown}, which nobody computes: {metadata}")
    compared = found.keys() & fixture.io.keys()
    for name in compared:
        assert found[name].shape == fixture.io[name].shape, f"{path.name}, {name}: {metadata}"
    return {name: _difference(found[name], fixture.io[name]) for name in sorted(compared)}


def _difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, in units of the largest value where that is above 1; NaN stays NaN."""
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=1)).item()


def renamed(state: Tensors, rules: list[tuple[str, str]]) -> Tensors:
    """Each name rewritten by every regular expression in turn."""
    renamed_state = {}
    for name, value in state.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        renamed_state[name] = value
    assert len(renamed_state) == len(state)
    return renamed_state


def loaded(module: nn.Module, state: Tensors, rules: list[tuple[str, str]]) -> nn.Module:
    """The module in evaluation mode with the original's weights, none missing and none left over."""
    module.load_state_dict(renamed(state, rules), strict=True)
    return module.eval()


def _config(kind: str, options: dict[str, Any], **sizes: int) -> ConnectorConfig:
    defaults = {"layers": 1, "frames": 1, "language_heads": 1}
    return ConnectorConfig(kind=kind, options=options, **(defaults | sizes))


TAC_NAMES = [
    (r"^LFE\.", "layer_fusion."),
    (r"^LFE_prior_bias", "prior_bias"),
    (r"^cur_self_attention", "current_attention"),
    (r"^prior_self_attention", "prior_attention"),
    (r"^cros_attention", "cross_attention"),
    (r"^mlp_attn", "mlp"),
    (r"^mlp_final", "project"),
]


@torch.no_grad()
def _tac(fixture: Fixture) -> Tensors:
    arguments, io = fixture.arguments, fixture.io
    current, prior = io["current"], io["prior"]
    config = _config(
        "tac",
        {"heads": arguments["num_attention_heads"]},
        vision_width=arguments["mm_hidden_size"],
        language_width=arguments["hidden_size"],
        tokens=current.shape[2],
        layers=arguments.get("layers", 12),
        frames=2,
    )
    tac = loaded(build_connector(config), fixture.state, TAC_NAMES)
    fused = [tac.fuse_layers(image) for image in (current, prior)]
    return {
        "lfe_current": fused[0],
        "lfe_prior": fused[1],
        "cos_weight": similarity_weight(*fused),
        "output": tac(torch.stack([current, prior], dim=1)),
        "output_prior_is_current": tac(current[:, None]),
    }


def _block_number(match: re.Match[str]) -> str:
    return f"stage{int(match[1]) // 2 + 1}.{int(match[2]) - 1}."


C_ABSTRACTOR_NAMES: list[tuple[str, Any]] = [
    (r"^net\.(\d+)\.b(\d+)\.", _block_number),
    (r"\.bn\.", ".norm."),
    (r"\.downsample\.", ".shortcut."),
]


@torch.no_grad()
def _c_abstractor(fixture: Fixture) -> Tensors:
    given = fixture.arguments
    options = {
        "queries": given["num_query_tokens"],
        "width": given["hidden_size"],
        "depth": given["depth"],
        "mlp_depth": given["mlp_depth"],
        "pos_emb": given.get("pos_emb", False),
        "eos_tokens": given.get("num_eos_tokens", 1),
        "prenorm": given.get("prenorm", False),
    }
    pictures = fixture.io["input"]
    config = _config(
        "c_abstractor",
        options,
        vision_width=given["encoder_hidden_size"],
        language_width=given["output_hidden_size"],
        tokens=given.get("num_input_tokens", pictures.shape[1]),
    )
    module = loaded(build_connector(config), fixture.state, C_ABSTRACTOR_NAMES)
    return {"output": module(pictures[:, None, None])}


PERCEIVER_NAMES = [
    (r"^layers\.(\d+)\.0\.", r"blocks.\1.attention."),
    (r"^layers\.(\d+)\.1\.", r"blocks.\1.feed_forward."),
    (r"^frame_embs", "frame_embeddings"),
    (r"^media_time_embs", "media_embeddings"),
]


@torch.no_grad()
def _perceiver(fixture: Fixture) -> Tensors:
    given = fixture.arguments
    module = PerceiverResampler(
        given["dim"],
        latents=given.get("num_latents", 64),
        depth=given.get("depth", 6),
        heads=given.get("heads", 8),
        head_width=given.get("dim_head", 64),
        frames=given.get("max_num_frames"),
        media=given.get("max_num_media"),
        expansion=given.get("ff_mult", 4),
    )
    return {"output": loaded(module, fixture.state, PERCEIVER_NAMES)(fixture.io["input"])}


class Original(NamedTuple):
    mark: str  # an argument that no other original has
    inputs: tuple[str, ...]  # what the names of inputs start with
    compute: Callable[[Fixture], Tensors]


ORIGINALS = [
    Original("mm_hidden_size", ("current", "prior"), _tac),
    Original("encoder_hidden_size", ("input",), _c_abstractor),
    Original("dim", ("input",), _perceiver),
]
