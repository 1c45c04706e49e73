"""A score that would mislead is refused before it is computed, or something is said beside it."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bitgen.commands import evaluate, submit
from bitgen.evaluation.babylm.acquisition import ages as module
from bitgen.evaluation.babylm.acquisition.ages import acquisition_scores, age_of_acquisition
from bitgen.evaluation.babylm.encoding import ProcessorEncoder
from bitgen.evaluation.babylm.evaluation import read_evaluation_data
from bitgen.evaluation.babylm.items import read_items
from bitgen.evaluation.babylm.reading import Word, word_parts
from bitgen.evaluation.babylm.submission.layout import differences
from bitgen.evaluation.babylm.zero_shot import rank_correlation
from support.babylm import model_folder
from support.babylm_plain import write_acquisition
from support.submissions import lines_of, tiny_export, write_evaluation_data

FIGURES = ("correlation", "p_value")


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return write_evaluation_data(tmp_path / "evaluation_data")


def submitted(model: Path, eval_dir: Path, output: Path) -> dict:
    submit.main(["--model", str(model), "--eval_dir", str(eval_dir), "--output", str(output), "--device", "cpu"])
    return json.loads((output / "results.json").read_text())


def refused(capsys, model: Path, eval_dir: Path, output: Path) -> str:
    with pytest.raises(SystemExit) as stopped:
        submitted(model, eval_dir, output)
    assert stopped.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def test_a_copy_under_a_longer_name_never_stands_in_the_place_of_the_official_set(data_dir, tmp_path):
    """Both are of the component blimp; the file for the leaderboard takes the official one."""
    alone = submitted(tiny_export(), data_dir / "full_eval", tmp_path / "alone")["scores"]["full_eval"]
    copy = shutil.copytree(data_dir / "full_eval" / "blimp_filtered", data_dir / "full_eval" / "blimp_filtered_old")
    for path in copy.iterdir():
        turned = [one | {"sentence_good": one["sentence_bad"], "sentence_bad": one["sentence_good"]}
                  for one in lines_of(path)]  # fmt: skip
        path.write_text("".join(json.dumps(one) + "\n" for one in turned))
    found = submitted(tiny_export(), data_dir / "full_eval", tmp_path / "both")
    assert found["scores"]["full_eval"]["blimp"] == alone["blimp"]
    official, old = (found["sets"]["main"]["full_eval"][f"blimp_filtered{end}"]["accuracy"] for end in ("", "_old"))
    assert official == alone["blimp"] != old
    assert any(
        "blimp_filtered_old was evaluated, but it is no name of the pipeline's" in one for one in found["remarks"]
    )


def test_ties_and_a_missing_bos_are_said_of_a_submission(data_dir, tmp_path, monkeypatch):
    model = shutil.copytree(tiny_export(), tmp_path / "model", ignore=shutil.ignore_patterns("chck_*"))
    weights = load_file(model / "model.safetensors")
    save_file(
        {name: np.zeros_like(one) for name, one in weights.items()}, model / "model.safetensors", {"format": "pt"}
    )
    (model / "checksums.json").unlink()
    monkeypatch.setattr(ProcessorEncoder, "begins_with_special", lambda self: False)
    for _ in range(2):  # also where everything is kept from an earlier call
        said = submitted(model, data_dir / "fast_eval", tmp_path / "out")["remarks"]
        monkeypatch.setattr(ProcessorEncoder, "begins_with_special", None)
        assert any(one.startswith("fast_eval/entity_tracking_fast: 4 of 4 questions are ties") for one in said)
        assert any(one.startswith("the tokenizer puts no BOS before a text") for one in said)
    monkeypatch.undo()
    said = submitted(tiny_export(), data_dir / "fast_eval", tmp_path / "other")["remarks"]
    assert not any("ties" in one or "BOS" in one for one in said)


def test_a_submission_keeps_what_others_put_into_its_results(data_dir, tmp_path):
    """The pipeline's multimodal evaluation takes hours, and writes into the same folder."""
    out = tmp_path / "out"
    submitted(tiny_export(), data_dir / "fast_eval", out)
    zero_shot = out / "results" / "tiny_model" / "main" / "zero_shot" / "causal"
    (zero_shot / "vqa").mkdir()
    (zero_shot / "vqa" / "predictions.json").write_text("hours")
    shutil.rmtree(data_dir / "fast_eval" / "blimp_fast")
    submitted(tiny_export(), data_dir / "fast_eval", out)
    assert (zero_shot / "vqa" / "predictions.json").read_text() == "hours"
    assert (zero_shot / "reading" / "predictions.json").is_file()
    assert not (zero_shot / "blimp").exists()  # ours, of a set that is gone


def test_a_part_may_be_empty_where_the_other_is_not(data_dir, tmp_path, capsys):
    shutil.rmtree(data_dir / "full_eval")
    (data_dir / "full_eval").mkdir()
    missing = submitted(tiny_export(), data_dir, tmp_path / "out")["missing"]
    assert "full_eval: no set of it was found in --eval_dir" in missing
    shutil.rmtree(data_dir / "fast_eval")
    (data_dir / "fast_eval").mkdir()
    assert "holds none of blimp*" in refused(capsys, tiny_export(), data_dir, tmp_path / "other")


def test_a_damaged_reading_file_is_named_before_anything_is_scored(data_dir):
    path = data_dir / "fast_eval" / "reading" / "reading_data.csv"
    path.write_text(path.read_text().replace("RTgopast", "RTgo"))
    with pytest.raises(ValueError, match="reading_data.csv has no column 'RTgopast'"):
        read_evaluation_data(data_dir / "fast_eval")


def test_misnamed_entity_tracking_is_named_before_it_is_scored(data_dir):
    folder = data_dir / "fast_eval" / "entity_tracking_fast"
    (folder / "regular.jsonl").rename(folder / "boxes.jsonl")
    for year in (2025, 2026):
        with pytest.raises(
            ValueError, match="entity tracking counts files named after regular, ambiref, move_contents"
        ):
            read_items(folder, year)


def test_a_set_of_another_size_is_named_beside_its_figure(data_dir, tmp_path, caplog):
    argv = ["--task", "babylm", "--checkpoint", str(model_folder()), "--eval_dir", str(data_dir / "fast_eval")]
    argv += ["--device", "cpu", "--output", str(tmp_path / "results.json")]
    evaluate.main(argv)
    assert "fast_eval/blimp_fast has 6 items, the official set 13,400: its figure is not of the official" in caplog.text
    caplog.clear()
    evaluate.main([*argv, "--babylm_year", "2025"])  # whose sizes are others
    assert "its figure is not of the official" not in caplog.text


def test_sizes_are_those_of_the_part_that_a_name_is_of() -> None:
    def of(subtasks: int, each: int) -> dict:
        return {f"{number}": {"predictions": [{}] * each} for number in range(subtasks)}

    assert differences({"blimp_fast": of(67, 200), "reading": of(1, 1726), "blimp_mine": of(1, 1)}) == []
    assert differences({"reading": of(1, 1725)}) == ["full_eval/reading has 1,725 items, the official set 1,726"]


@pytest.mark.parametrize("probabilities, ratios", [([0.5] * 3, [0.1, 0.2, 0.3]), ([0.1, 0.2, 0.3], [0.5] * 3)])
@pytest.mark.filterwarnings("error")
def test_a_constant_preference_correlates_with_nothing(probabilities, ratios):
    items = [SimpleNamespace(ratio=ratio) for ratio in ratios]
    assert math.isnan(rank_correlation(items, [np.float32(number) for number in probabilities])["spearman"])


@pytest.mark.parametrize("constant", ["model", "child"])
def test_constant_ages_score_nothing(monkeypatch, tmp_path, constant):
    write_acquisition(tmp_path, np.random.default_rng(0))
    data = module.read_acquisition_data(tmp_path)
    draws = iter(range(1000))
    same = {"model": "model_age", "child": "child_age"}
    for side, name in same.items():
        monkeypatch.setattr(module, name, lambda *_, side=side: 7.0 if side == constant else float(next(draws)))
    words = list(dict.fromkeys(word for word, _ in data.contexts))
    vocabulary = module.Vocabulary(300, dict.fromkeys(words, 1))
    surprisals = {words * 10**6: [1.0] * len(data.contexts) for words in (1, 2, 3)}
    results = acquisition_scores(data, surprisals, vocabulary)
    assert results["n_words"] >= 3 and results["aoa"] == 0.0 and all(math.isnan(results[name]) for name in FIGURES)


def test_a_new_card_makes_no_age_of_acquisition_anew(tmp_path, monkeypatch):
    write_acquisition(tmp_path / "aoa", np.random.default_rng(0))
    folder = shutil.copytree(model_folder(), tmp_path / "model")
    opened, whole = [], module.open_language_model
    monkeypatch.setattr(module, "open_language_model", lambda one, *rest: opened.append(one) or whole(one, *rest))
    for change, times in ((None, 1), ("README.md", 1), ("config.json", 2)):
        if change is not None:
            with (folder / change).open("a") as file:
                file.write("\n")
        age_of_acquisition({10**6: folder}, tmp_path / "aoa", kept=tmp_path / "kept")
        assert len(opened) == times


def test_a_token_without_a_text_is_named() -> None:
    class Encoder:
        def encode_word(self, word: str) -> list[int]:
            return {"cats": [1, 2], "cat": [1]}.get(word, [])

        def decode(self, token: int) -> str:
            return {1: "cat", 2: ""}[token]

    with pytest.raises(ValueError, match="line 4: 'cats' has a token without a text"):
        word_parts(Word("line 4", "two", "cats"), Encoder())
