"""The report on adapters: its tables, pictures and JSON on a tiny model, and what it refuses."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, LlavaConfig

from bitgen.commands import lora_report
from bitgen.vlm.adapter_config import AdapterConfig
from bitgen.vlm.adapter_folder import Base
from bitgen.vlm.adapters import attach, save_adapter
from bitgen.vlm.spectra import effective_rank, energy_kept
from support.language_models import tiny_lm


@pytest.fixture
def model(tmp_path):
    tiny_lm().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def adapter(folder, kind: str = "lora"):
    lm = tiny_lm()
    attach(lm, AdapterConfig(kind, 4, 8.0, 0.0, targets="q_proj,down_proj"))
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    save_adapter(lm, folder, Base("its base"))
    return folder


def run(*flags: object) -> None:
    lora_report.main([str(flag) for flag in flags])


def test_a_configuration_alone_is_counted(model, capsys) -> None:
    run("--model", model / "config.json", "--targets", "q_proj,v_proj", "--rank", 2, 8, "--kind", "dora")
    said = capsys.readouterr().out
    # Two layers of q [32, 32] and v [16, 32]: r (64 + 48) and the magnitudes 32 + 16.
    rows = [line.split() for line in said.splitlines()]
    assert [row[1] for row in rows if row[:1] in (["2"], ["8"])] == [f"{2 * (r * 112 + 48):,}" for r in (2, 8)]
    assert "DoRA on a base of" in said and "effective rank" not in said


def test_weights_and_adapter_are_looked_at(model, tmp_path, capsys) -> None:
    folder = adapter(tmp_path / "adapter")
    run("--model", model, "--adapter", folder, "--rank", 2, 8, "--output", tmp_path / "out", "--device", "cpu")
    said = capsys.readouterr().out
    assert "Weights of the base" in said and "What the adapter adds, 2 B A, r 4" in said
    figures = json.loads((tmp_path / "out" / "report.json").read_text())
    weights = load_file(model / "model.safetensors")
    values = [torch.linalg.svdvals(weights[f"model.layers.{n}.self_attn.q_proj.weight"]) for n in (0, 1)]
    found = next(each for each in figures["base_spectra"] if each["name"] == "q_proj")
    assert found["effective_rank"] == pytest.approx(sum(map(effective_rank, values)) / 2, rel=1e-5)
    assert found["kept"]["2"] == pytest.approx(sum(energy_kept(each, 2) for each in values) / 2, rel=1e-5)
    assert found["gaussian"]["kept"]["8"] < 1
    factors = load_file(folder / "adapter_model.safetensors")
    names = [f"base_model.model.model.layers.{n}.mlp.down_proj.lora_{{}}.weight" for n in (0, 1)]
    whole = [torch.linalg.svdvals(2 * factors[name.format("B")] @ factors[name.format("A")]) for name in names]
    found = next(each for each in figures["adapter_spectra"] if each["name"] == "down_proj")
    assert found["effective_rank"] == pytest.approx(sum(map(effective_rank, whole)) / 2, rel=1e-4)
    assert 1 < found["effective_rank"] <= 4 and found["kept"].keys() == {"1", "2"}
    for name in ("base_spectra", "adapter_spectra"):
        with Image.open(tmp_path / "out" / f"{name}.png") as picture:
            assert picture.format == "PNG" and min(picture.size) > 300


@pytest.mark.parametrize("layout", ["language_model.model.", "model.language_model."])
def test_of_a_model_with_several_parts_it_is_the_language_model(model, tmp_path, layout: str) -> None:
    """As LLaVA's files name its weights, and as transformers 5 names them in the model."""
    text = AutoConfig.from_pretrained(model)
    vision = AutoConfig.for_model("clip_vision_model", hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    LlavaConfig(vision_config=vision, text_config=text).save_pretrained(tmp_path / "llava")
    weights = load_file(model / "model.safetensors")
    inside = {name.replace("model.", layout, 1): tensor for name, tensor in weights.items()}
    save_file(inside, tmp_path / "llava" / "model.safetensors")
    for name in ("model", "llava"):
        run("--model", tmp_path / name, "--output", tmp_path / "out" / name, "--device", "cpu")
    reports = [json.loads((tmp_path / "out" / name / "report.json").read_text()) for name in ("model", "llava")]
    assert reports[0]["base_spectra"] and reports[0]["base_spectra"] == reports[1]["base_spectra"]


def refused(capsys, *flags: object) -> str:
    with pytest.raises(SystemExit) as stopped:
        run(*flags)
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and said.count("error: ") == 1 and "Traceback" not in said
    return said


def test_what_cannot_be_reported_is_one_message(model, tmp_path, capsys) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    assert "it is there already" in refused(capsys, "--model", model, "--output", tmp_path / "full")
    too_long = refused(capsys, "--model", model, "--output", tmp_path / ("x" * 300))
    assert "cannot write there (File name too long)" in too_long
    assert "--rank 0" in refused(capsys, "--model", model, "--rank", 0)
    assert "no linear layer named 'query'" in refused(capsys, "--model", model, "--targets", "query")
    assert "no layer 7" in refused(capsys, "--model", model, "--layers", 7)
    assert "cannot read the adapter" in refused(capsys, "--model", model, "--adapter", tmp_path / "nowhere")
    other = adapter(tmp_path / "adapter")
    tiny_lm("phi3").save_pretrained(tmp_path / "phi3")
    said = refused(capsys, "--model", tmp_path / "phi3", "--adapter", other, "--spectra", "False")
    assert "it changes model.layers.0.self_attn.q_proj, which" in said
    config = json.loads((model / "config.json").read_text())
    wide = shutil.copytree(model, tmp_path / "wide")
    (wide / "config.json").write_text(json.dumps(config | {"intermediate_size": 2 * config["intermediate_size"]}))
    said = refused(capsys, "--model", wide, "--adapter", other)  # whose layers have the same names
    assert "it was trained on another model" in said
    (model / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "x"}}))
    assert "quantised" in refused(capsys, "--model", model)
    run("--model", model, "--spectra", "False")
