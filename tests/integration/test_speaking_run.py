"""A run that learns to speak from a memory: it starts from a trained model, which it leaves as it is, to the bit."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bitgen.checkpoint.format import checkpoint_folders, find_checkpoint, step_of
from bitgen.checkpoint.manifest import CheckpointError
from bitgen.commands import export
from bitgen.config import Config, ConfigError
from bitgen.data.records import Record
from bitgen.data.scenes.descriptions import COLOURS
from bitgen.machine.devices import Precision, start_processes
from bitgen.model.token_ids import space_id
from bitgen.protocols import HeldOutResult
from bitgen.run import build_trainer
from bitgen.tasks import TASKS, task_of
from bitgen.tasks.chain import split_first_stage, train_chain
from bitgen.tasks.stage1_parts import build_dataset
from bitgen.tasks.stage1_validation import HeldOut
from bitgen.trained import CAPTIONS, MATCHING, RETRIEVAL, Trained, open_model
from bitgen.training.trainer import Trainer
from support.data import encode, noise, write_features, write_images
from support.runs import (
    TINY,
    command,
    fit_until,
    metrics,
    same_checkpoint,
    scalars,
    wait_for_step,
)
from support.warm import run_warm, start_warm

WORKER = Path(__file__).with_name("watched_worker.py")
# A captioner: its matching head is never trained, its temperature learned fast enough to see.
CAPTIONER = dict(
    text_loss_weight=1.0,
    itm_weight=0.0,
    max_seq_len=64,
    temperature_lr_factor=10.0,
    vocab_size=400,
    lora_warmup_steps=0,
)
EPISODES = dict(
    recall_weight=1.0,
    recall_tokens=8,
    recall_dim=16,
    recall_code=4,
    episode_pictures=4,
    episode_sentences=3,
    picture_queries=4,
    sentence_queries=4,
    grad_accum_steps=1,
    max_steps=6,
)


def config_of(folder: Path, **settings: object) -> Config:
    """A checked configuration of a run in ``folder``."""
    folders = {"output_dir": str(folder / "checkpoints"), "log_dir": str(folder / "logs")}
    config = Config().replace(**{**TINY, **CAPTIONER, **folders, **settings})
    config.validate(world_size=1)
    return config


def trained(config: Config) -> Trainer:
    trainer = build_trainer(task_of(config), config, start_processes("cpu", False))
    trainer.fit()
    trainer.monitor.close()
    return trainer


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run of stage 1 whose network recalls nothing; nobody changes it."""
    config = config_of(tmp_path_factory.mktemp("captioner"), max_steps=4, ema_decay=0.5)
    trained(config)
    return config.output.output_dir


@pytest.fixture
def speaking(tmp_path: Path, captioner: str) -> Callable[..., Config]:
    """``speaking(run, **settings)``: the configuration of a run from the captioner."""
    return lambda run="run", **settings: config_of(tmp_path / run, **{"init_from": captioner, **EPISODES, **settings})


@pytest.fixture
def build(speaking) -> Iterator[Callable[..., Trainer]]:
    """``build(run, **settings)``: its trainer."""
    trainers: list[Trainer] = []

    def make(run: str = "run", **settings: object) -> Trainer:
        for trainer in trainers:
            trainer.monitor.close()
        config = speaking(run, **settings)
        trainers.append(build_trainer(task_of(config), config, start_processes("cpu", False)))
        return trainers[-1]

    yield make
    for trainer in trainers:
        trainer.monitor.close()


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory, captioner: str) -> tuple[str, str]:
    """A finished run by the entry itself, and all that it wrote; nobody changes it."""
    folder = tmp_path_factory.mktemp("speaker")
    config = config_of(folder, init_from=captioner, **EPISODES)
    done = run_warm(command(config)[1:])
    assert done.returncode == 0, done.stdout + done.stderr
    return config.output.output_dir, done.stdout + done.stderr


def own(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Of a network's weights those of recall."""
    return {name: tensor for name, tensor in state.items() if name.startswith("recall.")}


def base(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """All others, but for the matching head, which nobody has trained."""
    return {name: tensor for name, tensor in state.items() if not name.startswith(("recall.", "itm_head."))}


def base_of(run: str | Path) -> dict[str, torch.Tensor]:
    """The same of a run's folder."""
    return base(open_model(run).model.state_dict())


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# ---- what it learns, and what it leaves ----


def test_the_model_that_it_starts_from_stays_as_it_is(captioner: str, speaker: tuple[str, str]) -> None:
    before, after = open_model(captioner), open_model(speaker[0])
    assert equal(base(after.model.state_dict()), base(before.model.state_dict())) and len(base_of(captioner)) > 80
    assert before.model.recall is None and len(own(after.model.state_dict())) > 40
    assert after.model.config.recall_tokens == 8 and before.model.config.recall_space is None
    assert after.model.recall is not None and after.model.recall.space == space_id(after.tokenizer) is not None
    written = json.loads((Path(speaker[0]) / "latest" / "config.json").read_text())
    assert written["bos_token_id"] == after.tokenizer.bos_token_id == after.model.config.bos_token_id
    assert "what was taught" not in speaker[1], "there was no held-out data to ask"
    assert "memory.py" in speaker[1] and "teach" in speaker[1]


def test_recall_trains_and_nothing_else(build, captioner: str) -> None:
    trainer = build()
    started = {name: tensor.clone() for name, tensor in trainer.objective.model.state_dict().items()}
    assert equal(base(started), base_of(captioner))
    trainer.fit()
    now = trainer.objective.model.state_dict()
    still = {name for name, tensor in started.items() if torch.equal(tensor, now[name])}
    assert still == set(started) - set(own(started))
    losses = scalars(trainer)
    assert len(losses) == 6 and torch.tensor(list(losses.values())).isfinite().all()
    record = metrics(trainer.monitor.log_dir)[-1]
    assert {f"train/{name}" for name in ("recall_loss", "value_loss", "caption_loss", "acc_recall")} <= set(record)
    trained_names = {name for group in trainer.optimizer.param_groups for name in group["names"]}
    assert trained_names == {f"model.{name}" for name in own(started)}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_base_stays_with_averages_accumulation_and_either_optimizer(build, captioner: str, optimizer: str) -> None:
    trainer = build(optimizer=optimizer, ema_decay=0.9, grad_accum_steps=2, weight_decay=0.5, max_steps=3)
    trainer.fit()
    assert equal(base(trainer.objective.model.state_dict()), base_of(captioner))
    assert equal(base_of(trainer.store.folder), base_of(captioner))


def figures(opened: Trained, folder: Path) -> dict[str, float]:
    """What validation of stage 1 says of a model."""
    config = config_of(folder, val_data="scenes")
    val = build_dataset(config, "scenes", "val", opened.processor)
    held_out = HeldOut(config, val, None, opened.tokenizer, torch.device("cpu"), Precision("fp32", "cpu"))
    return held_out(opened.model, opened.temperature).scalars


def test_a_captioners_figures_are_exactly_those_of_the_base(
    captioner: str, speaker: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HeldOut, "_pictures", lambda *_: {})
    before, after = (figures(open_model(run), tmp_path) for run in (captioner, speaker[0]))
    learned = [name for name in before if "itm" not in name]  # that head nobody has trained
    assert {name: after[name] for name in learned} == {name: before[name] for name in learned}
    assert "val/caption_loss" in learned and any("R@1" in name for name in learned)


def test_temperature_and_what_was_never_learned_are_kept(captioner: str, speaker) -> None:
    before, after = open_model(captioner), open_model(speaker[0])
    assert after.temperature == before.temperature != TINY["temperature"]
    assert set(after.untrained) == set(before.untrained) == {MATCHING}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"itm_weight": 0.5}, "itm_weight is 0.5, but the model .* has never learned matching"),
        ({"contrastive_weight": 0.0}, "contrastive_weight is 0, but the model .* has learned retrieval"),
    ],
)
def test_a_run_that_says_otherwise_what_was_learned_is_refused(build, changed: dict[str, Any], message: str) -> None:
    """Its checkpoints and exports would say it too."""
    with pytest.raises(ConfigError, match=message):
        build(**changed)


def test_an_export_speaks_as_the_run_does(captioner: str, speaker, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    export.main(["--checkpoint", speaker[0], "--output", str(folder)])
    run, opened = open_model(speaker[0]), open_model(folder)
    assert opened.kind == "export" and opened.temperature == open_model(captioner).temperature
    assert set(opened.untrained) == {MATCHING} and {CAPTIONS, RETRIEVAL}.isdisjoint(opened.untrained)
    assert equal(own(opened.model.state_dict()), own(run.model.state_dict()))
    ids = torch.tensor([run.processor.encode(["a red star left of a blue ring"])[0]])
    pixels = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        said = []
        for model in (run.model, opened.model):
            image = model.pool_image_tokens(model.encode_image(pixels).image_tokens)
            values = model.recall.values(ids, torch.ones_like(ids))[None]
            seen = model.recall.seen(image, torch.tensor([[0]]))
            given = model.recall.tokens(values, seen, torch.tensor([[True]]))
            said.append([model.run_stack(ids, None, image, recalled=those).hidden_states for those in (given, None)])
    for one, other in zip(*said, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    assert (said[0][0] - said[0][1]).abs().max() > 1e-4


def test_validation_teaches_held_out_episodes_and_scores_by_what_is_said(build, monkeypatch) -> None:
    monkeypatch.setattr("bitgen.tasks.episodes._EPISODES", 1)
    trainer = build(val_data="scenes", max_steps=2)
    before = torch.get_rng_state()
    result = trainer.run.validator(trainer.objective, 1)
    assert torch.equal(torch.get_rng_state(), before)
    assert {
        "val/says_alone",
        "val/says_sentence",
        "val/whole_with",
        "val/unchanged_unknown",
        "val/recalled_two",
    } <= set(result.scalars)
    assert all(0 <= value <= 100 for value in result.scalars.values())
    right = [value for name, value in result.scalars.items() if name.startswith(("val/says_", "val/unchanged_"))]
    assert result.score == result.scalars["val/score"] == pytest.approx(sum(right) / len(right))
    assert 0 < result.error == result.scalars["val/score_error"] < 50
    assert "samples/said" in result.texts
    assert trainer.fit() and trainer.scores[-1]["step"] == 2


def test_best_is_the_last_checkpoint_within_one_error_of_the_highest_score(build) -> None:
    trainer = build(val_data="scenes", max_steps=4, eval_steps=1)
    results = iter([(60.0, 2.0), (98.0, 0.5), (97.7, 0.5), (97.4, 0.5)])

    def validator(objective: object, phase: int) -> HeldOutResult:
        return HeldOutResult({}, {}, {}, *next(results))

    trainer.run = trainer.run._replace(validator=validator)
    assert trainer.fit()
    assert [one["score"] for one in trainer.scores] == [60.0, 98.0, 97.7, 97.4]
    assert trainer.store.best.name == "step-00000003" and trainer.progress.best_score == 97.7


# ---- stopping and going on ----


EVERYTHING = {"num_workers": 1, "optimizer": "muon", "ema_decay": 0.9}


@pytest.mark.parametrize("settings", [{}, EVERYTHING], ids=["plain", "everything"])
def test_a_run_that_was_stopped_ends_as_the_uninterrupted_one(build, captioner: str, tmp_path: Path, settings) -> None:
    straight = build("straight", **settings)
    assert straight.fit()
    source = tmp_path / "source"
    shutil.copytree(Path(captioner).parent, source)
    init_from = str(source / "checkpoints")
    assert not fit_until(build("resumed", init_from=init_from, **settings), 3)
    shutil.rmtree(source)  # what it started from is no longer needed
    second = build("resumed", init_from=init_from, resume="auto", **settings)
    assert second.progress.step == 3
    second.fit()
    same_checkpoint(straight.store.folder, second.store.folder)
    assert scalars(straight) == scalars(second)
    assert open_model(second.store.folder).temperature == open_model(captioner).temperature


def test_kill_9_then_resume(build, speaking) -> None:
    settings = dict(max_steps=14, save_steps=1, max_checkpoints_to_keep=2)
    straight = build("straight", **settings)
    straight.fit()
    config = speaking("killed", **settings)
    process = start_warm(command(config)[1:])
    wait_for_step(Path(config.output.log_dir), 3, process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    resumed = build("killed", resume="auto", **settings)
    assert 0 < resumed.progress.step < 14
    resumed.fit()
    same_checkpoint(straight.store.folder, resumed.store.folder)
    assert scalars(straight) == scalars(resumed)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"picture_queries": 8}, "picture_queries was 4 and is 8"),
        ({"episode_pictures": 5}, "episode_pictures was 4 and is 5"),
        ({"episode_sentences": 5}, "episode_sentences was 3 and is 5"),
        ({"sentence_queries": 5}, "sentence_queries was 4 and is 5"),
        ({"recall_dim": 8}, "recall_dim was 16 and is 8"),
        ({"recall_code": 8}, "recall_code was 4 and is 8"),
        ({"recall_tokens": 9}, "recall_tokens was 8 and is 9"),
        ({"scenes_train": 64}, "episodes an epoch was 8 and is 16"),
        ({"seed": 1}, "seed was 42 and is 1"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(build, settings: dict[str, Any], named: str) -> None:
    build(max_steps=1).fit()
    with pytest.raises(CheckpointError, match=named):
        build(max_steps=1, resume="auto", **settings)


# ---- what cannot be ----


def test_data_that_makes_no_episodes_is_refused(build, captioner: str, tmp_path: Path) -> None:
    records = [Record(f"{n}.png", encode(noise(n)), ["a red star"]) for n in range(16)]
    images = write_images(tmp_path / "images", records)
    others = write_images(tmp_path / "others", records[:9])
    for train_data, message in (
        (images, "train_data is .*images, but episodes are made of .* train_data scenes"),
        (f"{images},{others}", "train_data is .*images,.*others, but episodes are made of one source"),
        (None, "train_data is not set. Write scenes"),
    ):
        with pytest.raises(ConfigError, match=message):
            build(train_data=train_data and str(train_data), tokenizer=f"{captioner}/tokenizer", vocab_size=400)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"vocab_size": 300}, r"a tokenizer of \d+ tokens but vocab_size is 300: use --vocab_size \d+"),
        ({"ffn_dim": 24}, r"another network: \d+ of its weights .* first decoder\.blocks"),
        ({"use_memory": False}, "another network"),
    ],
)
def test_another_network_is_refused(build, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(**changed)


def test_more_processes_or_micro_batches_than_episodes_are_refused(build) -> None:
    with pytest.raises(ValueError, match="grad_accum_steps is 9, but the training data gives 8 batches"):
        build(grad_accum_steps=9)


def test_a_trained_recall_may_go_on_in_another_run(build, speaker: tuple[str, str]) -> None:
    """Also from a run that could speak already: its recall is taken over."""
    trainer = build(init_from=speaker[0])
    assert equal(dict(trainer.objective.model.state_dict()), open_model(speaker[0]).model.state_dict())


def test_photographs_by_their_features_are_learned_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitgen.tasks.episodes._TAUGHT", 4)
    monkeypatch.setattr("bitgen.tasks.episodes._EPISODES", 1)
    captions = [[f"a {size} {colour} dog"] for size in ("small", "large", "huge") for colour in COLOURS]
    data = dict(
        vision_encoder="features",
        vision_tuning="frozen",
        train_data=str(write_features(tmp_path / "train", captions, (16, 6))),
        val_data=str(write_features(tmp_path / "val", captions[:16], (16, 6), seed=2)),
    )
    first = config_of(tmp_path / "first", max_steps=2, **data)
    trained(first)
    config = config_of(tmp_path / "second", init_from=first.output.output_dir, **data, **(EPISODES | {"max_steps": 2}))
    trainer = trained(config)
    assert equal(base_of(trainer.store.folder), base_of(first.output.output_dir))
    logged = {name for record in metrics(config.output.log_dir) for name in record}
    assert {"val/says_view", "val/says_same", "val/unchanged_unknown", "val/says_sentence"} <= logged
    with pytest.raises(ConfigError, match=r"train has 30 pictures, fewer than an episode takes. Write .* 22 or less"):
        trained(config.replace(episode_pictures=23, output_dir=str(tmp_path / "third")))


# ---- two runs, two processes ----


def test_a_file_is_a_run_to_train_first_which_recalls_nothing(tmp_path: Path) -> None:
    recipe = tmp_path / "captions.yaml"
    objective = {name: CAPTIONER[name] for name in ("text_loss_weight", "itm_weight", "temperature_lr_factor")}
    training = dict(max_steps=2, batch_size=8, grad_accum_steps=1, learning_rate=3e-3, warmup_steps=1)
    recipe.write_text(json.dumps({"objective": objective, "training": training}))
    config = config_of(tmp_path / "run", init_from=str(recipe), **EPISODES)
    first, then = split_first_stage(config)
    assert first is not None and not first.episodes.recall_weight and not first.episodes.recall_tokens
    assert task_of(first) is TASKS["stage1"] and task_of(then) is TASKS["episodes"]
    assert train_chain(task_of, config) == 0
    before, speaks = open_model(first.output.output_dir), open_model(then.output.output_dir)
    assert [step_of(folder) for folder in checkpoint_folders(then.output.output_dir)] == [6]
    assert before.model.recall is None and before.temperature == speaks.temperature
    assert equal(base(speaks.model.state_dict()), base(before.model.state_dict()))
    # What was trained first is not trained again.
    config = config_of(tmp_path / "run", init_from=str(recipe), resume="auto", **(EPISODES | {"max_steps": 8}))
    assert train_chain(task_of, config) == 0
    assert find_checkpoint("auto", then.output.output_dir).step == 8
    assert equal(base_of(then.output.output_dir), base_of(first.output.output_dir))


def test_two_processes_learn_from_different_episodes_and_stay_equal(speaking, captioner: str, tmp_path: Path) -> None:
    """Of episodes so small that some have pictures, or questions, about nothing that was taught."""
    small = dict(picture_queries=1, sentence_queries=1, scenes_train=32, max_steps=10, save_steps=5)
    settings = tmp_path / "two.json"
    settings.write_text(json.dumps({**speaking(**small).flat(), "use_ddp": True, "num_gpus": 2}))
    done = run_warm([WORKER, "stage1", settings, tmp_path / "two", 9], processes=2)
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = (torch.load(tmp_path / f"two.{rank}", weights_only=True) for rank in (0, 1))
    # A signal to rank 1 alone is both ranks' affair.
    assert (first["step"], first["samples"], first["finished"]) == (9, 18, False)
    assert (second["step"], second["samples"], second["finished"]) == (9, 18, False)
    for what in ("parameters", "gradients"):
        assert equal(first[what], second[what]), what
    held = {name.removeprefix("model."): tensor for name, tensor in first["parameters"].items()}
    assert {name.removeprefix("model.") for name in first["gradients"]} == set(own(held))
    assert equal(base(held), base_of(captioner))
    for one, other in zip(first["seen"], second["seen"], strict=True):
        one, other = one["input_ids"], other["input_ids"]
        assert one.shape != other.shape or not torch.equal(one, other)


def test_a_fresh_run_without_a_captioner_is_refused(speaking) -> None:
    """Also where `resume: auto` would go on, and there is nothing to go on with."""
    config = speaking("nothing", init_from=None, resume="auto")
    with pytest.raises(ConfigError, match="init_from is none"):
        build_trainer(task_of(config), config, start_processes("cpu", False))
