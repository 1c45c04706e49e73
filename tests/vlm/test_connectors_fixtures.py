"""Connectors against the numbers of the public code that they come from.

Every file of the folder ``CONNECTOR_FIXTURES`` (default: ../shared/data/connector_fixtures) is read, of whatever sizes
and options. Further files are made here from plain reference implementations, which must themselves give the originals'
numbers.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from support import connector_references as references
from support import connector_shapes as shapes
from support.connector_fixtures import compare, read

REPOSITORY = Path(__file__).resolve().parents[2]
DEFAULT = REPOSITORY.parent / "shared" / "data" / "connector_fixtures"
FOLDER = Path(os.environ.get("CONNECTOR_FIXTURES", DEFAULT))
# Of the largest value of an output, where that is above 1. Both sides are float32.
TOLERANCE = 1e-6

# The JSON file beside them is of a metric, not of a connector.
FILES = sorted(FOLDER.glob("*.safetensors")) if FOLDER.is_dir() else []


def agrees(differences: dict[str, float]) -> bool:
    """Something was compared, and no difference is above the tolerance, or NaN."""
    return bool(differences) and all(difference <= TOLERANCE for difference in differences.values())


@pytest.mark.realdata
def test_the_folder_of_fixtures_is_there() -> None:
    """A folder that was named must hold some; the default one need not be at hand."""
    if "CONNECTOR_FIXTURES" not in os.environ and not FOLDER.is_dir():
        pytest.skip("the fixtures are not here: ../shared/data/connector_fixtures, beside the repository")
    assert FILES, f"{FOLDER} holds no safetensors file"


@pytest.mark.realdata
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_equals_the_original(path: Path) -> None:
    differences = compare(path)
    if not differences:
        pytest.skip("a splice of features into text: no connector")
    assert agrees(differences), f"{differences}, {read(path)[0]}"


TAC = dict(mm_hidden_size=32, hidden_size=48, num_attention_heads=4, layers=12)
C_ABSTRACTOR = dict(
    encoder_hidden_size=32,
    hidden_size=48,
    output_hidden_size=64,
    depth=2,
    mlp_depth=2,
    num_query_tokens=9,
    num_input_tokens=36,
    pos_emb=True,
    num_eos_tokens=0,
    prenorm=False,
)
PERCEIVER = dict(dim=32, depth=2, dim_head=8, heads=4, num_latents=5)


def _double(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.double() for name, value in state.items()}


def reference(arguments: dict[str, Any], state: dict[str, torch.Tensor], io: dict[str, torch.Tensor]) -> dict[str, Any]:
    """What the plain implementations give for an original's arguments, weights and inputs."""
    state, io = _double(state), _double(io)
    if "mm_hidden_size" in arguments:
        heads = arguments["num_attention_heads"]
        found = references.tac(state, io["current"], io["prior"], heads)
        same = references.tac(state, io["current"], io["current"], heads)
        found["output_prior_is_current"] = same["output"]
    elif "encoder_hidden_size" in arguments:
        sizes = (arguments["num_query_tokens"], arguments["depth"], arguments["mlp_depth"])
        found = {"output": references.c_abstractor(state, io["input"], *sizes)}
    else:
        found = {"output": references.perceiver(state, io["input"], arguments["depth"], arguments["heads"])}
    return {name: value.float() for name, value in found.items()}


@pytest.mark.realdata
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_references_equal_the_original(path: Path) -> None:
    """And so what they make below is what the originals would have made."""
    arguments, tensors = read(path)
    if "image_token" in arguments:
        pytest.skip("a splice of features into text: no connector")
    parts = [
        {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        for prefix in ("state.", "io.")
    ]
    found = reference(arguments, *parts)
    assert found.keys() & parts[1].keys()
    for name in found.keys() & parts[1].keys():
        torch.testing.assert_close(found[name], parts[1][name], atol=2e-6, rtol=2e-6)


MADE = {
    "tac_wide": (TAC | dict(mm_hidden_size=48, hidden_size=20, num_attention_heads=3), [(3, 12, 9, 48)] * 2),
    "tac_24_layers": (TAC | dict(layers=24, num_attention_heads=8), [(2, 24, 5, 32)] * 2),
    "tac_27_layers": (TAC | dict(layers=27, num_attention_heads=1), [(1, 27, 4, 32)] * 2),
    "tac_4_layers": (TAC | dict(layers=4, num_attention_heads=2), [(2, 4, 4, 32)] * 2),
    "c_abstractor_plain": (C_ABSTRACTOR | dict(pos_emb=False), [(2, 36, 32)]),
    "c_abstractor_all": (
        C_ABSTRACTOR | dict(num_eos_tokens=3, prenorm=True, depth=3, mlp_depth=3, hidden_size=40),
        [(2, 36, 32)],
    ),
    "c_abstractor_uneven": (
        C_ABSTRACTOR | dict(num_input_tokens=49, num_query_tokens=16, hidden_size=32, depth=1, mlp_depth=1),
        [(1, 49, 32)],
    ),
    "c_abstractor_upwards": (C_ABSTRACTOR | dict(num_input_tokens=9, num_query_tokens=25), [(2, 9, 32)]),
    "c_abstractor_pooling_alone": (C_ABSTRACTOR | dict(depth=0, num_eos_tokens=1), [(2, 36, 32)]),
    "perceiver_deep": (PERCEIVER | dict(depth=6, dim_head=16, heads=3, num_latents=7), [(2, 1, 1, 10, 32)]),
    "perceiver_frames": (PERCEIVER | dict(max_num_frames=4), [(2, 1, 3, 10, 32)]),
    "perceiver_media": (PERCEIVER | dict(max_num_media=3, max_num_frames=2), [(2, 3, 2, 6, 32)]),
    "perceiver_frames_without_table": (PERCEIVER | dict(max_num_frames=None, dim=24, ff_mult=2), [(1, 2, 4, 3, 24)]),
}


def make(folder: Path, name: str) -> Path:
    """A fixture file of a name in ``MADE``, with a reference's numbers."""
    arguments, sizes = MADE[name]
    generator = torch.Generator().manual_seed(sum(name.encode()))
    family = next(family for family in ("tac", "c_abstractor", "perceiver") if name.startswith(family))
    state = shapes.random_state(getattr(shapes, family)(**arguments), generator)
    inputs = {"current": sizes[0], "prior": sizes[1]} if family == "tac" else {"input": sizes[0]}
    io = {key: torch.randn(size, generator=generator) for key, size in inputs.items()}
    tensors = {f"io.{key}": value for key, value in (io | reference(arguments, state, io)).items()}
    tensors |= {f"state.{key}": value for key, value in state.items()}
    path = folder / f"{name}.safetensors"
    save_file(tensors, path, {key: str(value) for key, value in arguments.items()} | {"seed": "1", "eval": "True"})
    return path


@pytest.mark.parametrize("name", MADE)
def test_equals_a_reference_at_other_sizes_and_options(name: str, tmp_path: Path) -> None:
    differences = compare(make(tmp_path, name))
    assert agrees(differences), differences


def test_the_c_abstractor_equals_one_built_from_timm(tmp_path: Path) -> None:
    """Honeybee builds its stages from timm's RegNet, and its first norm is timm's, whose epsilon is not torch's."""
    timm_layers, regnet = pytest.importorskip("timm.layers"), pytest.importorskip("timm.models.regnet")
    arguments, tensors = read(make(tmp_path, "c_abstractor_all"))
    state = {name.removeprefix("state."): value for name, value in tensors.items() if name.startswith("state.")}
    width, inner, output = (arguments[f"{name}hidden_size"] for name in ("encoder_", "", "output_"))
    stage = dict(stride=1, dilation=1, act_layer=torch.nn.SiLU, norm_layer=timm_layers.LayerNorm2d)
    depth, mlp_depth = arguments["depth"], arguments["mlp_depth"]
    net = torch.nn.Sequential(
        regnet.RegStage(depth, width, inner, **stage),
        torch.nn.AdaptiveAvgPool2d(3),
        regnet.RegStage(depth, inner, inner, **stage),
    )
    readout = torch.nn.Sequential(torch.nn.Linear(inner, output))
    for _ in range(mlp_depth - 1):
        readout.extend([torch.nn.SiLU(), torch.nn.Linear(output, output)])
    module = torch.nn.ModuleDict({"net": net, "readout": readout, "prenorm": timm_layers.LayerNorm(width)})
    tables = {name: state.pop(name) for name in ("pos_emb", "eos_tokens")}
    module.load_state_dict(state, strict=True)
    with torch.no_grad():
        pictures = module["prenorm"](tensors["io.input"]) + tables["pos_emb"]
        hidden = net(pictures.transpose(1, 2).unflatten(2, (6, 6)))
        tokens = readout(hidden.flatten(2).transpose(1, 2))
    expected = torch.cat([tokens, tables["eos_tokens"].expand(len(tokens), -1, -1)], dim=1)
    torch.testing.assert_close(tensors["io.output"], expected, atol=2e-6, rtol=2e-6)


def test_a_changed_weight_is_seen(tmp_path: Path) -> None:
    path = make(tmp_path, "perceiver_frames")
    metadata, tensors = read(path)
    tensors["state.frame_embs"] = tensors["state.frame_embs"].flip(0).contiguous()
    save_file(tensors, path, {key: str(value) for key, value in metadata.items()})
    assert max(compare(path).values()) > 1e-3


def test_a_file_of_an_unknown_connector_is_no_success(tmp_path: Path) -> None:
    path = tmp_path / "strange.safetensors"
    save_file({"io.input": torch.zeros(1)}, path, {"num_deformable_points": "4"})
    with pytest.raises(LookupError, match="num_deformable_points"):
        compare(path)


def test_an_output_that_nobody_computes_is_no_success(tmp_path: Path) -> None:
    path = make(tmp_path, "perceiver_deep")
    metadata, tensors = read(path)
    save_file(tensors | {"io.gate": torch.zeros(1)}, path, {key: str(value) for key, value in metadata.items()})
    with pytest.raises(LookupError, match="gate"):
        compare(path)
