"""The estimate of memory against the tensors of a run that was trained."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from bitgen.commands.train_vlm import main
from bitgen.config.vlm import stages_of
from bitgen.machine.ranks import Processes
from bitgen.run import build_trainer
from bitgen.tasks.vlm import Vlm
from bitgen.tasks.vlm_memory import Memory, empty_model, memory_by_part, memory_table, sharded
from support.language_models import config_of
from support.runs import REPOSITORY
from support.vlm import recipe


@pytest.mark.parametrize(
    "stage",
    [
        {"trains": "connector", "language_dtype": "float32"},
        {"trains": "connector,adapter", "adapter": "dora", "optimizer": "muon"},
        {"trains": "connector,vision", "vision_tuning": "full", "optimizer": "muon"},
        {"trains": "connector,vision", "vision_tuning": "lora", "connector": "resampler", "connector_queries": 4},
        {"trains": "language", "connector": "none"},
    ],
    ids=lambda stage: stage["trains"],
)
def test_it_is_what_a_trained_run_holds(tmp_path, stage: dict) -> None:
    config = stages_of(recipe(tmp_path, [{"name": "one", **stage}], max_steps=1, val_generated=0))[0].config
    model = empty_model(config)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    trainer = build_trainer(Vlm(), config, Processes(0, 1, torch.device("cpu")))
    assert trainer.fit()
    trainer.monitor.close()
    held: dict[str, Memory] = {}
    roles = trainer.objective.roles()
    vocabulary = trainer.objective.model.vocabulary
    for name, parameter in trainer.objective.named_parameters():
        weights = parameter.numel() * parameter.element_size()
        states = trainer.optimizer.state.get(parameter, {})
        moments = sum(t.numel() * t.element_size() for t in states.values() if torch.is_tensor(t) and t.ndim)
        before = held.get(roles[name].part, Memory(0, 0, 0))
        own = Memory(weights, weights if parameter.requires_grad else 0, moments)
        held[roles[name].part] = Memory(*(a + b for a, b in zip(before, own, strict=True)))
    assert vocabulary == config.language.language_vocab_size
    found = memory_by_part(config, model)
    assert found == held
    total = sum(part.total for part in held.values())
    whole = sum(part.weights for part in held.values())
    layers = [sum(p.numel() * 4 for p in layer.parameters()) for layer in trainer.objective.model.language.model.layers]
    assert sharded(found, model, 2) == total // 2 + whole - sum(layers) + max(layers)


def test_of_a_language_model_on_the_hub_the_configuration_is_fetched(tmp_path, monkeypatch) -> None:
    settings = config_of("llama_tied")
    AutoConfig.for_model(settings.pop("model_type"), **settings).save_pretrained(tmp_path / "lm")
    asked = []

    def fetched(name, revision, what, files):
        asked.append((name, "config.json" in files))
        return tmp_path / "lm"

    monkeypatch.setattr("bitgen.tasks.vlm_memory.hub_folder", fetched)
    stage = {"name": "one", "trains": "language", "connector": "none", "language_model": "some/model"}
    empty_model(stages_of(recipe(tmp_path, [stage]))[0].config)
    assert asked == [("some/model", True)]


@pytest.mark.parametrize(("quantization", "bits"), [("none", 16), ("8bit", 8), ("4bit", 4)])
def test_a_language_model_is_counted_from_its_configuration_alone(tmp_path, quantization: str, bits: int) -> None:
    settings = config_of("llama_tied")
    published = AutoConfig.for_model(settings.pop("model_type"), **settings)
    published.save_pretrained(tmp_path / "lm")
    assert not list((tmp_path / "lm").glob("*.safetensors"))
    stage = {"name": "one", "trains": "connector,adapter", "adapter": "lora", "adapter_rank": 4}
    changes = {"language_model": str(tmp_path / "lm"), "language_dtype": "bfloat16", "quantization": quantization}
    config = stages_of(recipe(tmp_path, [stage], **changes))[0].config
    found = memory_by_part(config, empty_model(config))
    lm = AutoModelForCausalLM.from_config(published)
    linears = [m for name, m in lm.named_modules() if isinstance(m, torch.nn.Linear) and name != "lm_head"]
    quantized = sum(linear.weight.numel() for linear in linears)
    others = sum(parameter.numel() for parameter in lm.parameters()) - quantized
    assert found["language"] == Memory(quantized * bits // 8 + 2 * others, 0, 0)
    adapters = 4 * sum(4 * (linear.in_features + linear.out_features) for linear in linears)
    assert found["adapter"] == Memory(adapters, adapters, 2 * adapters)
    row = next(line for line in memory_table("one", config, 4).splitlines() if "sharded on 4" in line)
    assert "MiB" in row if quantization == "none" else "no: quantized" in row and "MiB" not in row


def test_the_command_says_it_and_trains_nothing(tmp_path, capsys) -> None:
    places = ["--output_dir", str(tmp_path / "runs"), "--log_dir", str(tmp_path / "logs")]
    config = str(REPOSITORY / "configs" / "vlm_quick.yaml")
    assert main(["--config", config, *places, "--estimate", "4"]) == 0
    said = capsys.readouterr().out
    assert all(f"Stage {name}" in said for name in ("language", "see", "tune")) and "Muon 1" in said
    assert said.count("sharded on 4, each") == 3 and not list(tmp_path.iterdir())
