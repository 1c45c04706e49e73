"""Stopping and going on: the resumed run is the uninterrupted one, bit for bit."""

from __future__ import annotations

import logging
import os
import random
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from bitgen.checkpoint.format import checkpoint_folders, find_checkpoint, read_checkpoint, step_of
from bitgen.checkpoint.manifest import CheckpointError, read_manifest, write_manifest
from bitgen.config import ConfigError
from bitgen.machine.randomness import random_state, random_state_kept, set_random_state
from bitgen.tasks.stage1_validation import HeldOut
from support.runs import command, environment, fit_until, metrics, same_checkpoint, scalars, wait_for_step
from support.warm import start_warm


@pytest.mark.parametrize("stop_at", [2, 4, 6], ids=["inside phase 1", "at the boundary", "inside phase 2"])
def test_sigterm_and_resume_change_nothing(build, stop_at: int) -> None:
    straight = build("straight")
    assert straight.fit()
    first = build("resumed")
    assert not fit_until(first, stop_at)
    assert first.progress.step == stop_at
    second = build("resumed", resume="auto")
    assert second.progress.step == stop_at
    second.fit()
    same_checkpoint(straight.store.folder, second.store.folder)
    assert scalars(straight) == scalars(second)
    assert len(scalars(second)) == 8


def test_resume_with_averages_workers_validation_and_every_kind_of_dropout(build, monkeypatch) -> None:
    monkeypatch.setattr(HeldOut, "_pictures", lambda *_: {})  # whose drawing takes most of the time
    settings = dict(
        ema_decay=0.9,
        num_workers=1,
        val_data="scenes",
        token_dropout=0.2,
        caption_sampling="one",
        scenes_train=64,
        text_loss_weight=0.5,
        optimizer="muon",
    )
    straight = build("straight", **settings)
    straight.fit()
    fit_until(build("resumed", **settings), 5)
    second = build("resumed", resume="auto", **settings)
    second.fit()
    same_checkpoint(straight.store.folder, second.store.folder)


def test_a_validation_owed_at_the_stop_is_made_up_for(build, monkeypatch) -> None:
    """The signal comes in the very step after which phase 1 is to be evaluated."""
    monkeypatch.setattr(HeldOut, "_pictures", lambda *_: {})
    fit_until(build(val_data="scenes"), 4)
    second = build(val_data="scenes", resume="auto")
    second.fit()
    assert [entry["step"] for entry in second.scores] == [4, 6, 8]
    records = metrics(second.monitor.log_dir)
    phases = {record["step"]: record["phase"] for record in records if "val/t2i_R@1" in record}
    assert phases[4] == 1 and phases[8] == 2


def test_resuming_a_finished_run_trains_no_further(build) -> None:
    first = build()
    first.fit()
    again = build(resume="auto")
    again.fit()
    assert again.progress.step == 8
    assert len(checkpoint_folders(again.store.folder)) == 1


def test_a_run_that_has_had_more_steps_than_it_is_to_have_is_at_its_end(build) -> None:
    build().fit()
    again = build(resume="auto", max_steps=6)
    assert again.fit() and again.progress.step == 8


def test_a_validation_that_cannot_be_costs_no_step(build) -> None:
    """Held-out data that is damaged ends a run, which goes on behind its last step once the data is mended."""
    settings = dict(val_data="scenes", eval_steps=3, save_steps=100)
    first = build(**settings)

    def damaged(objective: object, phase: int) -> None:
        raise ValueError("val: record 3 cannot be read")

    first.run = first.run._replace(validator=damaged)
    with pytest.raises(ValueError, match="record 3"):
        first.fit()
    assert [read_checkpoint(path).step for path in checkpoint_folders(first.store.folder)] == [first.progress.step]
    second = build(resume="auto", **settings)
    assert second.fit() and second.scores[0]["step"] == first.progress.step


def test_another_optimizer_of_a_tower_that_is_trained_whole_is_refused(build) -> None:
    """Its moments are of another kind."""
    build(vision_tuning="full", tower_optimizer="muon", max_steps=6).fit()
    with pytest.raises(CheckpointError, match="tower_optimizer is not the one that it was trained with"):
        build(vision_tuning="full", resume="auto")


def test_auto_without_a_checkpoint_starts_afresh_and_says_so(build, caplog) -> None:
    with caplog.at_level(logging.INFO):
        trainer = build(resume="auto", max_steps=1)
    assert "starts afresh" in caplog.text
    trainer.fit()
    assert trainer.progress.step == 1


def test_a_folder_with_checkpoints_is_not_overwritten(build) -> None:
    build(max_steps=1).fit()
    with pytest.raises(ConfigError, match="--resume auto .*another --output_dir"):
        build(max_steps=1)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"scenes_train": 40}, "training samples was 96 and is 120"),
        ({"lora_warmup_steps": 5}, "first step of phase 2"),
        ({"seed": 1}, "seed was 42 and is 1"),
        ({"batch_size": 4}, "batch_size was 8 and is 4"),
        ({"ffn_dim": 48}, r"is \[64, 32\] there and \[48, 32\] here"),
        ({"queue_size": 64}, "queue_size"),
        ({"vision_tuning": "frozen"}, "vision_tuning was lora and is frozen"),
        ({"itm_pooling": "last"}, "itm_pooling was mean and is not set"),
        ({"lora_rank": 2}, "lora_A"),
        ({"lora_alpha": 64}, "lora_alpha was 8 and is 64. Its weights would mean something else"),
        ({"use_rslora": True}, "use_rslora was False and is True"),
        ({"num_heads": 4}, "num_heads was 2 and is 4"),
        ({"vision_num_heads": 4}, "vision_num_heads was 2 and is 4"),
        ({"image_size": 14}, "image_size was 28 and is 14"),
        ({"memory_sigma": 0.5}, "memory_sigma was 1.0 and is 0.5"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(build, settings: dict, named: str) -> None:
    build(max_steps=1).fit()
    with pytest.raises(CheckpointError, match=named):
        build(max_steps=1, resume="auto", **settings)


def test_what_else_changed_at_a_resume_is_said_in_one_line(build, caplog) -> None:
    first = build(max_steps=1)
    first.fit()
    with caplog.at_level(logging.INFO):
        build(max_steps=1, resume="auto")
        assert "changed since the checkpoint" not in caplog.text
        build(max_steps=1, resume="auto", learning_rate=1e-3, contrastive_weight=0.5, dropout=0.0)
    [line] = [r.getMessage() for r in caplog.records if "changed since" in r.getMessage()]
    for part in ("learning_rate was 0.003 and is 0.001", "contrastive_weight was 1.0 and is 0.5", "dropout was 0.1"):
        assert part in line
    assert line.count(" was ") == 3


def change_identity(trainer, change) -> None:
    """Rewrite what the newest checkpoint says of its run."""
    path = find_checkpoint("auto", trainer.store.folder).path / "training_state.pt"
    state = torch.load(path, weights_only=True)
    change(state["run"])
    torch.save(state, path)
    write_manifest(path.parent, state["step"], read_manifest(path.parent)["vision_base"])


def test_another_number_of_processes_is_refused(build) -> None:
    trainer = build(max_steps=1)
    trainer.fit()
    change_identity(trainer, lambda run: run.update(num_gpus=2))
    with pytest.raises(CheckpointError, match="num_gpus was 2 and is 1"):
        build(max_steps=1, resume="auto")


def test_a_damaged_newest_checkpoint_falls_back_and_the_run_still_ends_the_same(build, caplog) -> None:
    straight = build("straight", save_steps=2)
    straight.fit()
    again = build("again", save_steps=2)
    again.fit()
    newest = checkpoint_folders(again.store.folder)[0]
    weights = newest / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING):
        resumed = build("again", save_steps=2, resume="auto", max_checkpoints_to_keep=1)
    assert resumed.progress.step == 6
    assert "step-00000008 is damaged" in caplog.text
    resumed.fit()
    same_checkpoint(straight.store.folder, resumed.store.folder)


def test_going_back_below_newer_checkpoints_is_refused(build) -> None:
    first = build(save_steps=2)
    first.fit()
    with pytest.raises(ConfigError, match="newer checkpoints .*step-00000008"):
        build(resume=str(first.store.folder / "step-00000006"))


def test_checkpoints_by_words_of_an_abandoned_future_are_refused(build) -> None:
    """Otherwise an export would have the checkpoints of two runs."""
    first = build("first", save_steps=2)
    first.fit()
    store = first.store
    store.keep_as(first.progress.step, "chck_2M")
    back = next(folder for folder in checkpoint_folders(store.folder) if step_of(folder) < first.progress.step)
    for folder in checkpoint_folders(store.folder):
        if step_of(folder) > step_of(back):
            shutil.rmtree(folder)
    with pytest.raises(
        ConfigError, match="holds chck_2M of later steps.*another --output_dir and --log_dir, or remove"
    ):
        build("first", save_steps=2, resume=str(back))
    for folder in checkpoint_folders(store.folder):
        shutil.rmtree(folder)
    with pytest.raises(ConfigError, match="holds checkpoints of another run"):
        build("first", save_steps=2)
    with pytest.raises(ConfigError, match="--resume auto: .* holds chck_2M of later steps"):
        build("first", save_steps=2, resume="auto")
    shutil.rmtree(store.folder / "chck_2M")
    assert build("first", save_steps=2).progress.step == 0


def test_a_run_continues_in_another_folder(build) -> None:
    straight = build("straight", save_steps=2)
    straight.fit()
    checkpoint, logs = str(straight.store.folder / "step-00000006"), straight.monitor.log_dir
    straight.monitor.close()
    logged = metrics(logs)
    moved = build("moved", resume=checkpoint)
    moved.fit()
    same_checkpoint(straight.store.folder, moved.store.folder)
    assert metrics(logs) == logged
    build("elsewhere", resume=checkpoint, log_dir=str(logs)).fit()  # the logs are of the run that it comes from
    assert metrics(logs / "earlier-1") == logged and metrics(logs)[0]["step"] == 7


def test_random_states_come_back() -> None:
    import numpy as np

    device = torch.device("cpu")

    def draw() -> list[float]:
        return [random.random(), float(np.random.rand()), float(torch.rand(())), random.gauss(0, 1)]

    random.gauss(0, 1)  # leaves half of a pair behind, which is part of the state
    state = random_state(device)
    expected = [draw(), draw()]
    set_random_state(state, device)
    assert [draw(), draw()] == expected
    set_random_state(state, device)
    with random_state_kept(device):
        draw()
    assert [draw(), draw()] == expected


def test_kill_9_in_both_phases_then_resume(build, tiny_config) -> None:
    """The process has no chance to do anything: what counts is on disk already."""
    settings = dict(max_steps=24, lora_warmup_steps=10, save_steps=1)
    straight = build("straight", **settings)
    straight.fit()
    config = tiny_config("killed", **settings)
    for step, is_first_phase in ((3, True), (14, False)):
        process = start_warm(command(config, resume="auto")[1:])
        wait_for_step(Path(config.output.log_dir), step, process)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        reached = find_checkpoint("auto", config.output.output_dir).step
        assert (reached < 10) == is_first_phase, f"killed after step {reached}: the machine was too slow"
    resumed = build("killed", resume="auto", **settings)
    assert 0 < resumed.progress.step < 24
    resumed.fit()
    same_checkpoint(straight.store.folder, resumed.store.folder)
    assert scalars(straight) == scalars(resumed)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_entry_with_the_resume_command_and_128_more(tiny_config, number: signal.Signals) -> None:
    config = tiny_config(max_steps=500, num_workers=1)
    if number == signal.SIGTERM:  # the one that schedulers send ends a whole interpreter
        process = subprocess.Popen(
            command(config), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    else:
        process = start_warm(command(config)[1:])
    wait_for_step(Path(config.output.log_dir), 2, process)
    os.kill(process.pid, number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number, output
    assert "--resume auto" in output and "Stopped after step" in output
    assert find_checkpoint("auto", config.output.output_dir).step >= 2
