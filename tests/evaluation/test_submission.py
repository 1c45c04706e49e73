"""A submission on disk: the official layout, and work that is done once however often it is interrupted."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bitgen.evaluation.babylm import evaluation as zero_shot
from bitgen.evaluation.babylm.evaluation import KeptSets
from bitgen.evaluation.babylm.submission import run as module
from bitgen.evaluation.babylm.submission.data import read_submission_data
from bitgen.evaluation.babylm.submission.layout import (
    FAST,
    FULL,
    GLUE_TASKS,
    OFFICIAL,
    TRACKS,
    OfficialSet,
    aoa_problems,
    glue_problems,
    size_problems,
)
from bitgen.evaluation.babylm.submission.model import read_submission_model, training_said
from bitgen.evaluation.babylm.submission.report import Report
from bitgen.evaluation.babylm.submission.run import Parts, evaluate_submission, write_official
from bitgen.model.causal_lm_bitgen import CHECKSUMS
from support.submissions import FAST_SETS, FULL_SETS, lines_of, tiny_export, write_evaluation_data

CPU = torch.device("cpu")
NOTHING = Parts({}, {}, {}, {}, {})
MODELS = ["main", "chck_1M", "chck_10M"]
# Reading and Global PIQA are the same files in both parts.
EVALUATED = len(FULL_SETS) + len(FAST_SETS) - 2 + 2 * len(FAST_SETS)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    return write_evaluation_data(tmp_path_factory.mktemp("data") / "evaluation_data")


@pytest.fixture
def evaluated(monkeypatch) -> list[str]:
    """The sets that were evaluated, in their order."""
    calls, real = [], module.evaluate_babylm

    def counted(data, encoder, scorer):
        calls.append(next(iter(data.items), "reading"))
        return real(data, encoder, scorer)

    monkeypatch.setattr(module, "evaluate_babylm", counted)
    return calls


@pytest.fixture
def official_sizes(monkeypatch) -> None:
    """The official sets as large as the made-up ones."""
    sizes = {
        FULL: {"blimp_filtered": (2, 8), "comps": (1, 4), "entity_tracking": (2, 5)},
        FAST: {"blimp_fast": (2, 6, 3), "entity_tracking_fast": (2, 4)},
    }
    for part, sets in sizes.items():
        both = {"global_piqa_parallel": (4, 4, 1), "reading": (1, 40)}
        for name, size in {**sets, **both}.items():
            monkeypatch.setitem(OFFICIAL[part], name, OfficialSet(*OFFICIAL[part][name][:2], *size))


def evaluate(data_dir: Path, folder: Path, model: Path | None = None):
    found, data = read_submission_model(model or tiny_export()), read_submission_data(data_dir)
    return found, data, evaluate_submission(found, data, folder, CPU, 4096)


@pytest.fixture(scope="module")
def finished(data_dir, tmp_path_factory) -> Path:
    """The folder of a submission whose sets are all evaluated."""
    folder = tmp_path_factory.mktemp("finished")
    evaluate(data_dir, folder)
    return folder


def copied(finished: Path, folder: Path) -> Path:
    return shutil.copytree(finished, folder / "copy")


# ---- the layout ----


def test_predictions_lie_where_the_official_pipeline_puts_them(data_dir, finished, official_sizes):
    collated = write_official(finished, *evaluate(data_dir, finished), NOTHING, TRACKS["strict-small"])
    root = finished / "results" / "tiny_model"
    assert collated == root / "all_full_preds_and_fast_scores_causal.json"
    files = {path.relative_to(root).as_posix() for path in root.rglob("*.json")} - {collated.name}
    fast = ["blimp/blimp_fast", "entity_tracking/entity_tracking_fast", "reading"]
    fast += ["global_piqa_parallel/global_piqa_parallel"]
    full = ["blimp/blimp_filtered", "entity_tracking/entity_tracking", "comps/comps"]
    expected = {f"main/zero_shot/causal/{name}/predictions.json" for name in full}
    expected |= {f"{model}/zero_shot/causal/{name}/predictions.json" for model in MODELS for name in fast}
    assert files == expected
    blimp = json.loads((root / "chck_1M/zero_shot/causal/blimp/blimp_fast/predictions.json").read_text())
    assert [prediction["id"] for prediction in blimp["one"]["predictions"]] == ["one_0", "one_1", "one_2"]


def test_the_collated_file_has_the_official_form(data_dir, finished, official_sizes):
    path = write_official(finished, *evaluate(data_dir, finished), NOTHING, TRACKS["strict-small"])
    content, root = json.loads(path.read_text()), path.parent

    def predictions(folder: str) -> dict:
        return json.loads((root / folder / "predictions.json").read_text())

    assert list(content) == [
        *("blimp", "blimp_supplement", "ewok", "entity_tracking_filtered", "comps"),
        *("global_piqa_parallel", "global_piqa_nonparallel", "reading", "aoa_surprisals", "aoa", "glue"),
        "fast_eval_results",
    ]
    assert content["blimp"] == predictions("main/zero_shot/causal/blimp/blimp_filtered")
    assert content["ewok"] is None and content["aoa"] is None and content["glue"] == {}
    first = content["reading"]["reading"]["predictions"][0]
    assert set(first) == {"id", "pred", "prev_pred"} and first["id"] == 0 and math.isnan(first["prev_pred"])

    fast = content["fast_eval_results"]
    assert list(fast) == [
        *("blimp", "blimp_supplement", "ewok", "entity_tracking_filtered"),
        *("global_piqa_parallel", "global_piqa_nonparallel", "reading"),
    ]
    assert all(len(scores) == 19 for scores in fast.values())
    there = {key: [place for place, scores in enumerate(found) if scores is not None] for key, found in fast.items()}
    assert there["blimp"] == there["reading"] == [0, 9] and there["ewok"] == []
    for name, place in (("chck_1M", 0), ("chck_10M", 9)):
        said = predictions(f"{name}/zero_shot/causal/blimp/blimp_fast")
        for subtask in ("one", "two"):
            good = [record["sentence_good"] for record in lines_of(data_dir / f"fast_eval/blimp_fast/{subtask}.jsonl")]
            right = [one["pred"] == answer for one, answer in zip(said[subtask]["predictions"], good, strict=True)]
            assert fast["blimp"][place][subtask] == sum(right) / 3
        piqa = predictions(f"{name}/zero_shot/causal/global_piqa_parallel/global_piqa_parallel")
        questions = lines_of(data_dir / "fast_eval/global_piqa_parallel/eng_latn.jsonl")
        right = [
            piqa[question["example_id"]]["predictions"][0]["pred"].strip() == question[f"solution{question['label']}"]
            for question in questions
        ]
        assert fast["global_piqa_parallel"][place] == {"global_piqa_parallel": sum(right) / 4}
        assert set(fast["entity_tracking_filtered"][place]) == {"regular_0_ops", "regular_1_ops"}
        assert set(fast["reading"][place]) == {"spr", "rt"}


def test_glue_and_ages_of_acquisition_go_where_the_pipeline_reads_them(data_dir, finished, monkeypatch):
    model, data, submission = evaluate(data_dir, finished)
    track = TRACKS["strict-small"]
    glue = {"rte": {"predictions": [{"id": "rte_0", "pred": 1}] * 139}, "wsc": {"predictions": []}}
    rows = [{"step": f"chck_{millions}M", "surprisal": 1.0} for millions in track.milestones for _ in range(8005)]
    files = {"surprisal": {"results": rows}, "aoa_score": {"aoa": 0.25}}
    parts = Parts({}, glue, {}, files, {})
    path = write_official(finished, model, data, submission, parts, track)
    content = json.loads(path.read_text())
    assert content["glue"] == {"rte": glue["rte"]}  # the other has too few questions
    assert content["aoa"] == {"aoa": 0.25} and len(content["aoa_surprisals"]["results"]) == 19 * 8005
    main = path.parent / "main"
    assert json.loads((main / "finetune/rte/predictions.json").read_text()) == {"rte": glue["rte"]}
    assert json.loads((main / "zero_shot/causal/AoA_word/aoa_score.json").read_text()) == {"aoa": 0.25}
    assert "18 checkpoints" in aoa_problems({"results": rows[8005:]}, track)[0]
    assert "8,004 words" in aoa_problems({"results": rows[1:]}, track)[0]
    assert list(glue_problems(glue)) == ["wsc"]


def test_a_set_of_another_size_is_left_out_and_named(data_dir, finished):
    model, data, submission = evaluate(data_dir, finished)
    assert submission.problems["full_eval/blimp_filtered"] == [
        "full_eval/blimp_filtered has 2 sub-tasks, the official set 67",
        "full_eval/blimp_filtered has 8 items, the official set 59,875",
    ]
    assert "wug_adj_nominalization" not in str(submission.problems)  # no set of 2026
    content = json.loads(write_official(finished, model, data, submission, NOTHING, TRACKS["strict"]).read_text())
    assert content["blimp"] is None and content["fast_eval_results"]["blimp"] == [None] * 28
    pairs = {name: {"predictions": [0] * count} for name, count in (("a", 51), ("b", 49), *((c, 50) for c in "cde"))}
    assert len(size_problems(FAST, "supplement_fast", pairs)) == 2


def test_the_tracks_ask_for_the_official_checkpoints_and_sizes():
    small, large = TRACKS["strict-small"], TRACKS["strict"]
    assert (small.words_seen, large.words_seen) == (10**8, 10**9)
    assert small.milestones == [*range(1, 10), *range(10, 101, 10)]
    assert large.milestones == [*range(1, 10), *range(10, 100, 10), *range(100, 1001, 100)]
    assert sum(GLUE_TASKS.values()) == 29_577 and OFFICIAL[FULL]["entity_tracking"].items == 6_780


# ---- work is done once ----


def test_a_second_call_evaluates_nothing(data_dir, finished, evaluated, caplog):
    with caplog.at_level("INFO"):
        _, _, submission = evaluate(data_dir, finished)
    assert evaluated == [] and submission.fresh == 0
    assert submission.reused == len(FULL_SETS) + 3 * len(FAST_SETS)
    assert f"main: {len(FULL_SETS) + len(FAST_SETS)} of {len(FULL_SETS) + len(FAST_SETS)} results were" in caplog.text


def test_an_interrupted_call_is_gone_on_with(data_dir, tmp_path, evaluated, monkeypatch):
    real, after = module.evaluate_babylm, 7

    def interrupted(*arguments):
        if len(evaluated) == after:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, "evaluate_babylm", interrupted)
        with pytest.raises(KeyboardInterrupt):
            evaluate(data_dir, tmp_path)
    assert len(evaluated) == after
    _, _, submission = evaluate(data_dir, tmp_path)
    # What both parts have is evaluated once for the final model.
    assert len(evaluated) == EVALUATED and submission.fresh == EVALUATED - after
    assert evaluated.count("reading") == evaluated.count("global_piqa_parallel") == 3


def test_changed_weights_are_evaluated_anew_and_nothing_else(data_dir, finished, tmp_path, evaluated):
    folder, model = copied(finished, tmp_path), shutil.copytree(tiny_export(), tmp_path / "tiny_model")
    _, _, before = evaluate(data_dir, folder, model)
    weights = load_file(model / "chck_1M" / "model.safetensors")
    weights = {name: tensor * 1.5 if "embeddings" in name else tensor for name, tensor in weights.items()}
    save_file(weights, model / "chck_1M" / "model.safetensors", metadata={"format": "pt"})
    (model / "chck_1M" / CHECKSUMS).unlink()
    (model / "README.md").write_text("another card")
    assert evaluated == []
    _, _, after = evaluate(data_dir, folder, model)
    assert sorted(evaluated) == FAST_SETS
    figures = [one.done["chck_1M"]["fast_eval/reading"].figures["eye_tracking"] for one in (before, after)]
    assert figures[0] != figures[1]


def test_changed_data_are_evaluated_anew_and_nothing_else(data_dir, finished, tmp_path, evaluated):
    folder, data = copied(finished, tmp_path), shutil.copytree(data_dir, tmp_path / "data")
    path = data / "fast_eval" / "blimp_fast" / "one.jsonl"
    path.write_text(path.read_text().replace("binding", "islands"))
    evaluate(data, folder)
    assert evaluated == ["blimp_fast"] * 3


def test_a_damaged_result_is_evaluated_anew(data_dir, finished, tmp_path, evaluated):
    folder = copied(finished, tmp_path)
    path = folder / "kept" / "chck_10M" / "fast_eval-blimp_fast.json"
    path.write_bytes(path.read_bytes()[:-20])
    evaluate(data_dir, folder)
    assert evaluated == ["blimp_fast"]


def test_a_checkpoint_with_the_final_weights_is_not_evaluated_again(data_dir, tmp_path, evaluated):
    model = shutil.copytree(tiny_export(), tmp_path / "tiny_model")
    shutil.rmtree(model / "chck_1M")
    shutil.rmtree(model / "chck_10M")
    shutil.copytree(model, model / "chck_2M")
    _, _, submission = evaluate(data_dir, tmp_path / "out", model)
    assert len(evaluated) == len(FULL_SETS) + len(FAST_SETS) - 2
    of_final, of_checkpoint = (submission.done[name]["fast_eval/blimp_fast"] for name in ("main", "chck_2M"))
    assert of_final.figures == of_checkpoint.figures and of_final.predictions() == of_checkpoint.predictions()
    assert submission.reused == 0 and submission.fresh == len(evaluated), "equal ones are of no earlier call"


# ---- what an export says ----


def test_words_and_passes_come_from_the_export(tmp_path):
    assert read_submission_model(tiny_export()).words_seen == 1_234_567
    said = '{"words_seen": 5000000, "passes": 3, "corpus_words": 2000000}'
    (tmp_path / "config.json").write_text(f'{{"trained_with": {said}}}')
    assert training_said(tmp_path) == (5_000_000, 3, 2_000_000)
    # Exports of earlier versions have it in their card alone.
    (tmp_path / "config.json").write_text('{"trained_with": {"images": true}}')
    assert training_said(tmp_path) == (None, None, None)
    (tmp_path / "README.md").write_text("| words seen, all epochs counted | 19,800,000 |\n")
    assert training_said(tmp_path) == (19_800_000, None, None)


# ---- checkpoints that count as none ----


def test_checkpoints_that_count_words_from_another_run_take_no_place(data_dir, tmp_path, official_sizes):
    model = shutil.copytree(tiny_export(), tmp_path / "tiny_model")
    settings = json.loads((model / "chck_1M" / "config.json").read_text())
    settings["trained_with"] |= {"words_since_another_run": 1_000_000}
    (model / "chck_1M" / "config.json").write_text(json.dumps(settings))
    # Exports of earlier versions have it in their card alone.
    card = "| words seen since it started from another run, all epochs counted | 10,000,000 |\n"
    (model / "chck_10M" / "README.md").write_text(card)
    found, data, submission = evaluate(data_dir, tmp_path / "out", model)
    assert found.checkpoints == [] and list(submission.done) == ["main"]
    [said] = found.left_out
    assert said.startswith("chck_1M, chck_10M: left out. Their run started from another one") and "init_from" in said
    track = TRACKS["strict-small"]
    content = json.loads(write_official(tmp_path / "out", found, data, submission, NOTHING, track).read_text())
    assert content["fast_eval_results"]["blimp"] == [None] * 19
    report = Report(found, data, submission, Parts({}, {}, {}, {}, {"aoa": "x"}), track)
    assert said in report.remarks() and not report.curves()
    assert "checkpoints: chck_1M" in report.missing() and "--words_seen_checkpoints" not in str(report.missing())


def test_folders_that_are_called_nearly_as_checkpoints_are_named(tmp_path):
    model = shutil.copytree(tiny_export(), tmp_path / "tiny_model")
    for name in ("chck_0M", "chck_01M"):
        shutil.copytree(model / "chck_1M", model / name)
    found = read_submission_model(model)
    assert [one.name for one in found.checkpoints] == ["chck_1M", "chck_10M"]
    assert found.left_out == (
        "chck_01M was left out: its name would be chck_1M. Rename it",
        "chck_0M was left out: no track asks for a model that has seen nothing",
    )


# ---- what other code left ----


def test_results_of_another_edition_are_evaluated_anew(data_dir, finished, tmp_path, evaluated, monkeypatch):
    """The first one scored models with a window, and packed rows of GPT-Neo, otherwise."""
    monkeypatch.setattr(module, "EDITION", 1)
    evaluate(data_dir / "fast_eval", copied(finished, tmp_path))
    assert sorted(evaluated) == sorted(FAST_SETS * 3)


def test_the_other_kept_results_are_of_an_edition_too(data_dir, tmp_path, monkeypatch):
    today = KeptSets(tmp_path, "model", data_dir / "fast_eval").of("blimp_fast")[1]
    monkeypatch.setattr(zero_shot, "EDITION", 1)
    assert KeptSets(tmp_path, "model", data_dir / "fast_eval").of("blimp_fast")[1] != today
