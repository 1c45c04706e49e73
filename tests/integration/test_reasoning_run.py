"""Runs of stage 2: from a captioner, by right answers and by reinforcement; resumed exactly, asked, and exported."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image

from bitgen.commands import ask, evaluate, export
from bitgen.config import ConfigError
from bitgen.data.questions.marked_text import MARKS, MarkedTokens
from bitgen.data.scenes.descriptions import scene_rng
from bitgen.data.scenes.tables import render_table, table_scene
from bitgen.evaluation.replies import Decoding, write_replies
from bitgen.machine.devices import start_processes
from bitgen.memory.encoder import PairEncoder
from bitgen.run import build_trainer
from bitgen.tasks import task_of
from bitgen.tasks.rollouts import RolloutSource
from bitgen.trained import open_model
from bitgen.training.trainer import Trainer
from support.reasoning import QUESTIONS, REINFORCED, config_of, picture, trained
from support.runs import same_checkpoint
from support.warm import run_alone


def stopped_in_its_step(step: int, trainer: Trainer) -> None:
    """Train until SIGTERM arrives as the batch of a step, counted from 1, is drawn."""
    draw = trainer.source.draw

    def drawn() -> list:
        if trainer.progress.step == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return draw()

    trainer.source.draw = drawn
    assert not trainer.fit()
    trainer.monitor.close()


def test_it_begins_with_the_captioners_weights(tmp_path: Path, captioner: str) -> None:
    config = config_of(tmp_path, init_from=captioner, **QUESTIONS)
    trainer = build_trainer(task_of(config), config, start_processes("cpu", False))
    before, model = open_model(captioner), trainer.objective.model
    table = before.model.embeddings.token.weight
    assert torch.equal(model.embeddings.token.weight[: len(table)], table)
    for name, tensor in before.model.state_dict().items():
        if name != "embeddings.token.weight" and not name.startswith("itm_head."):  # never trained: it may be new
            assert torch.equal(model.state_dict()[name], tensor), name
    tokenizer = trainer.source.count_words.tokenizer
    assert {**tokenizer.get_vocab(), **before.tokenizer.get_vocab()} == tokenizer.get_vocab()
    word = before.tokenizer(" colour", add_special_tokens=False)["input_ids"]
    assert len(word) > 1
    (new,) = tokenizer(" colour", add_special_tokens=False)["input_ids"]
    assert torch.allclose(model.embeddings.token.weight[new], table[word].mean(dim=0))
    trainer.monitor.close()


def test_a_second_run_keeps_what_the_first_learned(tmp_path: Path, answering: str) -> None:
    config = config_of(tmp_path, init_from=answering, **{**QUESTIONS, **REINFORCED})
    trainer = build_trainer(task_of(config), config, start_processes("cpu", False))
    for name, tensor in open_model(answering).model.state_dict().items():
        if not name.startswith("itm_head."):
            assert torch.equal(trainer.objective.model.state_dict()[name], tensor), name
    trainer.monitor.close()


def test_every_parameter_that_should_train_trains(tmp_path: Path, captioner: str) -> None:
    config = config_of(tmp_path, init_from=captioner, **QUESTIONS)
    trainer = trained(config)
    before = open_model(captioner).model.state_dict()
    still = {
        name for name, tensor in trainer.objective.model.state_dict().items()
        if name in before and before[name].shape == tensor.shape and torch.equal(before[name], tensor)
    }  # fmt: skip
    unreached = ("image_pooling.", "image_projection.", "text_projection.", "itm_head.", "memory.", "vision_encoder.")
    assert {name for name in still if not name.startswith(unreached)} == set()
    assert any(name.startswith("vision_encoder.") and name not in still for name in before)


@pytest.mark.parametrize("how", [{}, REINFORCED], ids=["right answers", "reinforcement"])
def test_it_resumes_exactly(tmp_path: Path, captioner: str, how: dict[str, object]) -> None:
    settings = {**QUESTIONS, **how, "save_steps": 2}
    whole = config_of(tmp_path / "whole", init_from=captioner, **settings)
    trained(whole)
    part = config_of(tmp_path / "part", init_from=captioner, **settings, resume="auto")
    stopped_in_its_step(2, build_trainer(task_of(part), part, start_processes("cpu", False)))
    shutil.copytree(captioner, tmp_path / "moved")  # what it began from may be gone: the path is not read again
    resumed = config_of(tmp_path / "part", init_from=str(tmp_path / "nowhere"), **settings, resume="auto")
    trained(resumed)
    same_checkpoint(Path(whole.output.output_dir), Path(part.output.output_dir))


def test_it_goes_on_in_another_folder_with_its_tokenizer(tmp_path: Path, captioner: str) -> None:
    first = config_of(tmp_path / "first", init_from=captioner, **{**QUESTIONS, "max_steps": 2})
    trained(first)
    run = Path(first.output.output_dir)
    [checkpoint] = run.glob("step-*")
    then = config_of(tmp_path / "then", init_from=captioner, **{**QUESTIONS, "max_steps": 3, "resume": str(checkpoint)})
    trained(then)
    assert [path.name for path in Path(then.output.output_dir).glob("step-*")] == ["step-00000003"]
    assert open_model(then.output.output_dir).tokenizer.get_vocab() == open_model(run).tokenizer.get_vocab()


def test_replies_are_weighed_against_their_group(tmp_path: Path, captioner: str, caplog) -> None:
    config = config_of(tmp_path, init_from=captioner, **{**QUESTIONS, **REINFORCED})
    trainer = build_trainer(task_of(config), config, start_processes("cpu", False))
    source = trainer.source
    assert isinstance(source, RolloutSource)
    unscored = [0.5, float("inf"), float("nan"), float("nan")]
    worth = iter([1.0, 0.0, 0.0, 0.0, *[0.5] * 4, *unscored, 0.0, 0.0, 1.0, 1.0])
    source.reward = lambda one: next(worth)
    source.start(trainer.stage, 0)
    (batch,) = source.draw()
    inputs = batch.inputs
    drawn = ~inputs["sampled"].isnan()
    rows = drawn.any(dim=1).nonzero()[:, 0]
    assert "3 of 16 rewards could not be computed (the last: it is nan)" in caplog.text
    assert len(rows) == 8  # of two groups: equal rewards teach nothing, and one could not be scored
    constant = config.training.batch_size * 4 * config.reasoning.rollout_tokens / 4
    for row, advantage in zip(rows.tolist(), [1, -1 / 3, -1 / 3, -1 / 3, -2 / 3, -2 / 3, 2 / 3, 2 / 3], strict=True):
        assert inputs["weights"][row][drawn[row]] == pytest.approx(advantage / constant)
        assert (inputs["labels"][row][drawn[row]] >= 0).all()
    trainer.objective.begin(0.0, logged=True)
    output = trainer.objective(inputs)
    assert output.metrics["sampler_gap"] < 1e-4
    assert output.metrics["idle_groups"] == output.metrics["unscored_groups"] == 0.25
    assert output.metrics["reward"] == pytest.approx((1 + 2 + 2) / 12)  # of those that were scored
    assert "sampler_gap" not in caplog.text
    apart = {**inputs, "sampled": inputs["sampled"] + 0.01}
    for _ in range(2):
        assert trainer.objective(apart).metrics["sampler_gap"] == pytest.approx(0.01, rel=0.05)
    assert caplog.text.count("(sampler_gap)") == 1
    trainer.monitor.close()


def test_a_gradient_step_makes_rewarded_replies_likelier(tmp_path: Path, captioner: str) -> None:
    config = config_of(tmp_path, init_from=captioner, **{**QUESTIONS, **REINFORCED, "supervised_weight": 0.0})
    trainer = build_trainer(task_of(config), config, start_processes("cpu", False))
    source, objective = trainer.source, trainer.objective
    rng = scene_rng("rewards")
    source.reward = lambda one: rng.random()
    source.start(trainer.stage, 0)
    (batch,) = source.draw()
    before = objective(batch.inputs).loss
    before.backward()
    with torch.no_grad():
        for parameter in objective.parameters():
            if parameter.grad is not None:
                parameter -= 1e-3 * parameter.grad / max(float(parameter.grad.norm()), 1e-9)
    assert objective(batch.inputs).loss < before
    trainer.monitor.close()


def test_nothing_to_learn_from_ends_the_run_with_the_reason(tmp_path: Path, captioner: str) -> None:
    settings = {**QUESTIONS, **REINFORCED, "idle_steps": 2, "process_weight": 0.0}
    config = config_of(tmp_path, init_from=captioner, **settings)
    trainer = build_trainer(task_of(config), config, start_processes("cpu", False))
    trainer.source.reward = lambda one: 0.0
    with pytest.raises(ValueError, match="in 2 steps in a row all replies .* harder or easier questions"):
        trainer.fit()
    trainer.monitor.close()


def test_a_reward_that_always_raises_ends_the_run_with_its_error(tmp_path: Path, captioner: str, caplog) -> None:
    config = config_of(tmp_path, init_from=captioner, **{**QUESTIONS, **REINFORCED, "idle_steps": 2})
    trainer = build_trainer(task_of(config), config, start_processes("cpu", False))
    trainer.source.reward = lambda one: 1 / 0
    with pytest.raises(ValueError, match="no reward could be computed .ZeroDivisionError: division by zero.. Mend"):
        trainer.fit()
    assert caplog.text.count("rewards could not be computed (the last: ZeroDivisionError") == 2  # once a step
    trainer.monitor.close()


def test_a_resumed_run_counts_the_steps_without_anything_to_learn_on(tmp_path: Path, captioner: str) -> None:
    settings = {**QUESTIONS, **REINFORCED, "idle_steps": 3, "process_weight": 0.0, "resume": "auto", "max_steps": 5}
    config = config_of(tmp_path, init_from=captioner, **settings)
    steps = []
    for again in (False, True):
        trainer = build_trainer(task_of(config), config, start_processes("cpu", False))
        trainer.source.reward = lambda one: 0.0
        if again:
            with pytest.raises(ValueError, match="in 3 steps in a row"):
                trainer.fit()
        else:
            stopped_in_its_step(2, trainer)
        trainer.monitor.close()
        steps.append(trainer.progress.step)
    assert steps == [2, 2]  # the third, the first of the resumed run, had nothing either


@pytest.mark.parametrize("question_first", [False, True])
@pytest.mark.parametrize("think", ["True", "False"])
def test_a_person_asks(tmp_path: Path, answering: str, think: str, question_first: bool, capsys) -> None:
    drawn = tmp_path / "boxes.png"
    words = [picture(tmp_path), "where is the red star?"]
    command = [
        *(words[::-1] if question_first else words),
        "--model",
        answering,
        "--think",
        think,
        "--picture",
        str(drawn),
    ]
    ask.main(command)
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.startswith("answer: ")]) == 1
    assert all(line.startswith(("because: ", "answer: ", "  [")) for line in lines)
    assert Image.open(drawn).size >= (480, 480)


ASKED_WRONGLY = {
    "no picture": (["what is it?"], "0 files: a question to this model is about one picture"),
    "two pictures": (["{picture}", "{picture}", "what is it?"], "2 files"),
    "not a picture": (["{text}", "what is it?"], "notes.txt"),
    "a name that is no PNG": (["{picture}", "what is it?", "--picture", "boxes.jpg"], "ends in .png"),
    "an empty question": (["{picture}", "--question", " "], "empty"),
    "a question without an end": (["{picture}", "--question", "what " * 400], "context"),
    "beams": (["{picture}", "what is it?", "--num_beams", "3"], "--num_beams"),
    "a file that is not there": (["my holiday.jpg"], "my holiday.jpg"),
    "a memory": (["{picture}", "what is it?", "--memory", "x.memory"], "does not speak from a memory"),
    "over the picture itself": (["{picture}", "what is it?", "--picture", "{picture}"], "is the picture itself"),
    "two questions": (["what is it?", "{picture}", "where is it?"], "two questions: what is it? and where is it?"),
    "a scene and a file": (["{picture}", "what is it?", "--scene", "1"], "about one picture"),
}


@pytest.mark.parametrize("name", ASKED_WRONGLY)
def test_bad_questions_are_refused(
    tmp_path: Path, answering: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words, expected = ASKED_WRONGLY[name]
    (tmp_path / "notes.txt").write_text("no picture")
    files = {"picture": picture(tmp_path), "text": str(tmp_path / "notes.txt")}
    with pytest.raises(SystemExit) as stopped:
        ask.main([*(word.format(**files) for word in words), "--model", answering])
    assert stopped.value.code == 2
    assert expected in capsys.readouterr().err


def test_a_built_in_scene_is_asked_about(answering: str, capsys: pytest.CaptureFixture[str]) -> None:
    ask.main(["what is at <b3><b8><b7><b12>?", "--scene", "1", "--model", answering])
    assert "answer: " in capsys.readouterr().out


def test_a_tokenizer_is_extended_once(tmp_path: Path, answering: str) -> None:
    settings = {**QUESTIONS, "question_data": "sort_of_clevr", "max_steps": 1}
    config = config_of(tmp_path, init_from=answering, **settings)
    trained(config)
    first, second = open_model(answering).tokenizer, open_model(config.output.output_dir).tokenizer
    assert first.get_vocab() == second.get_vocab()


def test_a_tokenizer_of_a_run_that_came_no_further_is_made_anew(tmp_path: Path, captioner: str) -> None:
    small = config_of(tmp_path, init_from=captioner, **{**QUESTIONS, "vocab_size": 520})
    build_trainer(task_of(small), small, start_processes("cpu", False)).monitor.close()
    large = config_of(tmp_path, init_from=captioner, **{**QUESTIONS, "vocab_size": 600})
    trainer = build_trainer(task_of(large), large, start_processes("cpu", False))
    assert trainer.objective.model.config.vocab_size > 520
    trainer.monitor.close()


def test_a_captioner_answers_no_questions(tmp_path: Path, captioner: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        ask.main([picture(tmp_path), "what is it?", "--model", captioner])
    assert "this model answers no questions" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        evaluate.main(["--checkpoint", captioner, "--data", "scenes", "--task", "reasoning"])
    assert "was not trained to answer questions" in capsys.readouterr().err


def test_it_is_evaluated(tmp_path: Path, answering: str, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "results.json"
    command = ["--checkpoint", answering, "--data", "scenes", "--task", "reasoning,grounding", "--max_images", "4"]
    evaluate.main([*command, "--output", str(output), "--predictions", str(tmp_path / "said.json")])
    said = capsys.readouterr().out
    assert "after a rationale" in said and "acc@.5" in said
    assert output.is_file() and (tmp_path / "said.json").is_file()


def test_an_export_answers_with_transformers_alone(tmp_path: Path, answering: str) -> None:
    folder = tmp_path / "export"
    export.main(["--checkpoint", answering, "--output", str(folder)])
    opened = open_model(folder)
    assert opened.config.reasoning.question_data == "scenes"
    tokens = MarkedTokens(opened.tokenizer)
    prompt = tokens.prompt("where is the red star?", thinks=False)
    scene = table_scene(("file", 1))
    pixels = opened.processor.image(render_table(scene, 120, ("file", 1)), "scene")[None]
    run = open_model(answering)
    written = [
        one.model.generate(torch.tensor([prompt]), pixel_values=pixels, max_new_tokens=6, do_sample=False)
        for one in (opened, _generating(run))
    ]
    assert torch.equal(*written)
    assert set(MARKS) <= set(opened.tokenizer.get_vocab())
    (tmp_path / "empty").mkdir()
    done = run_alone([Path(__file__).parent / "ask_export.py", str(folder), picture(tmp_path)], tmp_path / "empty")
    assert done.returncode == 0, done.stderr[-3000:]
    [pixels] = PairEncoder(run.model, run.processor).inputs([picture(tmp_path)]).values()
    seen = run.model.pool_image_tokens(run.model.encode_image(pixel_values=pixels).image_tokens)
    for thinks, (ids, said) in zip((False, True), json.loads(done.stdout.splitlines()[-1]), strict=True):
        prompt = tokens.prompt("what colour is the star?", thinks)
        assert ids == prompt
        ours = write_replies(run.model, tokens, seen, [prompt], Decoding(20, whole_boxes=False))
        assert said.split() == run.tokenizer.decode(ours.ids[0], skip_special_tokens=True).split()


def _generating(run: object) -> object:
    from bitgen.evaluation.generation import language_model

    return run._replace(model=language_model(run.model, run.tokenizer))


CONTRADICTIONS = {
    "a tokenizer of its own": (dict(tokenizer="train"), "Write tokenizer extend"),
    "no model to start from": (dict(init_from=None), "init_from is none"),
    "pairs beside": (dict(train_data="scenes"), "train_data is scenes, but stage 2 asks"),
    "too many objects": (dict(max_objects=9), "Write 3 to 8"),
    "too long chains": (dict(max_hops=5), "Write 4 or less"),
    "a group of one": (dict(reinforcement="star", rollout_group=1), "no others to be better than"),
    "replies longer than the context": (dict(reinforcement="star", rollout_tokens=200), "Write less"),
    "replies without rationales": (dict(reinforcement="star", rationale="none"), "begin with a rationale"),
    "replies about no picture": (dict(reinforcement="star", picture_shown="nothing"), "Write picture_shown own"),
    "stage 1 with the tokenizer of stage 2": (dict(question_data=None), "there is no question_data"),
    "no such model": (dict(init_from="nowhere"), "nowhere: there is no such folder"),
    "rollouts in half precision": (dict(reinforcement="star", precision="bf16"), "Write precision fp32"),
    "rollouts in parts": (dict(reinforcement="star", grad_accum_steps=2), "is one batch. Write 1"),
    "another width": (dict(embed_dim=64, vision_embed_dim=64), "holds another network"),
    "no room for the marks": (dict(vocab_size=310), "marks come to them"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_contradictions_are_named(tmp_path: Path, captioner: str, name: str) -> None:
    changes, expected = CONTRADICTIONS[name]
    settings = {**QUESTIONS, "init_from": captioner, **changes}
    with pytest.raises((ConfigError, ValueError), match=expected):
        config = config_of(tmp_path, **settings)
        build_trainer(task_of(config), config, start_processes("cpu", False))
