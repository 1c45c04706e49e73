"""How many parameters a connector has, at published sizes and without memory for them; and the table in docs/vlm.md."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from bitgen.vlm.connectors import KINDS, Connector, ConnectorConfig, build_connector

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "vlm.md"
# CLIP ViT-L/14 at 336 pixels into a language model of 7B.
LARGE = dict(vision_width=1024, language_width=4096, tokens=576, layers=1, frames=1, language_heads=32)
BASE = dict(vision_width=768, tokens=1369, layers=12, frames=2)  # DINOv2-base at 518 pixels, an image and a prior


def built(kind: str, options: dict[str, Any] | None = None, **sizes: int) -> Connector:
    with torch.device("meta"):
        return build_connector(ConnectorConfig(kind=kind, options=options or {}, **(LARGE | sizes)))


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("kind", "options", "sizes", "count"),
    [
        ("linear", {}, {}, 4_198_400),
        ("mlp", {}, {}, 20_979_712),
        ("resampler", {}, {}, 205_840_384),
        ("c_abstractor", {}, {}, 37_398_016),
        ("c_abstractor", {}, dict(tokens=256), 37_070_336),
        ("c_abstractor", {}, dict(tokens=1369, vision_width=768), 38_254_784),
        ("perceiver", {}, {}, 63_019_008 + 4_198_400),
        ("perceiver", {"depth": 2}, {}, 21_051_392 + 4_198_400),
        ("perceiver", {}, dict(frames=8), 63_019_008 + 8 * 1024 + 4_198_400),
        ("pixel_shuffle", {}, {}, 4 * 1024 * 4096),
    ],
)
def test_counts_at_1024_and_4096(kind: str, options: dict[str, Any], sizes: dict[str, int], count: int) -> None:
    assert parameters(built(kind, options, **sizes)) == count


def test_counts_of_the_parts_of_a_c_abstractor() -> None:
    connector = built("c_abstractor")
    stages = [parameters(connector.get_submodule(name)) for name in ("stage1", "stage2")]
    assert sum(stages) == 15_828_480
    assert parameters(connector.get_submodule("readout")) == 20_979_712
    assert connector.get_parameter("pos_emb").numel() == 589_824


@pytest.mark.parametrize(
    ("language_width", "language_heads", "count"),
    [
        (4096, 32, 61_773_111),  # LLaMA-2-7B
        (3072, 24, 38_962_487),  # Llama-3.2-3B
        (2560, 32, 29_916_471),  # Qwen3-4B
        (2304, 8, 25_983_287),  # Gemma-2-2b
        (2048, 16, 22_443_319),  # Qwen2.5-3B
        (576, 9, 9_719_351),  # SmolLM2-135M, whose 9 heads do not divide 768
        (128, 4, 8_427_319),
    ],
)
def test_counts_of_tac(language_width: int, language_heads: int, count: int) -> None:
    tac = built("tac", language_width=language_width, language_heads=language_heads, **BASE)
    assert parameters(tac) == count


def test_counts_of_the_parts_of_tac() -> None:
    tac = built("tac", **BASE)
    counts = {name: parameters(module) for name, module in tac.named_children()}
    assert counts["layer_fusion"] == 310 and tac.get_parameter("prior_bias").numel() == 1
    assert [counts[f"{name}_attention"] for name in ("current", "prior", "cross")] == [2_363_904] * 3
    assert [counts[f"norm{number}"] for number in (1, 2, 3, 4)] == [1_536] * 4
    assert counts["mlp"] == 1_181_184 and counts["project"] == 53_493_760


def row(kind: str) -> str:
    connector = built(kind)
    about = KINDS[kind]
    return f"| `{kind}` | {about.what} | {connector.tokens(1)} | {parameters(connector):,} | {about.source} |"


@pytest.mark.parametrize("kind", KINDS)
def test_the_document_has_the_row_of_a_kind(kind: str) -> None:
    assert row(kind) in DOCUMENT.read_text(encoding="utf-8").splitlines()


def test_the_document_names_every_option_with_its_default() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for kind in KINDS:
        found = re.search(rf"^\| `{kind}` \| ((?:`\w+`: .*)|none) \|$", text, re.MULTILINE)
        assert found, kind
        written = dict(re.findall(r"`(\w+)`: (\S+?)(?:,|$| \()", found[1]))
        options = built(kind).config.options
        assert written == {name: str(value).lower() for name, value in options.items()}, kind
