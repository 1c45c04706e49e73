"""All (Super)GLUE tasks of a folder: what is kept, that it goes on, and `src/evaluate.py --task glue`."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from bitgen.commands import evaluate
from bitgen.evaluation.babylm.glue import evaluation as glue
from bitgen.evaluation.babylm.glue.evaluation import evaluate_glue, mean_over_tasks, over_seeds
from bitgen.evaluation.babylm.glue.finetuning import FinetuneResult
from bitgen.evaluation.flags import parse_flags
from bitgen.export.revisions import export_run
from support.babylm import model_folder
from support.glue import records, write_glue, write_lines
from support.runs import written_run

CPU = torch.device("cpu")
TASKS = ("boolq", "wsc")


@pytest.fixture(scope="module")
def glue_dir(tmp_path_factory):
    return write_glue(tmp_path_factory.mktemp("sets"), *TASKS, train=40, valid=10)


def evaluated(glue_dir, kept=None, model=None, seeds=(1, 2), **options):
    model = model or model_folder("gpt2", bos=True)
    options = {"learning_rate": 2e-3, "epochs": 2, "show_progress": False, **options}
    return evaluate_glue(model, glue_dir, CPU, seeds, kept=kept, **options)


@pytest.fixture
def work(monkeypatch):
    """Task and seed of each training that is done; a name in ``stop_at`` interrupts it."""
    done, plain = [], glue.finetune_task

    def finetune(model, task, seed, *rest):
        if (task.task.name, seed) == work.stop_at:
            raise KeyboardInterrupt
        done.append((task.task.name, seed))
        return plain(model, task, seed, *rest)

    work = type("Work", (), {"done": done, "stop_at": None})()
    monkeypatch.setattr(glue, "finetune_task", finetune)
    return work


def test_an_interrupted_evaluation_goes_on(glue_dir, tmp_path, work):
    work.stop_at = ("wsc", 1)
    with pytest.raises(KeyboardInterrupt):
        evaluated(glue_dir, tmp_path)
    assert work.done == [("boolq", 1), ("boolq", 2)]
    work.stop_at = None
    resumed = evaluated(glue_dir, tmp_path)
    assert work.done[2:] == [("wsc", 1), ("wsc", 2)]
    assert evaluated(glue_dir, tmp_path) == resumed and len(work.done) == 4
    assert evaluated(glue_dir) == resumed and len(work.done) == 8


@pytest.mark.parametrize("change", ["weights", "texts", "labels", "settings", "tasks alone"])
def test_what_was_kept_is_of_these_weights_texts_and_settings(glue_dir, tmp_path, work, change):
    kept, sets = tmp_path / "kept", shutil.copytree(glue_dir, tmp_path / "sets")
    model = shutil.copytree(model_folder("gpt2", bos=True), tmp_path / "model")
    evaluated(sets, kept, model, (1,), tasks=["boolq"])
    path, options = sets / "glue_filtered" / "boolq.train.jsonl", {}
    if change == "weights":
        weights = load_file(model / "model.safetensors")
        weights["transformer.wpe.weight"] *= 1.5
        save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    elif change == "texts":
        path.write_text(path.read_text().replace("cat", "hat", 1))
    elif change == "labels":
        lines = records("boolq", 40)
        lines[3]["label"] = 1 - lines[3]["label"]
        write_lines(path, lines)
    elif change == "settings":
        options["epochs"] = 1
    shutil.move(model, tmp_path / "moved")
    again = evaluated(sets, kept, tmp_path / "moved", (1,), tasks=["boolq"], **options)
    assert work.done == [("boolq", 1)] * (1 if change == "tasks alone" else 2)
    # Both are there now: nothing was written over.
    assert evaluated(sets, kept, tmp_path / "moved", (1,), tasks=["boolq"], **options) == again
    assert len(list(kept.iterdir())) == len(work.done)


def test_a_damaged_result_is_done_again(glue_dir, tmp_path, work, caplog):
    found = evaluated(glue_dir, tmp_path, seeds=(1,), tasks=["boolq"])
    [path] = tmp_path.iterdir()
    path.write_text(path.read_text()[:-20])
    assert evaluated(glue_dir, tmp_path, seeds=(1,), tasks=["boolq"]) == found
    assert len(work.done) == 2 and str(path) in caplog.text


def test_a_full_disk_does_not_lose_what_was_learned(glue_dir, tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise ValueError("kept: cannot write it (No space left on device)")

    monkeypatch.setattr("bitgen.evaluation.babylm.kept.write_whole", refuse)
    found = evaluated(glue_dir, tmp_path, seeds=(1,), tasks=["boolq"])
    assert "No space left on device): an interruption would lose this result" in caplog.text
    monkeypatch.undo()
    assert evaluated(glue_dir, seeds=(1,), tasks=["boolq"]) == found


def test_figures_over_seeds_and_tasks():
    def result(accuracy, f1):
        return FinetuneResult({"accuracy": accuracy, "f1": f1}, [0], 1, [f1], 2.0)

    found = over_seeds({42: result(60.0, 50.0), 43: result(70.0, 80.0), 44: result(80.0, 80.0)})
    assert (found["accuracy"], found["accuracy_std"], found["f1"]) == pytest.approx((70, 10, 70))
    assert found["seeds"]["43"] == {"accuracy": 70.0, "f1": 80.0, "best_epoch": 1, "by_epoch": [80.0]}
    one = over_seeds({42: result(60.0, 50.0)})
    assert "accuracy_std" not in one
    means = mean_over_tasks({"mrpc": found, "rte": one, "mnli": {"accuracy": 50.0}})
    assert means == pytest.approx({"accuracy": (70 + 60 + 50) / 3, "accuracy_or_f1": (70 + 60 + 50) / 3})
    means = mean_over_tasks({"qqp": found | {"f1": 90.0}, "rte": one})
    assert means == pytest.approx({"accuracy": 65, "accuracy_or_f1": 75})


# ---- the command ----


def run(model, glue_dir, output, *flags):
    evaluate.main(
        ["--task", "glue", "--checkpoint", str(model), "--eval_dir", str(glue_dir), "--device", "cpu"]
        + ["--output", str(output / "results.json"), "--predictions", str(output / "predictions.json")]
        + ["--glue_learning_rate", "2e-3", "--glue_epochs", "2", *flags]
    )
    return tuple(json.loads((output / f"{name}.json").read_text()) for name in ("results", "predictions"))


def test_the_command_writes_figures_and_official_predictions(glue_dir, tmp_path, capsys):
    results, predictions = run(model_folder("gpt2", bos=True), glue_dir, tmp_path, "--seeds", "1", "2")
    assert set(results) == set(predictions) == {"glue"}
    expected = evaluated(glue_dir)
    assert results["glue"] == expected.results and predictions["glue"] == expected.predictions
    assert list(predictions["glue"]) == list(TASKS)
    answers = predictions["glue"]["boolq"]["predictions"]
    assert [answer["id"] for answer in answers] == [f"boolq_{place}" for place in range(10)]
    assert {answer["pred"] for answer in answers} <= {0, 1}
    labels = [one["label"] for one in records("boolq", 10, seed=1)]
    right = sum(answer["pred"] == label for answer, label in zip(answers, labels, strict=True))
    assert results["glue"]["boolq"]["seeds"]["1"]["accuracy"] == 10 * right
    out = capsys.readouterr().out
    assert "(Super)GLUE, % (2 seeds)" in out
    assert f"{results['glue']['wsc']['mcc']:.2f} ± {results['glue']['wsc']['mcc_std']:.2f}" in out
    assert f"{results['glue']['mean']['accuracy']:.2f}" in out
    assert len(list((tmp_path / "results_glue").iterdir())) == 4


def test_a_run_and_its_export_learn_alike_and_beside_babylm(glue_dir, eval_dir, tmp_path):
    sets = shutil.copytree(eval_dir / "supplement_fast", tmp_path / "sets" / "supplement_fast").parent
    shutil.copytree(glue_dir / "glue_filtered", sets / "glue_filtered")
    folder = written_run(features=True, max_seq_len=160)
    export = export_run(str(folder), str(tmp_path / "export"), True, False, {})
    flags = ("--task", "babylm,glue", "--glue_tasks", "boolq", "--seeds", "3")
    found = [run(model, sets, tmp_path / name, *flags) for model, name in ((folder, "one"), (export, "other"))]
    assert found[0] == found[1]
    assert set(found[0][0]) == {"babylm", "glue"} and set(found[0][0]["glue"]) == {"boolq", "mean"}
    assert set(found[0][1]) == {"supplement_fast", "glue"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--task", "glue"], "--task glue needs --eval_dir"),
        (["--task", "retrieval,glue", "--eval_dir", "x"], "--task retrieval needs --data"),
        (["--task", "glue", "--eval_dir", "nowhere"], "nowhere: there is no such folder. Give the folder that holds"),
        (["--task", "glue", "--eval_dir", "x", "--glue_tasks", "cola"], "invalid choice: 'cola'"),
        (["--task", "glue", "--eval_dir", "x", "--seeds", "-1"], "--seeds -1: a seed is a whole number from 0"),
        (["--task", "glue", "--eval_dir", "x", "--glue_epochs", "0"], "--glue_epochs is 0; it must be at least 1"),
        (["--task", "glue", "--eval_dir", "x", "--glue_learning_rate", "0"], "it must be above 0 and at most 1"),
        (["--task", "babylm", "--eval_dir", "x", "--seeds", "1"], "--seeds is for --task glue: write that too"),
    ],
)
def test_mistakes_are_named(tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit) as stopped:
        evaluate.main(["--checkpoint", str(model_folder()), "--output", str(tmp_path / "results.json"), *flags])
    assert stopped.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_files_are_read_before_the_work(glue_dir, tmp_path, capsys):
    sets = shutil.copytree(glue_dir, tmp_path / "sets")
    (sets / "glue_filtered" / "wsc.valid.jsonl").unlink()
    with pytest.raises(SystemExit):
        run(tmp_path / "no model", sets, tmp_path)
    assert "wsc.valid.jsonl is missing: download glue_filtered again" in " ".join(capsys.readouterr().err.split())


def test_a_place_that_cannot_be_written_is_found_before_the_work(glue_dir, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit):
        run(model_folder("gpt2", bos=True), glue_dir, tmp_path, "--glue_kept", str(tmp_path / "file"))
    said = capsys.readouterr()
    assert "cannot write there" in " ".join(said.err.split()) and not said.out


def test_by_default_one_seed_and_every_task():
    flags = parse_flags(["--checkpoint", "x", "--task", "glue", "--eval_dir", "y"])
    assert flags.seeds == [42] and flags.glue_tasks is None and flags.glue_learning_rate is None
