"""`src/evaluate.py` with models of parts: figures against what they are computed from, and the control."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from bitgen.commands import evaluate, export
from bitgen.commands.evaluate_by_kind import refuse_flags_of_parts
from bitgen.commands.evaluate_vlm import evaluate_vlm
from bitgen.config import ConfigError
from bitgen.data.conversations.opening import open_conversations
from bitgen.data.conversations.records import ConversationReader
from bitgen.evaluation.caption_likelihood import likelihood_retrieval, log_likelihoods
from bitgen.evaluation.flags import parse_flags
from bitgen.evaluation.other_pictures import OtherPictures, partners
from bitgen.evaluation.scene_captions import scene_caption_metrics
from bitgen.evaluation.text_metrics import score_texts
from bitgen.evaluation.vlm import VlmEvaluation
from bitgen.trained_vlm import is_vlm, open_vlm
from support.tiny_vlms import exported_vlm
from support.vlm_runs import QUESTIONS, train_tiny, write_questions


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    return train_tiny(tmp_path_factory.mktemp("vlm"))


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """A model whose template writes questions."""
    return exported_vlm(tmp_path_factory.mktemp("asked"))


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    return write_questions(tmp_path_factory.mktemp("questions") / "data", with_text=True)


def run(stage, folder, *flags):
    output = folder / "results.json"
    common = ("--output", str(output), "--device", "cpu", "--precision", "fp32", "--num_beams", "1")
    evaluate.main(["--checkpoint", str(stage), "--max_new_tokens", "6", "--bootstrap", "0", *common, *flags])
    return json.loads(output.read_text())


def test_answers_of_scenes_are_scored_as_the_metrics_score_them(stage, tmp_path, capsys) -> None:
    found = run(stage, tmp_path, "--data", "scenes", "--predictions", str(tmp_path / "said.json"))
    said = [entry["caption"] for entry in json.loads((tmp_path / "said.json").read_text())]
    source = open_conversations("scenes", ["x"], seed=open_seed(stage), split="val", scenes=8)
    assert len(said) == 8
    expected = score_texts(said, [source.reader.captions(row) for row in range(8)])
    for name, value in expected.scores.items():
        assert found["captioning"][name] == pytest.approx(value), name
    assert found["captioning"]["decoding"] == "greedy, at most 6 new tokens"
    right = scene_caption_metrics(said, source.reader.scenes)
    assert {name: found["captioning"][name] for name in right} == pytest.approx(right)
    printed = capsys.readouterr().out
    assert "greedy, at most 6 new tokens" in printed and "BLEU-4" in printed and "METEOR" in printed
    with Image.open(tmp_path / "results_captions.png") as sheet:
        assert sheet.size[0] > 1000


def open_seed(stage) -> int:
    from bitgen.config.schema import CONFIG_FILE
    from bitgen.config.vlm import VlmConfig

    return VlmConfig.load(open_vlm(stage).folder / CONFIG_FILE).training.seed


def test_the_likelihoods_are_those_of_the_model_one_pair_at_a_time(stage) -> None:
    flags = parse_flags(["--checkpoint", str(stage), "--data", "scenes", "--output", "x.json", "--precision", "fp32"])
    from bitgen.commands.evaluate_vlm import _opened

    work = _opened(flags, open_vlm(stage), ["captioning"], torch.device("cpu"))
    samples = [work.dataset[row] for row in work.rows[:4]]
    table = log_likelihoods(work.trained.model, samples, work._collate, batch_size=3)
    for m, text in enumerate(samples):
        for n, image in enumerate(samples):
            ids, labels = text["input_ids"][None], text["labels"][None]
            inputs = {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}
            inputs |= {"pictures": image["pixel_values"], "frames": torch.tensor([1])}
            with torch.no_grad():
                embeds = work.trained.model.embed(inputs)
                logits = work.trained.model.language(inputs_embeds=embeds).logits[0].log_softmax(-1)
            expected = sum(logits[t - 1, labels[0, t]] for t in range(1, len(labels[0])) if labels[0, t] >= 0)
            assert table[m, n] == pytest.approx(float(expected), abs=1e-3)


def test_ranks_of_likelihoods_by_hand() -> None:
    # Caption 0 is likely whatever the image; caption 1 and 2 prefer their own.
    table = torch.tensor([[-1.0, -1.5, -1.2], [-9.0, -2.0, -8.0], [-9.0, -8.0, -3.0]])
    found = likelihood_retrieval(table)
    assert found["t2i_R@1"] == 100
    assert found["i2t_R@1"] == pytest.approx(100 / 3)  # caption 0 wins everywhere
    assert found["i2t_gain_R@1"] == pytest.approx(100)
    ties = likelihood_retrieval(torch.zeros(4, 4))
    assert ties["t2i_R@1"] == ties["i2t_gain_R@1"] == 0 and ties["t2i_median_rank"] == 4
    nan = likelihood_retrieval(torch.full((2, 2), math.nan))
    assert nan["t2i_R@1"] == 0


def test_questions_are_scored_against_every_persons_answer(asked, questions, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(VlmEvaluation, "answers", lambda self, decoding: ["Red.", "a green", "navy", "black", "4"])
    found = run(asked, tmp_path, "--data", str(questions), "--task", "vqa", "--predictions", str(tmp_path / "p.json"))
    # red: 2 of 3 people; green: 1 of 1; navy: 1 of 2; black: none; 4: 1 of 1, which said "four".
    assert found["vqa"]["vqa_accuracy"] == pytest.approx(100 * (2 / 3 + 1 + 0.5 + 0 + 1) / 5)
    assert found["vqa"]["exact_match"] == pytest.approx(80)
    assert json.loads((tmp_path / "p.json").read_text())[1] == {"question_id": "q1", "answer": "a green"}


def test_a_model_that_reads_no_question_is_not_scored_on_questions(stage, questions, tmp_path, capsys, caplog) -> None:
    with pytest.raises(SystemExit):
        run(stage, tmp_path, "--data", str(questions), "--task", "captioning,vqa")
    assert "reads no question. Take captioning, or train with another template" in capsys.readouterr().err
    # Its template writes no question, so that nothing stands before the answer to text alone.
    run(stage, tmp_path, "--data", str(questions))
    assert "1 of 5 are left out" in caplog.text and "record 4 (text): nothing stands before its answer" in caplog.text


def test_a_length_penalty_is_part_of_the_search_and_named_with_the_scores(stage, tmp_path, capsys) -> None:
    found = [
        run(stage, tmp_path, "--data", "scenes", "--num_beams", "4", "--length_penalty", penalty)["captioning"]
        for penalty in ("-5", "5")
    ]
    assert [one["decoding"].split(", ")[1] for one in found] == ["length penalty -5", "length penalty 5"]
    for beams, penalty, says in (("1", "2", "--num_beams is 1"), ("4", "1000", "must be from -100 to 100")):
        with pytest.raises(SystemExit):
            run(stage, tmp_path, "--data", "scenes", "--num_beams", beams, "--length_penalty", penalty)
        assert says in capsys.readouterr().err


def test_the_control_shows_every_question_another_image(asked, questions, tmp_path) -> None:
    source = ConversationReader(questions)
    shown = partners(source, list(range(len(source))))
    assert sorted(shown) == [0, 1, 2, 3]  # the one without a picture is left out
    other = OtherPictures(source, shown)
    for row in shown:
        assert other[row].turns == source[row].turns and other.references(row) == source.references(row)
        assert other[row].visuals != source[row].visuals and other[row].image != source[row].image
    assert {other[row].image for row in shown} == {source[row].image for row in shown}
    found = run(asked, tmp_path, "--data", str(questions), "--task", "vqa", "--shuffle_images", "True")
    assert found["vqa"]["questions"] == len(QUESTIONS) and found["vqa"]["shuffle_images"] is True


def test_retrieval_of_the_shuffled_is_the_retrieval_of_moved_columns(stage, tmp_path) -> None:
    flags = ["--checkpoint", str(stage), "--data", "scenes", "--task", "retrieval", "--precision", "fp32"]
    common = [*flags, "--bootstrap", "0", "--output", "x.json"]
    results = evaluate_vlm(parse_flags([*common, "--shuffle_images", "True"]), torch.device("cpu"))[0]
    from bitgen.commands.evaluate_vlm import _opened

    work = _opened(parse_flags(common), open_vlm(stage), ["retrieval"], torch.device("cpu"))
    table = log_likelihoods(
        work.trained.model, [work.dataset[row] for row in work.rows], work._collate, work.batch_size
    )
    moved = partners(work.conversations, work.rows)
    columns = [work.rows.index(moved[row]) for row in work.rows]
    expected = likelihood_retrieval(table[:, columns])
    assert {name: results["retrieval"][name] for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--data", "scenes", "--task", "matching"], "--task matching: this model has captioning, vqa, retrieval"),
        (["--data", "scenes", "--task", "vqa"], "scenes holds captions"),
        (["--data", "QUESTIONS", "--task", "retrieval"], "needs captions"),
        (["--data", "nowhere"], "--data"),
        (["--data", "scenes", "--images", "."], "--images is for models of stage 1"),
    ],
)
def test_what_cannot_be_is_said(stage, questions, tmp_path, capsys, flags, says) -> None:
    flags = [str(questions) if flag == "QUESTIONS" else flag for flag in flags]
    with pytest.raises(SystemExit) as ended:
        run(stage, tmp_path, *flags)
    assert ended.value.code == 2
    assert says in capsys.readouterr().err


def test_a_language_model_alone_sees_nothing(stage, tmp_path, capsys) -> None:
    assert is_vlm(stage.parent / "language")
    with pytest.raises(SystemExit):
        run(stage.parent / "language", tmp_path, "--data", "scenes")
    assert "without pictures: take a later stage" in capsys.readouterr().err


def test_an_export_is_asked_as_its_run_is(stage, tmp_path) -> None:
    """With the template, the system's text and the length that it was trained with."""
    export.main(["--checkpoint", str(stage), "--output", str(tmp_path / "export")])
    flags = ("--data", "scenes", "--max_images", "6", "--task", "captioning,retrieval")
    said = []
    for number, model in enumerate((stage, tmp_path / "export")):
        (folder := tmp_path / str(number)).mkdir()
        found = run(model, folder, *flags, "--predictions", str(folder / "p.json"))
        said.append((found["captioning"], found["retrieval"], json.loads((folder / "p.json").read_text())))
    assert said[0] == said[1]


def test_numbers_of_questions_are_numbers_again() -> None:
    """As VQA's tools have them; names stay names."""
    source = [SimpleNamespace(id=name) for name in ("458752000", "q1", "\u0664")]
    work = VlmEvaluation(None, None, source, [0, 1, 2], 1, None)  # type: ignore[arg-type]
    assert [entry["question_id"] for entry in work.predictions(["a", "b", "c"])] == [458752000, "q1", "\u0664"]


@pytest.mark.parametrize("flags", [["--length_penalty", "2"], ["--shuffle_images", "True"], ["--task", "vqa"]])
def test_flags_of_models_of_parts_are_refused_for_others(flags) -> None:
    asked = parse_flags(["--checkpoint", "stage1", "--data", "scenes", *flags])
    with pytest.raises(ConfigError, match=f"{flags[0]}.* is for vision-language models of parts"):
        refuse_flags_of_parts(asked)
