"""Recipes: what they say, what each stage trains, what is handed on, and runs that stop and go on bit for bit."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bitgen.checkpoint.format import checkpoint_folders
from bitgen.commands import export
from bitgen.config.values import ConfigError
from bitgen.config.vlm import VlmConfig, stages_of
from bitgen.data.tokenizer import load_tokenizer
from bitgen.machine.devices import start_processes
from bitgen.machine.ranks import Processes
from bitgen.protocols import Batch
from bitgen.run import build_trainer
from bitgen.tasks import vlm_parts
from bitgen.tasks.recipe import DONE, train_recipe
from bitgen.tasks.vlm import Vlm, validated_every
from bitgen.trained_vlm import open_vlm, vlm_folder
from bitgen.training.trainer import Trainer
from bitgen.vlm.adapters import adapted_layers, linear_shape
from bitgen.vlm.modeling import VisionLanguageModel
from support.runs import metrics, same_checkpoint
from support.tiny_vlms import tower_folder
from support.vlm import RECIPE, TINY, recipe
from support.warm import run_warm

ALONE = Processes(0, 1, torch.device("cpu"))


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint_folders(run)[0] / "model.safetensors")


def part(tensors: dict[str, torch.Tensor], *names: str) -> dict[str, torch.Tensor]:
    """Weights of parts under the names that they have without adapters."""
    plain = {name.replace(".base_layer.", "."): tensor for name, tensor in tensors.items()}
    return {
        name: tensor
        for name, tensor in plain.items()
        if ("adapter" if ".lora_" in name else name.split(".")[0]) in names
    }


def moved(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> set[bool]:
    assert one.keys() == other.keys() and one
    return {not torch.equal(tensor, other[name]) for name, tensor in one.items()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a recipe of three stages, at its end."""
    folder = tmp_path_factory.mktemp("recipe")
    assert train_recipe(stages_of(recipe(folder)), resume=False) == 0
    return folder


# ---- what a recipe says ----


def test_stages_start_from_one_another_and_flags_beat_what_they_say(tmp_path) -> None:
    config = recipe(tmp_path, init_from="first", learning_rate=0.5, batch_size=2)
    stages = stages_of(config, flags={"learning_rate"})
    assert [name for name, _ in stages] == ["words", "align", "tune"]
    outputs = [str(tmp_path / "runs" / stage["name"]) for stage in RECIPE]
    assert [stage.config.output.output_dir for stage in stages] == outputs
    assert [stage.config.training.init_from for stage in stages] == ["first", *outputs[:2]]
    assert {stage.config.training.learning_rate for stage in stages} == {0.5}
    assert {stage.config.training.learning_rate for stage in stages_of(config)} == {3e-3}
    assert {stage.config.training.batch_size for stage in stages} == {2}
    assert [stage.config.trained_parts for stage in stages][2] == ("connector", "adapter")
    only = stages_of(config.replace(stage="tune"))
    assert [(name, one.training.init_from) for name, one in only] == [("tune", outputs[1])]


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([], "stages is an empty list. Write at least one stage"),
        ([{"trains": "connector"}], "stages: the 1. has no name. Write name: align"),
        ([{"name": "../up"}], "stages: the 1. has no name"),
        ([{"name": "a"}, {"name": "a"}], "stages: two are named a. Give each one a name of its own"),
        ([{"name": "a", "learning_rat": 1}], "stages: a has a setting 'learning_rat'. Did you mean learning_rate"),
        ([{"name": "a", "output_dir": "x"}], "stages: a has a setting 'output_dir'"),
        ([{"name": "a", "learning_rate": "fast"}], "stages: a: learning_rate"),
        ([{"name": "a", "trains": "conector"}], "stage a: trains names 'conector'. Write any of connector"),
        ([{"name": "a", "trains": "adapter"}], "stage a: trains names the adapter, but adapter is none. Write adapter"),
        ([{"name": "a", "connector": "none"}], "stage a: trains names the connector, but connector is none. Write"),
        ([{"name": "a", "trains": "vision"}], "stage a: trains names vision, but nothing of the encoder can train"),
        (
            [{"name": "a", "connector": "tac"}],
            "stage a: connector is tac, which reads several layers, and select_layer",
        ),
        ([{"name": "a", "adapter": "lora", "trains": "language"}], "stage a: trains names language, all weights of"),
    ],
)
def test_a_recipe_that_cannot_be_says_what_to_write(tmp_path, stages: list[dict[str, Any]], message: str) -> None:
    places = {"output_dir": str(tmp_path), "log_dir": str(tmp_path)}
    config = VlmConfig.from_flat({**TINY, **places, "stages": json.dumps(stages)})
    with pytest.raises(ConfigError) as caught:
        stages_of(config)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_stage_alone_starts_from_the_one_before_it_or_from_what_a_flag_names(tmp_path) -> None:
    config = recipe(tmp_path, init_from="mine").replace(stage="tune")
    assert stages_of(config)[0].config.training.init_from == str(tmp_path / "runs" / "align")
    assert stages_of(config, flags={"init_from", "stage"})[0].config.training.init_from == "mine"


def test_a_stage_that_there_is_not(tmp_path) -> None:
    with pytest.raises(ConfigError, match="stage is 'tun'. The stages are words, align, tune"):
        stages_of(recipe(tmp_path).replace(stage="tun"))


def test_val_ratio_is_a_share_of_the_steps(tmp_path) -> None:
    config = stages_of(recipe(tmp_path, max_steps=20, val_ratio=0.25))[0].config
    trainer = build_trainer(Vlm(), config, start_processes("cpu", use_ddp=False))
    with_ratio, steps = trainer.settings.eval_steps, trainer.stage.steps
    trainer.monitor.close()
    assert (with_ratio, steps) == (5, 20)
    assert validated_every(config.replace(val_ratio=0.001), trainer.stage) == 1
    assert validated_every(config.replace(val_ratio=None), trainer.stage) is None


# ---- what the stages do ----


def test_each_stage_moves_what_it_trains_and_nothing_else(trained: Path) -> None:
    words, align, tune = (weights(trained / "runs" / stage["name"]) for stage in RECIPE)
    assert part(words, "language") and not part(words, "connector", "adapter")
    assert moved(part(words, "language"), part(align, "language")) == {False}
    assert moved(part(align, "language"), part(tune, "language")) == {False}
    # A random encoder lies in each checkpoint, and no stage trains it.
    assert moved(part(align, "tower"), part(tune, "tower")) == {False}
    assert moved(part(align, "connector"), part(tune, "connector")) == {True}
    lora_b = {name: tensor for name, tensor in part(tune, "adapter").items() if "lora_B" in name}
    assert lora_b and all(tensor.any() for tensor in lora_b.values())
    losses = [[r["train/loss"] for r in metrics(trained / "logs" / s["name"]) if "train/loss" in r] for s in RECIPE]
    assert all(len(of_stage) == 4 for of_stage in losses) and losses[0][-1] < losses[0][0]


def test_what_was_trained_is_opened_elsewhere_with_the_same_logits(trained: Path) -> None:
    run = trained / "runs" / "tune"
    trainer = build_trainer(Vlm(), _resumed(trained, "tune"), ALONE)
    model = trainer.objective.model.eval()
    assert isinstance(model, VisionLanguageModel)
    inputs = trainer_batch()
    with torch.no_grad():
        expected = model(inputs).logits
    trainer.monitor.close()
    torch.save({"inputs": inputs, "logits": expected}, trained / "logits.pt")
    code = """
import sys, torch
from bitgen.trained_vlm import open_vlm
held = torch.load(sys.argv[2], weights_only=True)
with torch.no_grad():
    logits = open_vlm(sys.argv[1]).model(held["inputs"]).logits
print(torch.equal(logits, held["logits"]), logits.shape)
"""
    done = run_warm(["-c", code, vlm_folder(run), trained / "logits.pt"])
    assert done.stdout.startswith("True"), done.stdout + done.stderr


def trainer_batch() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    ids = torch.randint(3, 60, (2, 24), generator=draw)
    ids[:, 1:17] = -200
    labels = torch.where(torch.arange(24) > 17, ids, -100)
    pictures = torch.randn(2, 3, 28, 28, generator=draw)
    mask, frames = torch.ones_like(ids), torch.tensor([1, 1])
    return {"input_ids": ids, "labels": labels, "attention_mask": mask, "pictures": pictures, "frames": frames}


def _resumed(folder: Path, name: str) -> VlmConfig:
    config = next(stage.config for stage in stages_of(recipe(folder)) if stage.name == name)
    return config.replace(resume="auto")


def test_a_finished_recipe_is_passed_over_and_not_begun_again(trained: Path, tmp_path) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*") if path.is_file()}
    assert train_recipe(stages_of(recipe(trained)), resume=True) == 0
    assert before == {path: path.stat().st_mtime_ns for path in trained.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="holds checkpoints of an earlier run: write --resume auto"):
        train_recipe(stages_of(recipe(trained)), resume=False)


@pytest.mark.parametrize("name", ["align", "tune"])
def test_a_stopped_stage_goes_on_bit_for_bit(trained: Path, tmp_path, name: str) -> None:
    before = str(trained / "runs" / RECIPE[["align", "tune"].index(name)]["name"])
    places = {"output_dir": str(tmp_path / "run"), "log_dir": str(tmp_path / "log"), "init_from": before}
    config = _resumed(trained, name).replace(**places, resume=None)
    stopped = build_trainer(Vlm(), config, ALONE)
    assert not _fit_until(stopped, 2)
    stopped.monitor.close()
    assert stopped.progress.step == 2
    going_on = build_trainer(Vlm(), config.replace(resume="auto"), ALONE)
    assert going_on.fit()
    going_on.monitor.close()
    same_checkpoint(tmp_path / "run", trained / "runs" / name)


def _fit_until(trainer: Trainer, step: int) -> bool:
    """Train until SIGTERM arrives while optimizer step ``step`` draws its batch."""
    draw, sent = trainer.source.draw, []

    def draw_and_signal() -> list[Batch]:
        if trainer.progress.step == step - 1 and not sent:
            sent.append(True)  # a second signal would end the process at once
            os.kill(os.getpid(), signal.SIGTERM)
        return draw()

    trainer.source.draw = draw_and_signal
    return trainer.fit()


def test_another_connector_or_language_model_is_refused(trained: Path, tmp_path) -> None:
    places = {"output_dir": str(tmp_path / "run"), "log_dir": str(tmp_path / "log")}
    tune = _resumed(trained, "tune").replace(resume=None, **places)
    other = tune.replace(connector="linear")
    with pytest.raises(ValueError, match="init_from .* its connector is .*mlp.*, and this stage's is .*linear.* alike"):
        build_trainer(Vlm(), other, ALONE)
    wider = tune.replace(language_hidden_size=64)
    with pytest.raises(ValueError, match="init_from"):
        build_trainer(Vlm(), wider, ALONE)
    without = tune.replace(init_from=str(trained / "runs" / "tune"), adapter="none", trains="connector")
    with pytest.raises(ValueError, match="has adapters and this stage has none, which would lose what they learned"):
        build_trainer(Vlm(), without, ALONE)
    blind = tune.replace(connector="none", trains="adapter")
    with pytest.raises(ValueError, match="has a connector and this stage has none, .* Keep connector mlp"):
        build_trainer(Vlm(), blind, ALONE)


@pytest.mark.parametrize(
    ("setting", "value", "name"),
    [
        ("select_layer", "-1", "select_layer is -2, and this stage's is -1"),
        ("vision_num_heads", 4, "number of heads of the encoder is 2, and this stage's is 4"),
        ("language_num_heads", 4, "number of heads of the language model is 2, and this stage's is 4"),
    ],
)
def test_what_gives_weights_their_meaning_stays_at_the_start(trained: Path, tmp_path, setting, value, name) -> None:
    places = {"output_dir": str(tmp_path / "run"), "log_dir": str(tmp_path / "log"), "resume": None}
    with pytest.raises(ValueError, match=f"init_from .*: its {name}. Make them alike."):
        build_trainer(Vlm(), _resumed(trained, "tune").replace(**places, **{setting: value}), ALONE)


def test_a_connector_is_of_the_encoder_that_it_has_learned_to_read(tmp_path) -> None:
    """Another one of the same width would be read as noise."""
    stages = [{"name": "align", "trains": "connector"}, {"name": "tune", "trains": "connector"}]
    towers = [str(tower_folder(tmp_path / str(scale), initializer_factor=scale)) for scale in (1.0, 2.0)]
    settings = {"vision_encoder": towers[0], "select_layer": "-1", "image_size": None}
    config = recipe(tmp_path, stages, **settings, max_steps=1, val_data=None)
    assert train_recipe(stages_of(config)[:1], resume=False) == 0
    tune = stages_of(config)[1].config
    with pytest.raises(ValueError, match=r"its encoder \(by its weights\) is \w+, and this stage's is \w+. Make them"):
        build_trainer(Vlm(), tune.replace(vision_encoder=towers[1]), ALONE)
    shutil.copytree(towers[0], tmp_path / "moved")
    build_trainer(Vlm(), tune.replace(vision_encoder=str(tmp_path / "moved")), ALONE).monitor.close()


def test_a_random_language_model_keeps_the_tokenizer_of_the_export_that_it_starts_from(trained: Path, tmp_path) -> None:
    export.main(["--checkpoint", str(trained / "runs" / "align"), "--output", str(tmp_path / "export")])
    places = {"output_dir": str(tmp_path / "run"), "log_dir": str(tmp_path / "log"), "resume": None}
    places |= {"init_from": str(tmp_path / "export"), "seed": 7}  # which other captions have
    trainer = build_trainer(Vlm(), _resumed(trained, "tune").replace(**places), ALONE)
    trainer.monitor.close()
    before, after = open_vlm(trained / "runs" / "align").tokenizer, load_tokenizer(tmp_path / "run" / "tokenizer")
    assert after.get_vocab() == before.get_vocab()


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_a_new_adapter_changes_nothing_at_first(trained: Path, tmp_path, kind: str) -> None:
    """Also on weights that the stage before trained: DoRA's magnitudes are the norms of those, and of no others."""
    before = weights(trained / "runs" / "align")
    places = {"output_dir": str(tmp_path / "run"), "log_dir": str(tmp_path / "log")}
    trainer = build_trainer(Vlm(), _resumed(trained, "tune").replace(resume=None, adapter=kind, **places), ALONE)
    trainer.monitor.close()
    lm = trainer.objective.model.language
    plain = {name: tensor for name, tensor in before.items() if name.startswith("language.")}
    adapted = adapted_layers(lm)
    assert adapted
    for name, layer in adapted.items():
        inputs = torch.randn(3, linear_shape(layer)[1], generator=torch.Generator().manual_seed(0))
        expected = inputs @ plain[f"language.{name}.weight"].T
        torch.testing.assert_close(layer.eval()(inputs), expected, rtol=0, atol=1e-5)


def test_adapters_go_on_with_another_dropout_but_not_with_another_scale(trained: Path, tmp_path) -> None:
    places = {"output_dir": str(tmp_path / "run"), "log_dir": str(tmp_path / "log")}
    again = _resumed(trained, "tune").replace(resume=None, init_from=str(trained / "runs" / "tune"), **places)
    assert again.adapter.adapter_dropout != 0.3
    trainer = build_trainer(Vlm(), again.replace(adapter_dropout=0.3), ALONE)
    trainer.monitor.close()
    before, after = weights(trained / "runs" / "tune"), trainer.objective.model.state_dict()
    assert moved(part(before, "adapter", "connector"), part(after, "adapter", "connector")) == {False}
    modules = dict(trainer.objective.model.named_modules())
    assert {module.p for name, module in modules.items() if name.endswith("lora_dropout.default")} == {0.3}
    with pytest.raises(ValueError, match="its adapter is .*, and this stage's is .* alike"):
        build_trainer(Vlm(), again.replace(adapter_alpha=3.0), ALONE)


@pytest.mark.parametrize(("setting", "value"), [("adapter_alpha", 8.0), ("language_num_heads", 4)])
def test_what_gives_weights_their_meaning_stays_on_resume(trained: Path, setting: str, value: object) -> None:
    assert _resumed(trained, "tune").flat()[setting] != value
    with pytest.raises(ValueError, match=f"belongs to another run: .*{setting} was .* and is {value}"):
        build_trainer(Vlm(), _resumed(trained, "tune").replace(**{setting: value}), ALONE)


def test_what_is_finished_with_other_settings_is_not_passed_over(trained: Path, tmp_path) -> None:
    """Or a recipe that changed would be shown with the results of the one before."""
    changed = stages_of(recipe(trained, learning_rate=0.5), flags={"learning_rate"})
    with pytest.raises(ConfigError, match="is finished with other settings: learning_rate was 0.003 and is 0.5. Write"):
        train_recipe(changed, resume=True)
    assert train_recipe(stages_of(recipe(trained, num_workers=1, save_steps=7, log_steps=2)), resume=True) == 0


def test_the_end_of_a_stage_is_marked(trained: Path) -> None:
    assert all((trained / "runs" / stage["name"] / DONE).is_file() for stage in RECIPE)
    assert open_vlm(trained / "runs" / "tune").description.adapter is not None


def test_a_stage_goes_on_from_a_folder_elsewhere_though_an_earlier_one_tuned_the_encoder(tmp_path) -> None:
    """What the earlier stage changed in a published encoder is in the checkpoint, and not where this run writes."""
    stages = [
        {"name": "see", "trains": "connector,vision", "vision_tuning": "full"},
        {"name": "tune", "trains": "connector,adapter", "adapter": "lora", "adapter_rank": 4},
    ]
    settings = {"vision_encoder": str(tower_folder(tmp_path / "tower")), "select_layer": "-1", "image_size": None}
    settings |= {"max_steps": 2, "save_steps": 1, "val_data": None}
    config = recipe(tmp_path, stages, **settings)
    assert train_recipe(stages_of(config), resume=False) == 0
    places = {"output_dir": str(tmp_path / "other"), "log_dir": str(tmp_path / "other_log")}
    first = tmp_path / "runs" / "tune" / "step-00000001"
    tune = stages_of(config)[1].config.replace(**places, resume=str(first))
    going_on = build_trainer(Vlm(), tune, ALONE)
    assert going_on.fit() and going_on.progress.step == 2
    going_on.monitor.close()
    same_checkpoint(tmp_path / "other", tmp_path / "runs" / "tune")


def test_a_mark_without_checkpoints_is_of_an_earlier_run(tmp_path, monkeypatch, caplog) -> None:
    stages = stages_of(recipe(tmp_path))
    trained: list[str] = []

    def train(task: object, config: VlmConfig, purpose: str | None) -> int:
        folder = Path(config.output.output_dir)
        assert not (folder / DONE).exists()  # or a stop in this training would leave it as finished
        (folder / "step-00000001").mkdir(parents=True)
        trained.append(folder.name)
        return 0

    monkeypatch.setattr("bitgen.tasks.recipe.train", train)
    left = Path(stages[0].config.output.output_dir)
    left.mkdir(parents=True)
    (left / DONE).touch()
    assert train_recipe(stages, resume=True) == 0 and trained == [stage.name for stage in stages]
    with caplog.at_level(logging.INFO):
        assert train_recipe(stages, resume=True) == 0 and len(trained) == len(stages)
    assert "is finished, and passed over" in caplog.text


def test_a_checkpoint_that_is_named_is_of_one_stage(tmp_path, monkeypatch) -> None:
    """The others go on with their own, or begin."""
    stages = stages_of(recipe(tmp_path))
    asked: dict[str, str | None] = {}

    def train(task: object, config: VlmConfig, purpose: str | None) -> int:
        (folder := Path(config.output.output_dir)).mkdir(parents=True, exist_ok=True)
        asked[folder.name] = config.training.resume
        return 0

    monkeypatch.setattr("bitgen.tasks.recipe.train", train)
    for named in (tmp_path / "runs" / "align" / "step-00000002", tmp_path / "elsewhere"):
        given = [stage._replace(config=stage.config.replace(resume=str(named))) for stage in stages]
        assert train_recipe(given, resume=True) == 0
        for stage in stages:
            (Path(stage.config.output.output_dir) / DONE).unlink()
        own = [str(named) if named.name == "elsewhere" or name == "align" else "auto" for name, _ in stages]
        assert list(asked.values()) == own
        asked.clear()


def test_a_damaged_newest_checkpoint_is_passed_over_for_what_a_stage_is_built_from(trained: Path, tmp_path) -> None:
    source = trained / "runs" / RECIPE[-1]["name"]
    [whole] = checkpoint_folders(source)[:1]
    run = tmp_path / "run"
    for step in (1, 2):
        shutil.copytree(whole, run / f"step-{step:08d}")
    (run / "step-00000002" / "manifest.json").write_text("{")
    config = stages_of(recipe(trained))[-1].config.replace(resume=str(run))
    assert vlm_parts._folder_before(config, fresh=False) == (run / "step-00000001").resolve()
