"""`src/evaluate.py --task babylm`, on a Hugging Face model's folder and on a run."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from bitgen.commands import evaluate
from bitgen.evaluation.babylm.models import run_language_model
from bitgen.evaluation.babylm.packing import TokenSequence
from bitgen.evaluation.babylm.scoring import Scorer
from bitgen.export.revisions import export_run
from bitgen.trained import open_model
from support.babylm import model_folder
from support.runs import written_run
from support.tokenizers import other_tokenizer


def run(folder, eval_dir, output, *flags):
    evaluate.main(
        ["--task", "babylm", "--checkpoint", str(folder), "--eval_dir", str(eval_dir), "--device", "cpu"]
        + ["--output", str(output / "results.json"), "--predictions", str(output / "predictions.json"), *flags]
    )
    return tuple(json.loads((output / f"{name}.json").read_text()) for name in ("results", "predictions"))


def flat(figures, name=""):
    """The numbers of nested objects by their paths."""
    if not isinstance(figures, dict):
        return {name: figures}
    return {path: number for key, value in figures.items() for path, number in flat(value, f"{name}/{key}").items()}


def test_a_hugging_face_folder(eval_dir, tmp_path, capsys):
    results, predictions = run(model_folder(), eval_dir, tmp_path)
    assert set(results) == {"babylm"} and set(results["babylm"]) == {path.name for path in eval_dir.iterdir()}
    assert set(results["babylm"]["blimp_fast"]["UID"]) == {"one", "two"}
    assert predictions["reading"]["reading"]["predictions"][0]["prev_pred"] is None
    assert f"{results['babylm']['blimp_fast']['accuracy']:.2f}" in capsys.readouterr().out


def test_an_interrupted_call_goes_on_and_leaves_nothing_behind(eval_dir, tmp_path, monkeypatch):
    folder, kept = model_folder(), tmp_path / "results_babylm"
    whole = run(folder, eval_dir, tmp_path)
    assert not kept.exists()
    score, scored = Scorer.score, []

    def interrupted(self, sequences):
        scored.append(len(sequences))
        if len(scored) == 3:
            raise KeyboardInterrupt
        return score(self, sequences)

    monkeypatch.setattr(Scorer, "score", interrupted)
    with pytest.raises(SystemExit, match="130"):
        run(folder, eval_dir, tmp_path)
    assert len(list(kept.iterdir())) == 2
    (kept / "notes.txt").touch()
    assert run(folder, eval_dir, tmp_path) == whole
    assert len(scored) == len(list(eval_dir.iterdir())) + 1  # each set once, and the one that was interrupted twice
    assert [path.name for path in kept.iterdir()] == ["notes.txt"]  # what is not of the evaluation stays


def test_a_run_scores_as_its_export(eval_dir, tmp_path, caplog):
    folder = written_run(features=True, max_seq_len=160)
    export = export_run(str(folder), str(tmp_path / "export"), True, False, {})
    with caplog.at_level("INFO"):
        scored, decided = run(folder, eval_dir, tmp_path)
        exported, same = run(export, eval_dir, tmp_path)
    reading, other = scored["babylm"].pop("reading"), exported["babylm"].pop("reading")
    assert scored == exported
    # Surprisals are sums whose last bits depend on where in memory the weights lie.
    assert flat(reading) == pytest.approx(flat(other), rel=1e-4, abs=1e-4)
    said, again = decided.pop("reading"), same.pop("reading")
    assert decided == same
    for one, two in zip(said["reading"]["predictions"], again["reading"]["predictions"], strict=True):
        numbers = [
            {name: number or 0.0 for name, number in entry.items()} for entry in (one, two)
        ]  # None: no word before
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-4, abs=1e-4)
    assert "does not read packed rows" not in caplog.text


def test_a_run_reads_the_end_of_a_text_that_is_too_long_as_its_export_does(monkeypatch):
    loaded = open_model(written_run(features=True))  # reads 40 tokens
    model, _ = run_language_model(loaded, torch.device("cpu"))
    ids = torch.randint(3, loaded.model.config.vocab_size, (60,), generator=torch.Generator().manual_seed(0))
    sequence = TokenSequence(ids.tolist(), [5, 30, 59], "here")
    scorer = Scorer(model, torch.device("cpu"))
    with torch.no_grad():
        plain = scorer._plain([sequence], quiet=True)
    # Length times vocabulary is gigabytes where a text has 50,000 words: the head reads a few positions at a time.
    monkeypatch.setattr(model, "logits", None)
    answers = scorer.score([sequence])[0]
    assert answers == pytest.approx(plain, abs=1e-5)
    with torch.no_grad():
        end = model.model(ids[None, 19:59]).logits[0].log_softmax(-1)
    assert answers[2] == pytest.approx(float(end[39, ids[59]]), abs=1e-5)
    assert answers[1] == pytest.approx(float(end[10, ids[30]]), abs=1e-5)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--task", "babylm"], "--task babylm needs --eval_dir"),
        (["--task", "retrieval,babylm", "--eval_dir", "x"], "--task retrieval needs --data"),
        (["--task", "babylm", "--eval_dir", "nowhere"], "nowhere: there is no such folder"),
    ],
)
def test_mistakes_are_named(tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit) as stopped:
        evaluate.main(["--checkpoint", str(model_folder()), "--output", str(tmp_path / "results.json"), *flags])
    assert stopped.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_folder_without_weights_is_named(eval_dir, tmp_path, capsys):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text((model_folder() / "config.json").read_text())
    with pytest.raises(SystemExit):
        run(tmp_path / "model", eval_dir, tmp_path)
    assert "cannot be loaded as a causal language model" in " ".join(capsys.readouterr().err.split())


def test_a_folder_that_lacks_weights_gets_no_score(eval_dir, tmp_path, capsys):
    """transformers would fill them with random numbers, and only warn."""
    model = shutil.copytree(model_folder(), tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    del weights["transformer.ln_f.weight"]
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SystemExit):
        run(model, eval_dir, tmp_path)
    assert "lacks 1 weights of a causal language model, first transformer.ln_f.weight" in capsys.readouterr().err


def test_a_folder_with_another_tokenizer_gets_no_score(eval_dir, tmp_path, capsys):
    model = shutil.copytree(model_folder(), tmp_path / "model")
    before = len(AutoTokenizer.from_pretrained(model))
    other_tokenizer(before + 8).save_pretrained(model)
    with pytest.raises(SystemExit):
        run(model, eval_dir, tmp_path)
    said = " ".join(capsys.readouterr().err.split())
    assert f"has {before + 8} tokens and the model's vocabulary {before}: it is not the one" in said
