"""Budgets of words and passes end a run whole; checkpoints by words fall on schedule, stay, and can be exported."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import export
from bitgen.checkpoint.format import checkpoint_folders
from bitgen.data.loader_source import LoaderSource
from bitgen.export.revisions import seen_in_training
from bitgen.protocols import Batch
from bitgen.run import finish
from bitgen.trained import open_model
from bitgen.training import budget
from bitgen.training.skipped_records import TooManyBadRecords

NO_VALIDATION = dict(val_data=None, text_val_data=None)


@pytest.mark.parametrize("estimated", [True, False], ids=["planned", "by counting alone"])
def test_the_budget_of_words_is_kept_and_the_run_ends_whole(build, both, monkeypatch, caplog, estimated) -> None:
    if not estimated:  # as with a stream, whose words nobody knows before
        monkeypatch.setattr(LoaderSource, "words_per_step", lambda *_: 0)
    settings = both | dict(max_words_seen=2000, max_steps=100)
    trainer = build(**settings)
    step_words: list[int] = []
    step = trainer._step
    trainer._step = lambda drawn, stop: (
        step_words.append(sum(batch.counts.words for batch in drawn)),
        step(drawn, stop),
    )[1]
    assert trainer.fit()
    progress = trainer.progress
    assert progress.words_seen == sum(step_words) <= 2000
    assert progress.words_seen > 2000 - 2 * max(step_words) and 1 < progress.step < 100
    assert [path.name for path in checkpoint_folders(trainer.store.folder)] == [f"step-{progress.step:08d}"]
    assert trainer.scores[-1]["step"] == progress.validated_at == progress.step
    with caplog.at_level(logging.INFO):
        finish(trainer)
    assert f"{progress.words_seen / 2000:.1%} of max_words_seen 2,000" in caplog.text

    again = build(**settings, resume="auto")
    assert again.fit()
    assert (again.progress.step, again.progress.words_seen) == (progress.step, progress.words_seen)
    assert len(checkpoint_folders(again.store.folder)) == 1 and len(again.scores) == len(trainer.scores)


def test_a_budget_of_no_step_is_refused(main, both) -> None:
    status, said = main(**both | dict(max_words_seen=10))
    assert status == 2 and "max_words_seen 10 allows no step at all" in said


@pytest.mark.parametrize("ratio", [0.5, 0.2])
def test_max_epochs_cuts_at_the_part_that_is_seen_most_often(build, both, ratio: float) -> None:
    settings = dict(max_steps=None, num_epochs=50, max_epochs=2, text_batch_size=20, text_ratio=ratio)
    trainer = build(**both | NO_VALIDATION | settings)
    seen: dict[int, int] = {}
    step = trainer._step

    def count(drawn: list[Batch], stop: object) -> bool:
        for batch in drawn:
            for index in batch.indices.tolist():
                seen[index] = seen.get(index, 0) + 1
        return step(drawn, stop)

    trainer._step = count
    assert trainer.fit()
    assert max(seen.values()) == 2
    assert trainer.progress.step == trainer.stage.steps < 50 * trainer.stage.steps_per_epoch
    state = torch.load(trainer.store.newest / "training_state.pt", weights_only=True)
    said, data = seen_in_training(state), trainer.source.dataset
    assert said["passes"] == 2  # though an epoch is one through the text
    captions = sum(len(caption.split()) for caption in data.pairs.iter_captions())
    assert said["corpus_words"] == data.text.info.words + captions and captions > 0


# ---- checkpoints by words ----


@pytest.fixture
def small_millions(monkeypatch) -> None:
    """A million words are 150."""
    monkeypatch.setattr(budget, "MILLION", 150)


def milestones(folder: Path) -> list[str]:
    return sorted((path.name for path in folder.glob("chck_*")), key=lambda name: int(name[5:-1]))


def test_checkpoints_by_words_fall_on_schedule_stay_and_can_be_exported(
    build, both, small_millions, tmp_path, monkeypatch
) -> None:
    settings = both | NO_VALIDATION | dict(words_seen_checkpoints=True, max_steps=8, save_steps=1)
    every = build("every", **settings, max_checkpoints_to_keep=100)
    every.fit()
    words = {}
    for folder in checkpoint_folders(every.store.folder):
        state = torch.load(folder / "training_state.pt", weights_only=True)
        words[state["step"]] = state["progress"]["words_seen"]
    expected: dict[str, int] = {}
    for step in sorted(words):
        reached = max((m for m in [*range(1, 11), *range(20, 101, 10)] if 150 * m <= words[step]), default=0)
        if reached and f"chck_{reached}M" not in expected:
            expected[f"chck_{reached}M"] = step
    assert len(expected) > 3

    few = build("few", **settings | dict(save_steps=1000, max_checkpoints_to_keep=1))
    few.fit()
    assert len(checkpoint_folders(few.store.folder)) == 1
    assert milestones(few.store.folder) == milestones(every.store.folder) == list(expected)
    for name, step in expected.items():
        one, other = (load_file(folder / "model.safetensors") for folder in (
            few.store.folder / name, every.store.folder / f"step-{step:08d}"
        ))  # fmt: skip
        assert all(torch.equal(one[key], other[key]) for key in {*one, *other})

    export.main(
        ["--checkpoint", str(few.store.folder), "--output", str(tmp_path / "export")]
        + ["--words_seen_checkpoints", "True"]
    )
    assert milestones(tmp_path / "export") == list(expected)
    last = list(expected)[-1]
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "export" / last, trust_remote_code=True)
    found, wanted = exported.state_dict(), open_model(few.store.folder / last).model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


@pytest.mark.parametrize("estimated", [True, False], ids=["planned", "by counting alone"])
def test_a_budget_of_a_milestone_reaches_it_though_no_step_may(build, both, monkeypatch, estimated) -> None:
    monkeypatch.setattr(budget, "MILLION", 2000)  # of which a step's words are less than a hundredth
    if not estimated:
        monkeypatch.setattr(LoaderSource, "words_per_step", lambda *_: 0)
    settings = both | NO_VALIDATION | dict(words_seen_checkpoints=True, save_steps=1000, max_steps=1000)
    trainer = build(**settings | dict(max_words_seen=2000, text_batch_size=1, batch_size=2, grad_accum_steps=1))
    assert trainer.fit()
    progress, folder = trainer.progress, trainer.store.folder
    assert 1980 <= progress.words_seen < 2000 and milestones(folder) == ["chck_1M"]
    kept = torch.load(folder / "chck_1M" / "training_state.pt", weights_only=True)
    assert kept["step"] == progress.step and kept["progress"]["milestone"] == 1


def test_a_milestone_is_made_up_for_after_a_kill_and_resuming_elsewhere_needs_none(build, both, small_millions) -> None:
    settings = both | NO_VALIDATION | dict(words_seen_checkpoints=True, max_steps=3)
    first = build("first", **settings)
    first.fit()
    assert first.progress.milestone_step == 3
    kept = first.store.folder / f"chck_{first.progress.milestone}M"
    for path in kept.iterdir():
        path.unlink()
    kept.rmdir()  # as if the process had ended between the two
    again = build("first", **settings, resume="auto")
    again.fit()
    assert (kept / "manifest.json").is_file()

    moved = build("moved", **settings | dict(max_steps=4), resume=str(first.store.folder / "step-00000003"))
    assert moved.fit() and moved.progress.step == 4


def test_a_step_that_reaches_a_milestone_and_ends_the_run_keeps_it(build, both, small_millions) -> None:
    settings = both | NO_VALIDATION | dict(words_seen_checkpoints=True, max_steps=8, save_steps=1000)
    trainer = build(**settings)
    count = trainer.throughput.end_step

    def ended(*counts):
        count(*counts)
        if trainer.progress.words_seen >= budget.MILLION:
            raise TooManyBadRecords("too many")

    trainer.throughput.end_step = ended
    with pytest.raises(TooManyBadRecords):
        trainer.fit()
    [name] = milestones(trainer.store.folder)
    [step] = checkpoint_folders(trainer.store.folder)
    one, other = (load_file(folder / "model.safetensors") for folder in (trainer.store.folder / name, step))
    assert all(torch.equal(one[key], other[key]) for key in {*one, *other})


def test_a_stop_in_the_step_that_reaches_a_milestone_keeps_it(build, both, small_millions) -> None:
    settings = both | NO_VALIDATION | dict(words_seen_checkpoints=True, max_steps=8, save_steps=1000)
    whole = build("whole", **settings)
    steps: list[int] = []
    keep = whole.store.keep_as
    whole.store.keep_as = lambda step, name: (steps.append(step), keep(step, name))[1]
    whole.fit()
    for at in (steps[0], steps[-1]):
        stopped = build(f"stopped{at}", **settings)
        draw = stopped.source.draw

        def signalled(draw=draw, trainer=stopped, at=at):
            if trainer.progress.step == at - 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return draw()

        stopped.source.draw = signalled
        stopped.fit()
        assert stopped.progress.step == at
        again = build(f"stopped{at}", **settings, resume="auto")
        again.fit()
        assert milestones(again.store.folder) == milestones(whole.store.folder)
        for name in milestones(whole.store.folder):
            found = [
                torch.load(trainer.store.folder / name / "training_state.pt", weights_only=True)["step"]
                for trainer in (again, whole)
            ]
            assert found[0] == found[1], name
