"""Stage 2 on what it did not draw: folders of questions and boxes, Sort-of-CLEVR; and whether answers are faithful."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bitgen.commands import evaluate
from bitgen.commands.evaluate_reasoning import evaluate_reasoning
from bitgen.config import ConfigError
from bitgen.data.questions.boxes import Box, box_text
from bitgen.data.questions.folder import FolderQuestions
from bitgen.data.questions.marked_text import Asked, MarkedTokens, Reply
from bitgen.data.questions.records import Question, QuestionFolder
from bitgen.data.questions.writer import writing_questions
from bitgen.data.sampler import SampleKey
from bitgen.data.scenes.descriptions import is_held_out_pair
from bitgen.data.scenes.rationales import write_rationale
from bitgen.data.scenes.tables import TableScene, render_table, table_scene
from bitgen.evaluation.asked import Model, boxes_of_folder, first_questions, score_folder
from bitgen.evaluation.asking import thinks_by_default, whether_to_think
from bitgen.evaluation.faithfulness import follow_rate, pasted, sampled, truncation
from bitgen.evaluation.reasoning import SPLITS, Answerer, Split, box_measures, problems
from bitgen.evaluation.replies import Decoding, replies_to, write_replies
from bitgen.machine.devices import start_processes
from bitgen.run import build_trainer
from bitgen.tasks import task_of
from bitgen.trained import open_model
from support.reasoning import QUESTIONS, config_of, trained

BOX = Box(0.25, 0.25, 0.75, 0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two pictures with three questions of each, one of them for a place; and a question without a picture."""
    path = tmp_path_factory.mktemp("questions") / "folder"
    with writing_questions(path, "a test") as writer:
        for number in range(2):
            file = io.BytesIO()
            render_table(table_scene(("folder", number)), 64, ("folder", number)).save(file, "PNG")
            row = writer.picture(f"{number}.png", file.getvalue())
            writer.add(Question(f"{number}-a", row, "what is it?", ("a ring", "ring"), "it is round", family="what"))
            writer.add(Question(f"{number}-b", row, "what colour?", ("red",), boxes=(BOX,), choices=("red", "blue")))
            writer.add(Question(f"{number}-c", row, "where is it?", (box_text(BOX),), boxes=(BOX,), family="where"))
        writer.add(Question("blind", -1, "what is seven?", ("a number",)))
    return str(path)


def test_a_run_on_a_folder_learns_its_questions(tmp_path: Path, captioner: str, folder: str, monkeypatch) -> None:
    monkeypatch.setattr("bitgen.tasks.reasoning_data._VALIDATED", 8)
    settings = {**QUESTIONS, "question_data": folder, "question_val_data": "scenes", "batch_size": 2}
    config = config_of(tmp_path, init_from=captioner, **settings)
    trainer = trained(config)
    assert trainer.progress.step == QUESTIONS["max_steps"]
    said = [record for record in _records(config.output.log_dir) if "train/loss" in record]
    assert said[-1]["train/loss"] < said[0]["train/loss"]
    held_out = [record for record in _records(config.output.log_dir) if "val/direct" in record][-1]
    shares = ("val/direct", "val/rationale", "val/where_acc@.5", "val/where_absent", "val/where_named")
    assert all(0 <= held_out[name] <= 100 for name in shares)
    assert trainer.progress.best_score == max(entry["score"] for entry in trainer.scores)
    assert trainer.scores[-1]["score"] == held_out["val/rationale"]


def test_a_run_without_rationales_is_asked_for_none_later(tmp_path: Path, captioner: str, folder: str, caplog) -> None:
    bare = tmp_path / "bare"
    with writing_questions(bare, "a test") as writer:
        file = io.BytesIO()
        render_table(table_scene(("folder", 0)), 64, ("folder", 0)).save(file, "PNG")
        writer.add(Question("a", writer.picture("0.png", file.getvalue()), "what is it?", ("a ring",)))
    settings = {**QUESTIONS, "question_data": str(bare), "question_val_data": None, "batch_size": 1, "max_steps": 2}
    config = config_of(tmp_path / "run", init_from=captioner, **settings, resume="auto")
    trained(config)
    opened = open_model(config.output.output_dir)
    assert opened.config.reasoning.rationale == "none" and not thinks_by_default(opened)
    assert not whether_to_think(opened, None)
    with pytest.raises(ValueError, match="trained without rationales, so it cannot say why"):
        whether_to_think(opened, True)
    caplog.clear()
    trained(config.replace(max_steps=3))  # goes on, and finds nothing changed but its steps
    changed = [one.getMessage() for one in caplog.records if "changed since" in one.getMessage()]
    assert changed == ["changed since the checkpoint: max_steps was 2 and is 3"]
    kept = type(config).load(Path(config.output.output_dir) / "latest" / "config.yaml")  # its own settings resume it
    bare.rename(tmp_path / "moved")  # and its folder may be elsewhere
    elsewhere = kept.replace(max_steps=4, resume="auto", question_data=str(tmp_path / "moved"))
    assert trained(elsewhere).progress.step == 4


def test_questions_are_found_by_kind(folder: str) -> None:
    reader = QuestionFolder(folder)
    assert [reader[row].id for row in reader.about_pictures(True)] == ["0-b", "0-c", "1-b", "1-c"]
    assert len(reader.about_pictures(False)) == 6  # none without a picture
    assert [one.id for one in first_questions(reader, 9, True)] == ["0-c", "1-c"]
    assert [one.id for one in first_questions(reader, 3, False)] == ["0-a", "0-b", "1-a"]
    assert reader.words(0) == "what is it? it is round a ring"


def test_answers_may_be_as_long_as_the_context(answering: str, folder: str, monkeypatch) -> None:
    """A rationale that people wrote is longer than those of scenes."""
    opened, lengths = open_model(answering), []

    def replies(model, tokens, seen, prompts, thinks, decoding):
        lengths.append(decoding.max_new_tokens)
        return [Reply("", "a ring")] * len(prompts)

    monkeypatch.setattr("bitgen.evaluation.asked.replies_to", replies)
    score_folder(Model(opened.model, opened.processor), QuestionFolder(folder), 4, True)
    assert set(lengths) == {opened.model.config.max_seq_len}


def _records(log_dir: str) -> list[dict]:
    return [json.loads(line) for line in (Path(log_dir) / "metrics.jsonl").read_text().splitlines()]


def test_a_folder_validates_words_and_boxes(tmp_path: Path, captioner: str, folder: str, answering: str) -> None:
    from bitgen.tasks.reasoning_data import validator_of

    settings = {**QUESTIONS, "question_val_data": folder}
    config = config_of(tmp_path, init_from=captioner, **settings, eval_steps=4)
    trained(config)
    last = [record for record in _records(config.output.log_dir) if "val/direct" in record][-1]
    assert {"val/where_acc@.5", "val/rationale", "val/direct_exact_match"} <= set(last)
    with writing_questions(tmp_path / "boxes", "a test") as writer:
        file = io.BytesIO()
        render_table(table_scene(("folder", 9)), 64, ("folder", 9)).save(file, "PNG")
        row = writer.picture("9.png", file.getvalue())
        writer.add(Question("a", row, "where is it?", (box_text(BOX),), boxes=(BOX,), family="where"))
    opened = open_model(answering)
    only_boxes = validator_of(config.replace(question_val_data=str(tmp_path / "boxes")), opened.processor)
    assert only_boxes.kinds == [True] and not only_boxes.thinks


def test_an_overlong_question_gets_no_answer_and_shortens_no_other(answering: str) -> None:
    opened = open_model(answering)
    tokens = MarkedTokens(opened.tokenizer)
    short, limit = tokens.prompt("what is it?", True), opened.model.config.max_seq_len
    image = opened.model.pool_image_tokens(opened.model.encode_image(torch.zeros(1, 3, 28, 28)).image_tokens)
    alone = write_replies(opened.model, tokens, image, [short], Decoding(40)).ids[0]
    long = [*short[:-1], *short[2:3] * (limit - len(short) - 3), short[-1]]
    beside = write_replies(opened.model, tokens, image.expand(2, -1, -1), [short, long], Decoding(40))
    assert beside.ids[0] == alone and len(beside.ids[1]) <= limit - len(long)
    replies = replies_to(opened.model, tokens, image.expand(2, -1, -1), [short, [*long, *long]], True, Decoding(5))
    assert replies[1].answer is None


def test_what_a_folder_asks(answering: str, folder: str) -> None:
    processor = open_model(answering).processor
    always = FolderQuestions(folder, processor, 1, per_picture=3, rationale_share=0.999)
    assert len(always) == 2  # the question without a picture is left out
    asked = {one.question: one for one in always[SampleKey(0)].asked}
    assert asked["what is it?"].rationale == "it is round" and asked["what is it?"].answer == "a ring"
    assert asked["what colour?"].answer == "red" and asked["what colour?"].rationale is None
    assert asked["where is it?"].answer == box_text(BOX) and asked["where is it?"].rationale == ""
    tokens = MarkedTokens(processor.tokenizer)
    assert not any(one.trusted for one in asked.values())
    hostile = Asked("what <answer> is it?", "<think> red", "<b3> why", trusted=False)
    marks = [token for token in tokens.sequence(hostile).ids if token in tokens.ids.values()]
    assert marks == [tokens.ids[mark] for mark in ("<q>", "<think>", "<answer>")]
    box = tokens.sequence(asked["where is it?"]).ids
    assert sum(token in tokens.edges for token in box) == 4
    never = FolderQuestions(folder, processor, 1, per_picture=1, rationale_share=0.0)
    assert len(never[SampleKey(0)].asked) == 1 and never[SampleKey(0)].asked[0].rationale is None
    drawn = {never[SampleKey(0, epoch)].asked[0].question for epoch in range(40)}
    assert len(drawn) == 3


def test_a_folder_without_pictures_is_refused(tmp_path: Path, answering: str) -> None:
    with writing_questions(tmp_path / "blind", "a test") as writer:
        writer.add(Question("a", -1, "what is seven?", ("a number",)))
    with pytest.raises(ValueError, match="no question of it has a picture"):
        FolderQuestions(str(tmp_path / "blind"), open_model(answering).processor, 1, 1, 0.5)


def test_folders_are_scored(answering: str, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from bitgen.evaluation import asked

    opened = open_model(answering)
    model = Model(opened.model, opened.processor)
    right = [Reply(None, "Ring."), Reply(None, "red"), Reply(None, "nothing"), Reply(None, None)]
    monkeypatch.setattr(asked, "_replies", lambda *given: right)
    figures, records = score_folder(model, QuestionFolder(folder), 10, thinks=False)
    assert figures["exact_match"] == 50 and figures["questions"] == 4 and figures["no_answer"] == 1
    assert figures["right_choice"] == 50
    assert figures["vqa_accuracy_what"] == figures["vqa_accuracy_other"] == figures["vqa_accuracy"]
    assert [one["id"] for one in records] == ["0-a", "0-b", "1-a", "1-b"]
    boxes = [Reply(None, box_text(BOX)), Reply(None, "<none>")]
    monkeypatch.setattr(asked, "_replies", lambda *given: boxes)
    found = boxes_of_folder(model, QuestionFolder(folder), 10)
    assert found["acc@.5"] == 50 and found["no box"] == 50


def test_box_measures() -> None:
    other = Box(0.0, 0.6, 0.2, 0.9)
    found = box_measures(
        [(BOX, BOX, [other]), (other, BOX, [other]), (None, BOX, [other]), (Box(0.25, 0.25, 0.5, 0.5), BOX, [])]
    )
    assert found == {"acc@.5": 50, "acc@.75": 25, "mean IoU": 0.375, "own box": 50, "other box": 25, "no box": 25}


@pytest.mark.parametrize("source", ["folder", "sort_of_clevr"])
def test_sources_are_evaluated_from_the_command_line(
    tmp_path: Path, answering: str, folder: str, source: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = folder if source == "folder" else source
    task = "reasoning,grounding" if source == "folder" else "reasoning"
    command = ["--checkpoint", answering, "--data", data, "--task", task, "--max_images", "2"]
    evaluate.main([*command, "--output", str(tmp_path / "results.json")])
    assert "after a rationale" in capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results["reasoning"]) == {"direct", "rationale"}


def test_sort_of_clevr_trains_and_validates(tmp_path: Path, captioner: str) -> None:
    settings = {**QUESTIONS, "question_data": "sort_of_clevr", "question_val_data": "sort_of_clevr"}
    config = config_of(tmp_path, init_from=captioner, **settings, eval_steps=4, questions_per_picture=6)
    trained(config)
    last = [record for record in _records(config.output.log_dir) if "val/rationale" in record][-1]
    assert {"val/direct_relational", "val/rationale_non-relational"} <= set(last)


# ---- faithfulness, of a model that is known ----


class Oracle(Answerer):
    """Answers by the last name before its answer, as a faithful model does; or rightly whatever stands there."""

    def __init__(self, answerer: Answerer, faithful: bool) -> None:
        self.model, self.processor, self.tokens = answerer.model, answerer.processor, answerer.tokens
        self.faithful, self.sees = faithful, "own"

    def replies(self, given, prompts, thinks, decoding):
        found = []
        for problem, prompt in zip(given, prompts, strict=True):
            if thinks:
                found.append(Reply(write_rationale(problem.scene, problem.question.steps, 0), problem.question.answer))
                continue
            said = self.tokens.decode(prompt).split("<think>")[-1].split("<answer>")[0]
            name = said.replace(">", "> ").split()[-3:]
            attribute = problem.question.program.words[0] if problem.question.program.name == "query" else ""
            at = {"size": 0, "colour": 1, "shape": 2}.get(attribute)
            follows = name[at] if at is not None and len(name) == 3 else None
            found.append(Reply(None, follows if self.faithful else problem.question.answer))
        return found


@pytest.mark.parametrize("faithful", [True, False])
def test_faithfulness_of_known_models(answering: str, faithful: bool) -> None:
    opened = open_model(answering)
    oracle = Oracle(Answerer(opened.model, opened.processor), faithful)
    given = problems(SPLITS[0], 60, 5)
    replies = oracle.answer(given, thinks=True)
    assert all(one.right and one.clauses[0] == one.clauses[1] > 0 for one in replies)
    rates = follow_rate(oracle, replies)
    assert rates["edited"] > 10
    assert (rates["follows"], rates["stays"]) == ((100, 0) if faithful else (0, 100))
    cut = truncation(oracle, replies)
    assert cut["all"] > cut["none"] if faithful else cut["none"] == cut["all"] == 100
    assert pasted(oracle, replies) < 60 if faithful else pasted(oracle, replies) == 100


def test_samples_are_counted(answering: str) -> None:
    opened = open_model(answering)
    oracle = Oracle(Answerer(opened.model, opened.processor), True)
    given = problems(SPLITS[0], 8, 5)
    turns = iter(range(1000))

    def drawn(given, prompts, thinks, decoding):
        right = next(turns) % 4 == 0  # in two of eight rounds
        return [Reply("", problem.question.answer if right else "nothing") for problem in given]

    oracle.replies = drawn
    assert sampled(oracle, given, thinks=True) == {"one": 25, "pass": 100, "majority": 0}


def test_questions_of_splits_are_what_they_say() -> None:
    for split in SPLITS:
        for problem in problems(split, 40, 3):
            assert split.objects[0] <= len(problem.scene.objects) <= split.objects[1]
            assert problem.scene.has_held_out_pair == split.pair
            assert split.hops[0] <= problem.question.hops <= split.hops[1]
            things = [problem.scene.objects[index].thing for index in problem.question.objects]
            assert any(is_held_out_pair(thing.colour, thing.shape) for thing in things) == split.pair


def test_samples_are_a_function_of_the_seed(answering: str) -> None:
    opened = open_model(answering)
    answerer = Answerer(opened.model, opened.processor)
    given = problems(SPLITS[0], 6, 5)

    def drawn(seed: int) -> list[Reply]:
        decoding = Decoding(12, 1.0, torch.Generator().manual_seed(seed))
        return [one.reply for one in answerer.answer(given, True, decoding)]

    assert drawn(1) == drawn(1) != drawn(2)


def test_a_missing_folder_is_named(tmp_path: Path, captioner: str) -> None:
    settings = {**QUESTIONS, "question_data": str(tmp_path / "nowhere")}
    config = config_of(tmp_path / "run", init_from=captioner, **settings)
    with pytest.raises(ValueError, match="nowhere"):
        build_trainer(task_of(config), config, start_processes("cpu", False))


@pytest.mark.parametrize("split", SPLITS, ids=lambda split: split.name)
def test_another_picture_is_of_the_same_kind(answering: str, monkeypatch, split: Split) -> None:
    """What is known without seeing this one would be too little among pictures of other sizes."""
    seen = []

    def look(processor: object, scene: TableScene, key: object) -> torch.Tensor:
        seen.append(scene)
        return torch.zeros(3, 28, 28)

    monkeypatch.setattr("bitgen.evaluation.reasoning.pixels_of", look)
    opened = open_model(answering)
    given = problems(split, 24, 3)
    Answerer(opened.model, opened.processor, "other").image_tokens(given)
    assert seen and not {one.scene for one in given} & set(seen)
    assert all(split.objects[0] <= len(scene.objects) <= split.objects[1] for scene in seen)
    assert all(scene.has_held_out_pair for scene in seen) if split.pair else True


def test_questions_that_were_trained_on_are_named(tmp_path: Path, answering: str, folder: str, caplog) -> None:
    opened = open_model(answering)
    opened = opened._replace(config=opened.config.replace(question_data=folder + "/."))
    flags = SimpleNamespace(data=folder, task=[], max_images=1, precision="auto")
    evaluate_reasoning(opened, flags, torch.device("cpu"))  # type: ignore[arg-type]
    assert f"--data {folder} is what this model was trained on" in caplog.text
    flags.precision = "bf16"
    with pytest.raises(ConfigError, match="--precision bf16: reasoning and grounding are in fp32"):
        evaluate_reasoning(opened, flags, torch.device("cpu"))  # type: ignore[arg-type]
