"""A second stage starts from the weights of a first one, and refuses what would not be the same network."""

from __future__ import annotations

import json
import os
import shutil
import signal
from contextlib import closing
from pathlib import Path

import pytest
import torch

from bitgen.checkpoint.format import checkpoint_folders, find_checkpoint, read_state, step_of
from bitgen.checkpoint.manifest import CheckpointFiles
from bitgen.config import ConfigError
from bitgen.data.text_shards import tokenizer_sha256
from bitgen.data.tokenizer import load_tokenizer
from bitgen.evaluation.babylm.submission.model import read_submission_model
from bitgen.export.revisions import export_run
from bitgen.machine.devices import start_processes
from bitgen.run import build_trainer
from bitgen.tasks import TASKS
from bitgen.tasks.chain import split_first_stage
from bitgen.trained import open_model
from bitgen.training.origin import words_before
from bitgen.training.trainer import Trainer
from support.runs import command, fit_until, same_checkpoint
from support.warm import run_warm


@pytest.fixture
def first_stage(build) -> str:
    trainer = build("first", max_steps=3, ema_decay=0.5)
    trainer.fit()
    return trainer.config.output.output_dir


def test_weights_are_the_trained_ones_and_counters_start_anew(build, first_stage: str) -> None:
    second = build("second", init_from=first_stage)
    trained = open_model(first_stage).model.state_dict()  # averaged, as the first run keeps them
    started = second.objective.model.state_dict()
    assert all(torch.equal(started[name], trained[name]) for name in trained)
    assert second.progress.step == 0 and second.progress.words_seen == 0
    assert second.fit()
    assert not torch.equal(second.objective.model.state_dict()["final_norm.weight"], trained["final_norm.weight"])


def words_at(run: str) -> int:
    """Words that the model of a run had seen in it."""
    return read_state(CheckpointFiles(open_model(run).folder)).state["progress"]["words_seen"]


def test_an_export_counts_the_words_of_both_runs_and_knows_no_passes(build, first_stage: str, tmp_path) -> None:
    second = build("second", init_from=first_stage, max_steps=2)
    second.fit()
    before, own = words_at(first_stage), words_at(second.config.output.output_dir)
    for run, words in ((first_stage, before), (second.config.output.output_dir, before + own)):
        export = export_run(str(run), str(tmp_path / f"export{words}"), False, False, {})
        kept = json.loads((export / "config.json").read_text())["trained_with"]
        card = (export / "README.md").read_text()
        is_first = run == first_stage
        assert kept["words_seen"] == words and ("passes" in kept) == is_first
        assert kept.get("words_since_another_run") == (None if is_first else own)
        assert f"words seen, all epochs counted | {words:,}" in " ".join(card.split())
        assert ("since it started from another run" in card) != is_first
        assert read_submission_model(export).words_seen == words


def test_what_started_from_a_run_that_does_not_tell_its_words_tells_none(build, first_stage: str, tmp_path) -> None:
    silent = export_run(first_stage, str(tmp_path / "silent"), False, False, {})
    settings = json.loads((silent / "config.json").read_text())
    del settings["trained_with"]["words_seen"]
    (silent / "config.json").write_text(json.dumps(settings))
    second = build("second", init_from=str(silent), max_steps=2)
    second.fit()
    third = build("third", init_from=second.config.output.output_dir, max_steps=2)
    third.fit()
    for trainer in (second, third):
        run = trainer.config.output.output_dir
        export = export_run(run, str(tmp_path / "export" / Path(run).parent.name), False, False, {})
        kept = json.loads((export / "config.json").read_text())["trained_with"]
        assert kept["words_since_another_run"] == words_at(run) and not {"words_seen", "passes"} & set(kept)
        assert read_submission_model(export)[2:4] == (None, None)


def test_a_run_that_is_resumed_without_the_flag_still_started_from_another(build, first_stage: str, tmp_path) -> None:
    fit_until(build("second", init_from=first_stage), 3)
    resumed = build("second", resume="auto")
    resumed.fit()
    run = resumed.config.output.output_dir
    trained = open_model(run)
    assert read_state(CheckpointFiles(trained.folder)).state["started_from"] == {"words_seen": words_at(first_stage)}
    assert trained.config.training.init_from == first_stage
    kept = json.loads((export_run(run, str(tmp_path / "export"), False, False, {}) / "config.json").read_text())
    assert kept["trained_with"]["words_since_another_run"] == words_at(run)
    assert kept["trained_with"]["words_seen"] == words_at(run) + words_at(first_stage)


def test_a_run_of_new_weights_is_none_that_started_from_another_whatever_a_resume_names(
    build, first_stage: str, tmp_path
) -> None:
    fit_until(build("own"), 3)
    resumed = build("own", init_from=first_stage, resume="auto")
    resumed.fit()
    run = resumed.config.output.output_dir
    kept = json.loads((export_run(run, str(tmp_path / "export"), False, False, {}) / "config.json").read_text())
    assert kept["trained_with"]["words_seen"] == words_at(run) and "words_since_another_run" not in kept["trained_with"]


def test_a_checkpoint_from_before_states_said_so_goes_on_without_saying(build, first_stage: str) -> None:
    fit_until(build("old", init_from=first_stage), 3)
    checkpoint = find_checkpoint("auto", build("old", resume="auto").config.output.output_dir)
    assert checkpoint is not None and checkpoint.state.pop("started_from")
    resumed = build("old", resume="auto")
    resumed._restore(checkpoint)
    assert resumed.snapshots.origin == {}
    assert words_before(checkpoint.state, first_stage) is None and words_before(checkpoint.state, None) == 0


def test_a_run_that_counts_words_anew_says_so_at_its_start(build, first_stage: str, caplog) -> None:
    def warned(run: str, **settings: object) -> str:
        caplog.clear()
        build(run, **settings)
        return " ".join(record.getMessage() for record in caplog.records if "counted anew" in record.getMessage())

    counted = dict(words_seen_checkpoints=True, max_words_seen=10**6)
    said = warned("second", init_from=first_stage, **counted)
    assert f"has seen {words_at(first_stage):,} words" in said
    assert "max_words_seen 1,000,000 and words_seen_checkpoints count those of this run alone" in said
    assert "BabyLM means all words by chck_1M: train without init_from" in said
    assert "chck_1M" not in warned("third", init_from=first_stage, max_words_seen=10**6)
    assert not warned("fourth", init_from=first_stage) and not warned("fifth", **counted)


def test_a_resumed_second_stage_goes_on_from_its_own_checkpoint(build, first_stage: str) -> None:
    whole = build("whole", init_from=first_stage)
    whole.fit()
    fit_until(build("cut", init_from=first_stage), 3)
    resumed = build("cut", init_from=first_stage, resume="auto")
    assert resumed.progress.step == 3
    resumed.fit()
    expected, found = whole.objective.model.state_dict(), resumed.objective.model.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"vocab_size": 261}, "a tokenizer of 300 tokens but vocab_size is 261: use --vocab_size 300"),
        ({"ffn_dim": 24}, r"another network: \d+ of its weights .* first decoder\.blocks"),
        ({"use_memory": False}, "another network"),
    ],
)
def test_another_network_is_refused(build, first_stage: str, changed: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build("second", init_from=first_stage, **changed)


def test_a_tokenizer_to_train_is_that_of_the_model(build, first_stage: str) -> None:
    """Of other captions, as another seed draws them, a tokenizer would be another."""
    theirs = tokenizer_sha256(open_model(first_stage).tokenizer)

    def kept(trainer: Trainer) -> str:
        return tokenizer_sha256(load_tokenizer(f"{trainer.config.output.output_dir}/tokenizer"))

    assert kept(build("other", seed=4)) != theirs
    whole = build("whole", seed=4, init_from=first_stage)
    assert kept(whole) == theirs
    whole.fit()
    fit_until(build("cut", seed=4, init_from=first_stage), 3)
    resumed = build("cut", seed=4, init_from=first_stage, resume="auto")
    assert resumed.progress.step == 3 and kept(resumed) == theirs
    resumed.fit()
    same_checkpoint(whole.config.output.output_dir, resumed.config.output.output_dir)
    elsewhere = build("elsewhere", seed=4, init_from=first_stage, resume=resumed.config.output.output_dir)
    assert kept(elsewhere) == theirs and elsewhere.progress.step == resumed.progress.step


def test_a_vocabulary_larger_than_its_tokenizer_is_not_taken_over(build, first_stage: str) -> None:
    tokenizer = f"{first_stage}/tokenizer"
    larger = build("larger", tokenizer=tokenizer, vocab_size=320, max_steps=1)
    larger.fit()
    folder = larger.config.output.output_dir
    with pytest.raises(ConfigError, match=r"vocabulary of 320 and a tokenizer of 300 .*Write tokenizer .*tokenizer"):
        build("second", init_from=folder, vocab_size=320)
    build("second", init_from=folder, vocab_size=320, tokenizer=f"{folder}/tokenizer")


def test_another_tokenizer_is_refused(build, first_stage: str) -> None:
    build("other", seed=4)
    other = f"{first_stage}/../../other/checkpoints/tokenizer"
    with pytest.raises(ConfigError, match=r"another tokenizer.*Write tokenizer .*first.checkpoints.tokenizer"):
        build("second", init_from=first_stage, tokenizer=other)


def test_a_captioner_s_untrained_matching_head_may_be_another(build) -> None:
    alone = dict(contrastive_weight=0.0, itm_weight=0.0, text_loss_weight=1.0)
    first = build("first", max_steps=2, **alone)
    first.fit()
    second = build("second", init_from=first.config.output.output_dir, itm_likelihood=True, text_loss_weight=1.0)
    trained, started = (trainer.objective.model.state_dict() for trainer in (first, second))
    assert torch.equal(started["final_norm.weight"], trained["final_norm.weight"])
    assert started["itm_head.weight"].shape == (2, 2) and not started["itm_head.weight"].any()


def test_a_missing_folder_is_named(build, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere.*no such folder"):
        build("second", init_from=str(tmp_path / "nowhere"))


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    """A first run as its file says it: captions alone, of another length."""
    path = tmp_path / "captions.yaml"
    path.write_text(
        "objective: {contrastive_weight: 0, itm_weight: 0, text_loss_weight: 1}\n"
        "training: {max_steps: 5, batch_size: 4, grad_accum_steps: 1, learning_rate: 1e-3, warmup_steps: 1, seed: 7}\n"
        "output: {save_steps: 2, output_dir: elsewhere}\n"
    )
    return str(path)


def test_a_file_is_a_run_to_train_first(tiny_config, recipe: str) -> None:
    config = tiny_config(init_from=recipe, ffn_dim=48, seed=3, resume="auto")
    first, then = split_first_stage(config)
    assert then.training.init_from == first.output.output_dir == f"{config.output.output_dir}/first"
    assert first.output.log_dir == f"{config.output.log_dir}/first" and first.output.save_steps == 2
    assert (first.training.max_steps, first.training.batch_size, first.objective.contrastive_weight) == (5, 4, 0)
    assert (first.training.seed, first.training.device, first.training.resume) == (3, "cpu", "auto")
    assert first.model == config.model and first.data == config.data and first.training.init_from is None
    assert split_first_stage(tiny_config(init_from="runs/a")) == (None, tiny_config(init_from="runs/a"))


def test_the_first_run_of_stage_2_asks_as_its_file_says(tiny_config, tmp_path: Path) -> None:
    """A run by reinforcement would be reinforced from the start, else, and the right answers never taught."""
    path = tmp_path / "supervised.yaml"
    asked = "reasoning: {question_data: elsewhere, rationale: clauses, max_hops: 2}"
    path.write_text(f"{asked}\ntraining: {{init_from: a}}\nobjective: {{text_loss_weight: 1}}\n")
    changes = dict(train_data=None, val_data=None, question_data="scenes", reinforcement="star", tokenizer="extend")
    changes |= dict(vision_encoder="random", text_loss_weight=1.0, grad_accum_steps=1, rollout_tokens=12)
    first, then = split_first_stage(tiny_config(init_from=str(path), **changes))
    assert (first.reasoning.reinforcement, first.reasoning.max_hops) == ("none", 2)
    assert (first.reasoning.question_data, first.reasoning.question_val_data) == ("scenes", None)
    assert then.reasoning.reinforcement == "star"


@pytest.mark.parametrize("cut_in", ["first", "second"])
def test_an_interrupted_pair_of_runs_ends_as_an_uninterrupted_one(tiny_config, recipe: str, main, cut_in: str) -> None:
    assert main("whole", init_from=recipe)[0] == 0
    for config in split_first_stage(tiny_config("cut", init_from=recipe)):
        trainer = build_trainer(
            TASKS["stage1"], config, start_processes(config.training.device, config.training.use_ddp)
        )
        with closing(trainer.monitor):
            if (cut_in == "first") == config.output.output_dir.endswith("first"):
                fit_until(trainer, 3)
                break
            trainer.fit()
    if cut_in == "second":  # what it started from is no longer needed
        shutil.rmtree(f"{tiny_config('cut').output.output_dir}/first")
    assert main("cut", init_from=recipe, resume="auto")[0] == 0
    for part in ("", "/first")[: 2 if cut_in == "first" else 1]:
        same_checkpoint(*(tiny_config(run).output.output_dir + part for run in ("whole", "cut")))
    status, message = main("cut", init_from=recipe)
    assert status == 2 and "holds checkpoints of another run" in message


def test_a_signal_in_the_last_step_of_the_first_run_stops_both(
    tiny_config, recipe: str, main, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = Trainer.save

    def save_at_a_signal(trainer: Trainer, *arguments: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        save(trainer, *arguments)

    Path(recipe).write_text(Path(recipe).read_text().replace("save_steps: 2", "save_steps: 1000"))
    monkeypatch.setattr(Trainer, "save", save_at_a_signal)
    assert main(init_from=recipe)[0] == 128 + signal.SIGTERM
    monkeypatch.undo()
    output = tiny_config().output.output_dir
    assert checkpoint_folders(f"{output}/first") and not checkpoint_folders(output)


def test_two_processes_train_both_runs(tiny_config, recipe: str) -> None:
    likelihood = dict(itm_likelihood=True, text_loss_weight=1.0)
    config = tiny_config("two", init_from=recipe, max_steps=4, batch_size=4, lora_warmup_steps=2, **likelihood)
    # Whose ranks are compared at each checkpoint.
    done = run_warm(command(config, use_ddp=True, num_gpus=2)[1:], processes=2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [step_of(folder) for folder in checkpoint_folders(config.output.output_dir)] == [4]


def test_a_first_run_that_cannot_be_is_refused_before_anything_is_trained(tiny_config, recipe: str, main) -> None:
    Path(recipe).write_text("training: {init_from: more.yaml}")
    status, message = main(init_from=recipe)
    assert status == 2 and "one run before another" in message
    Path(recipe).write_text("objective: {contrastive_weight: -1}")
    status, message = main(init_from=recipe)
    assert status == 2 and "captions.yaml, trained first on this run's data and network" in message
    status, message = main(init_from="nowhere.yaml")
    assert status == 2 and "nowhere.yaml" in message


def test_heads_and_learned_adapters_mean_the_same_at_the_start(build) -> None:
    """None of these changes a weight's shape."""
    first = build("first", lora_warmup_steps=2, max_steps=4)
    first.fit()
    start = str(first.store.folder)
    heads = first.objective.model.vision_encoder.tower.config.num_attention_heads
    for changes, named in (
        ({"lora_alpha": 64}, "lora_alpha was"),
        ({"use_rslora": True}, "use_rslora was"),
        ({"vision_num_heads": 2 * heads}, "vision_num_heads was"),
    ):
        with pytest.raises(ConfigError, match=f"init_from .*: {named} .* mean something else"):
            build("second", init_from=start, **changes)
    build("third", init_from=start).monitor.close()
