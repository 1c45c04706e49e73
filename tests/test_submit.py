"""The entry `src/submit.py`: one command from an export to a submission, and what it says of bad input."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bitgen.commands import submit
from bitgen.evaluation.babylm import kept
from bitgen.evaluation.babylm.acquisition.ages import AgeOfAcquisition
from bitgen.evaluation.babylm.evaluation import Evaluation
from bitgen.machine.locks import exclusive
from support.babylm_plain import write_acquisition
from support.glue import write_glue
from support.submissions import FAST_SETS, FULL_SETS, tiny_export, write_evaluation_data
from support.tokenizers import other_tokenizer

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "babylm_eval" / "fast_eval"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    return write_evaluation_data(tmp_path_factory.mktemp("data") / "evaluation_data")


def run(model: Path, eval_dir: Path, output: Path, *flags: str) -> None:
    arguments = ["--model", str(model), "--eval_dir", str(eval_dir), "--output", str(output), "--device", "cpu"]
    submit.main([*arguments, *flags])


def refused(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as stopped:
        run(*arguments)
    assert stopped.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def test_one_command_makes_a_submission(data_dir, tmp_path, capsys, caplog):
    with caplog.at_level("INFO"):
        run(tiny_export(), data_dir, tmp_path / "out")
    said, report = capsys.readouterr().out, (tmp_path / "out" / "report.md").read_text()
    assert "tiny_model: full sets" in said and "GPT-BERT, causal focus" in said and "1,234,567" in said
    assert "missing:\n  - full_eval: supplement_filtered, ewok_filtered, global_piqa_nonparallel" in said
    for text in (said, report):
        assert "GLUE: --eval_dir has no folder glue_filtered" in text
        assert "age of acquisition: --eval_dir has no folder aoa" in text
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(results["sets"]["main"]["full_eval"]) == set(FULL_SETS)
    assert set(results["sets"]["chck_10M"]["fast_eval"]) == set(FAST_SETS)
    assert results["track"] == "strict-small" and results["words_seen"] == 1_234_567
    assert [point[0] for point in results["curves"]["blimp"]] == [1_000_000, 10_000_000]
    assert Image.open(tmp_path / "out" / "learning_curve.png").format == "PNG"
    assert (tmp_path / "out/results/tiny_model/all_full_preds_and_fast_scores_causal.json").is_file()

    caplog.clear()
    with caplog.at_level("INFO"):
        run(tiny_export(), data_dir / "fast_eval", tmp_path / "out")  # a part alone, of what is there already
    assert f"0 results evaluated now, {3 * len(FAST_SETS)} kept from earlier calls" in caplog.text


def test_an_export_without_checkpoints_works_and_says_what_is_missing(data_dir, tmp_path, capsys):
    model = shutil.copytree(tiny_export(), tmp_path / "model", ignore=shutil.ignore_patterns("chck_*"))
    (tmp_path / "data" / "fast_eval").mkdir(parents=True)
    for name in ("blimp_fast", "wug_adj_nominalization"):
        shutil.copytree(data_dir / "fast_eval" / name, tmp_path / "data" / "fast_eval" / name)
    (tmp_path / "data" / "fast_eval" / "Reeding").mkdir()
    run(model, tmp_path / "data", tmp_path / "out")
    said = capsys.readouterr().out
    assert "checkpoints: chck_1M (python src/export.py --words_seen_checkpoints True exports them)" in said
    assert "fast_eval/Reeding (is it reading? Then give it that name) was left out" in said
    assert not (tmp_path / "out" / "learning_curve.png").exists()


def test_a_full_disk_is_named_and_loses_nothing(data_dir, tmp_path, capsys, monkeypatch, caplog):
    real, written = kept.write_whole, []

    def full(path, content):
        if len(written) == 3:
            error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise ValueError(f"{path}: cannot write it ({error.strerror})") from error
        written.append(path)
        real(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(kept, "write_whole", full)
        said = refused(capsys, tiny_export(), data_dir / "fast_eval", tmp_path / "out")
    assert "No space left on device" in said and "The disk is full: free space" in said and "call again" in said
    with caplog.at_level("INFO"):
        run(tiny_export(), data_dir / "fast_eval", tmp_path / "out")
    assert f"{3 * len(FAST_SETS) - 2} results evaluated now, 2 kept" in caplog.text  # and what the tokenizer does


def test_fine_tuning_and_ages_of_acquisition_are_part_of_it(data_dir, tmp_path, capsys, monkeypatch):
    asked: dict[str, tuple] = {}

    def ages(by_words, folder, device, **options):
        asked["aoa"] = (by_words, folder, options["kept"])
        return AgeOfAcquisition({"aoa": 0.125}, {"results": [{"step": "chck_1M"}]}, {"aoa": 0.125})

    def glue(model, folder, device, **options):
        asked["glue"] = (model, folder, options["kept"])
        return Evaluation({"mean": {"accuracy": 61.5}}, {"wsc": {"predictions": [{"id": "wsc_0", "pred": 1}] * 52}})

    monkeypatch.setattr(submit, "age_of_acquisition", ages)
    monkeypatch.setattr(submit, "evaluate_glue", glue)
    full, out = tmp_path / "data" / "full_eval", tmp_path / "out"
    shutil.copytree(data_dir / "full_eval" / "wug_adj_nominalization", full / "wug_adj_nominalization")
    write_acquisition(full / "aoa", np.random.default_rng(0))
    write_glue(full, "wsc")
    run(tiny_export(), full, out)
    assert "GLUE: found, and left out without --finetune True" in capsys.readouterr().out and "glue" not in asked
    run(tiny_export(), full, out, "--finetune", "True")
    said, model = capsys.readouterr().out, tiny_export()
    words = {1_000_000: model / "chck_1M", 10_000_000: model / "chck_10M"}
    assert asked["aoa"] == (words, full / "aoa", out / "kept" / "aoa")
    assert asked["glue"] == (model, full / "glue_filtered", out / "kept" / "glue")
    assert "GLUE: boolq, mnli, mrpc, multirc, qqp, rte" in said and "age of acquisition:" not in said
    assert "61.5" in said and "0.13" in said
    run(tiny_export(), full, out, "--finetune", "True", "--glue_kept", str(tmp_path / "results_glue"))
    assert asked["glue"][2] == str(tmp_path / "results_glue")
    said = capsys.readouterr().out
    assert "aoa is of 1 checkpoints; the pipeline takes the 19 of the track alone" in said
    content = json.loads(next(out.rglob("all_full_preds*.json")).read_text())
    assert list(content["glue"]) == ["wsc"] and content["aoa"] == {"aoa": 0.125} and content["aoa_surprisals"] is None


def test_ages_of_acquisition_are_asked_of_the_checkpoints_of_the_track_alone(data_dir, tmp_path, capsys, monkeypatch):
    """As the pipeline does; one more would be a point more on every curve, and null in the collated file."""
    asked = []

    def ages(by_words, *_, **options):
        asked.append(by_words)
        return AgeOfAcquisition({"aoa": 0.125}, {"results": []}, {"aoa": 0.125})

    monkeypatch.setattr(submit, "age_of_acquisition", ages)
    model = shutil.copytree(tiny_export(), tmp_path / "model")
    for name in ("chck_0M", "chck_15M", "chck_200M"):
        shutil.copytree(model / "chck_1M", model / name)
    full = tmp_path / "data" / "full_eval"
    shutil.copytree(data_dir / "full_eval" / "wug_adj_nominalization", full / "wug_adj_nominalization")
    write_acquisition(full / "aoa", np.random.default_rng(0))
    run(model, full, tmp_path / "out")
    assert asked == [{1_000_000: model / "chck_1M", 10_000_000: model / "chck_10M"}]
    said = capsys.readouterr().out
    assert "chck_15M, chck_200M: not among the checkpoints" in said and "chck_0M was left out" in said
    for name in ("chck_1M", "chck_10M"):
        shutil.rmtree(model / name)
    run(model, full, tmp_path / "out")
    assert len(asked) == 1
    assert "age of acquisition: it needs checkpoints chck_*M of strict-small" in capsys.readouterr().out


# ---- bad input ----


def _other_tokenizer(model: Path) -> None:
    path = model / "chck_10M" / "tokenizer.json"
    path.write_text(path.read_text().replace('"version"', ' "version"', 1))


def _other_vocabulary(model: Path) -> None:
    path = model / "chck_1M" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": 77}))


def _larger_tokenizer(model: Path) -> None:
    for folder in (model, model / "chck_1M", model / "chck_10M"):
        other_tokenizer(400).save_pretrained(str(folder))


BAD_MODELS = {
    "another tokenizer": (_other_tokenizer, ["the tokenizers of", "chck_10M differ (tokenizer.json)", "of one run"]),
    "another vocabulary": (_other_vocabulary, ["and", "chck_1M have vocabularies of", "and 77 tokens"]),
    "no tokenizer in a checkpoint": (lambda m: (m / "chck_1M" / "tokenizer.json").unlink(), ["chck_1M differ"]),
    "no weights in a checkpoint": (lambda m: (m / "chck_1M" / "model.safetensors").unlink(), ["chck_1M holds no weig"]),
    "an empty checkpoint": (lambda m: (m / "chck_3M").mkdir(), ["chck_3M holds no exported model", "src/export.py"]),
    "no configuration": (lambda m: (m / "config.json").unlink(), ["holds no exported model", "src/export.py"]),
    "a damaged configuration": (lambda m: (m / "config.json").write_text("{"), ["config.json cannot be read"]),
    "damaged weights": (lambda m: (m / "model.safetensors").write_bytes(b"x" * 99), ["model.safetensors"]),
    "a tokenizer that is too large": (_larger_tokenizer, ["tokenizer", "Export"]),
}


@pytest.mark.parametrize("name", BAD_MODELS)
def test_bad_models_are_named(data_dir, tmp_path, capsys, name):
    spoil, words = BAD_MODELS[name]
    model = shutil.copytree(tiny_export(), tmp_path / "model")
    spoil(model)
    said = refused(capsys, model, data_dir / "fast_eval", tmp_path / "out")
    assert all(word in said for word in words) and str(model) in said, said
    assert not list((tmp_path / "out").rglob("*.json")) if (tmp_path / "out").exists() else True


def test_bad_folders_are_named(data_dir, tmp_path, capsys):
    model, out = tiny_export(), tmp_path / "out"
    copy = shutil.copytree(model, tmp_path / "model", ignore=shutil.ignore_patterns("chck_*"))
    assert "there is no such folder" in refused(capsys, tmp_path / "nowhere", data_dir, out)
    assert "this is a file" in refused(capsys, copy / "config.json", data_dir, out)
    assert "holds no exported model" in refused(capsys, data_dir, data_dir / "fast_eval", out)
    assert "there is no such folder" in refused(capsys, model, tmp_path / "nowhere", out)
    (tmp_path / "empty").mkdir()
    assert "holds none of" in refused(capsys, model, tmp_path / "empty", out)
    mixed = tmp_path / "mixed"
    for name in ("blimp_fast", "blimp_filtered"):
        (mixed / name).mkdir(parents=True)
    assert "blimp_fast of the fast sets and blimp_filtered" in refused(capsys, model, mixed, out)
    damaged = shutil.copytree(data_dir / "fast_eval", tmp_path / "damaged")
    (damaged / "blimp_fast" / "one.jsonl").write_text("{\n")
    assert "one.jsonl line 1 is not JSON" in refused(capsys, model, damaged, out)
    assert "--finetune True" in refused(capsys, model, data_dir, out, "--finetune", "True")

    assert "lie in one another" in refused(capsys, copy, data_dir, copy / "out")
    assert "lie in one another" in refused(capsys, copy, data_dir, data_dir)
    assert "lie in one another" in refused(capsys, copy, data_dir, tmp_path)
    assert "holds a model or a dataset" in refused(capsys, model, data_dir, copy / "out")
    assert "is a file" in refused(capsys, model, data_dir, damaged / "blimp_fast" / "two.jsonl")
    assert "is not empty, and no earlier call wrote it" in refused(capsys, model, data_dir, damaged)
    assert not out.exists()


@pytest.mark.parametrize("name", ["cdi_childes.json", "cdi_human.csv", "wsc.valid.jsonl", "reading_data.csv"])
def test_files_that_are_read_last_are_looked_at_first(data_dir, tmp_path, capsys, monkeypatch, name):
    """Hours of evaluation lie before their turn."""
    monkeypatch.setattr(submit, "evaluate_submission", None)
    full = tmp_path / "data" / "full_eval"
    shutil.copytree(data_dir / "full_eval" / "wug_adj_nominalization", full / "wug_adj_nominalization")
    shutil.copytree(data_dir / "full_eval" / "reading", full / "reading")
    write_acquisition(full / "aoa", np.random.default_rng(0))
    write_glue(full, "wsc")
    damaged = next(full.rglob(name))
    damaged.write_text(damaged.read_text()[:-40] + "{")
    said = refused(capsys, tiny_export(), full, tmp_path / "out", "--finetune", "True")
    assert name in said and not (tmp_path / "out").exists()


def test_a_folder_without_glues_files_is_named_first(data_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(submit, "evaluate_submission", None)
    full = tmp_path / "data" / "full_eval"
    shutil.copytree(data_dir / "full_eval" / "wug_adj_nominalization", full / "wug_adj_nominalization")
    (full / "glue_filtered").mkdir()
    said = refused(capsys, tiny_export(), full, tmp_path / "out", "--finetune", "True")
    assert "glue_filtered: holds none of the (Super)GLUE files" in said


def test_a_second_process_waits_for_its_turn(data_dir, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    with exclusive(tmp_path / "out" / "submission.lock", "it", "wait"):
        assert "is in use by this process already" in refused(capsys, tiny_export(), data_dir, tmp_path / "out")


@pytest.mark.realdata
@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data/babylm_eval is not here")
def test_real_sets_have_the_official_sizes(tmp_path, capsys):
    data = tmp_path / "fast_eval"
    for name in ("supplement_fast", "reading", "wug_adj_nominalization"):
        shutil.copytree(SHARED / name, data / name)
    model = shutil.copytree(tiny_export(), tmp_path / "model", ignore=shutil.ignore_patterns("chck_1M"))
    run(model, data, tmp_path / "out")
    content = json.loads(next((tmp_path / "out").rglob("all_full_preds*.json")).read_text())
    scores = content["fast_eval_results"]["blimp_supplement"]
    assert set(scores[9]) >= {"hypernym", "turn_taking"} and scores[0] is None
    assert len(content["reading"]["reading"]["predictions"]) == 1726
    assert "leaves it out" not in capsys.readouterr().out
