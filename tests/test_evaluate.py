"""The entry `src/evaluate.py`, from a checkpoint on disk to results.json."""

import json
import math
import shutil

import pytest
import torch

from bitgen.checkpoint.format import split_state
from bitgen.checkpoint.manifest import read_manifest, write_manifest
from bitgen.checkpoint.store import CheckpointStore
from bitgen.commands import evaluate
from bitgen.config import Config
from bitgen.data.records import Record
from bitgen.data.tokenizer import build_tokenizer
from bitgen.evaluation.flags import parse_flags
from bitgen.evaluation.results import write_results
from support.data import encode, noise, write_features, write_images
from support.models import tiny_model
from support.runs import REPOSITORY, written_run
from support.warm import run_warm

FEATURES = (4, 6)
CAPTIONS = [
    [f"a {colour} thing {way}" for way in ("near", "far", "up")[: 1 + row % 3]] for row, colour in enumerate("abcdefgh")
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder with two checkpoints of an untrained model, the first one the best; and its data."""
    folder = tmp_path_factory.mktemp("run")
    checkpoints = folder / "checkpoints"
    flat = [caption for captions in CAPTIONS for caption in captions]
    tokenizer = build_tokenizer("train", flat, 280, checkpoints / "tokenizer")
    config = Config().replace(train_data="pairs", vision_encoder="features", vision_tuning="frozen", max_seq_len=24)
    store = CheckpointStore(checkpoints, keep=5)
    for step in (1, 2):
        model = tiny_model(FEATURES, step, vocab_size=len(tokenizer), max_seq_len=24)
        own, _ = split_state(model, model.base_names())
        files = {"config.yaml": config.to_yaml(), "config.json": json.dumps(model.config.to_dict())}
        store.save(step, own, {"step": step}, files, is_best=step == 1)
    write_features(folder / "data", CAPTIONS, FEATURES)
    return folder


def run_evaluate(run, *flags, data=None, checkpoint=None, output=None):
    output = output or run / "out" / "results.json"
    evaluate.main(
        ["--checkpoint", str(checkpoint or run / "checkpoints"), "--data", str(data or run / "data")]
        + ["--output", str(output), "--num_workers", "0", "--bootstrap", "20", *flags]
    )
    return json.loads(output.read_text())


def test_results_have_the_layout_of_the_specification(run, capsys):
    results = run_evaluate(run, "--task", "retrieval,matching", "--rerank_top_k", "16")
    assert set(results) == {"retrieval", "matching", "memory"}
    recalls = {f"{way}_R@{k}" for way in ("t2i", "i2t", "reranked_t2i", "reranked_i2t") for k in (1, 5, 10)}
    assert recalls <= set(results["retrieval"])
    accuracies = {"itm_acc", "itm_acc_cosine"}
    assert set(results["matching"]) == accuracies | {f"{name}_calibrated" for name in accuracies}
    assert {"memory_utilization", "memory_quality"} <= set(results["memory"])
    for name, value in results["retrieval"].items():
        if name.endswith("_ci95"):
            low, high = value
            assert low <= results["retrieval"][name.removesuffix("_ci95")] <= high
        elif "R@" in name:
            assert 0 <= value <= 100
    # Eight images: all are among the first ten, so a share instead of a percentage would show here.
    assert results["retrieval"]["t2i_R@10"] == 100.0
    printed = capsys.readouterr().out
    assert "text to image, by cosine" in printed and f"{results['matching']['itm_acc']:.1f}" in printed


def test_re_ranking_adds_the_cosine_that_the_draw_of_negatives_took_out(run, monkeypatch):
    weights = []
    plain = evaluate.rerank_metrics

    def spy(runner, encoded, ranking, chosen, *rest):
        weights.append(chosen)
        return plain(runner, encoded, ranking, chosen, *rest)

    monkeypatch.setattr(evaluate, "rerank_metrics", spy)
    for flags in ((), ("--rerank_cosine_weight", "0"), ("--rerank_cosine_weight", "3")):
        run_evaluate(run, "--task", "retrieval", "--bootstrap", "0", *flags)
    assert [chosen.cosine for chosen in weights] == pytest.approx([1 / Config().objective.itm_temperature, 0, 3])
    assert [chosen.text for chosen in weights] == [0, 0, 0]  # this run never learned to write


def test_re_ranking_asks_the_captioner_where_there_is_one():
    flags = parse_flags(["--checkpoint", "x", "--data", "y"])
    assert evaluate.rerank_weights(flags, Config().replace(text_loss_weight=0.5), 0.02).text == 1
    has_it = Config().replace(text_loss_weight=0.5, itm_likelihood=True)
    assert evaluate.rerank_weights(flags, has_it, 0.02) == pytest.approx((50, 0))  # in the logit already
    flags = parse_flags(["--checkpoint", "x", "--data", "y", "--rerank_text_weight", "0.3"])
    assert evaluate.rerank_weights(flags, Config(), 0.02).text == 0.3


def test_another_run_may_judge_the_captions(run, monkeypatch, tmp_path, caplog):
    with pytest.raises(SystemExit):  # it never learned to write
        run_evaluate(run, "--task", "retrieval", "--captioner", str(run / "checkpoints"))
    asked = []
    plain = evaluate.rerank_metrics

    def spy(runner, encoded, ranking, chosen, bootstrap, captioner):
        asked.append((chosen.text, captioner.runner.model is not runner.model, captioner.encoded.num_texts))
        return plain(runner, encoded, ranking, chosen, bootstrap, captioner)

    monkeypatch.setattr(evaluate, "rerank_metrics", spy)
    other = shutil.copytree(run / "checkpoints", tmp_path / "captioner", symlinks=True)
    for config in other.glob("step-*/config.yaml"):
        manifest = read_manifest(config.parent)
        config.write_text(config.read_text().replace("text_loss_weight: 0.0", "text_loss_weight: 1.0"))
        write_manifest(config.parent, manifest["step"], manifest["vision_base"])
    run_evaluate(run, "--task", "retrieval", "--captioner", str(other))
    assert asked == [(1.0, True, sum(map(len, CAPTIONS)))]


def test_matching_weighs_the_captions_evidence_that_re_ranking_takes(run, monkeypatch):
    seen = []
    plain = evaluate.matching_metrics
    monkeypatch.setattr(evaluate, "matching_metrics", lambda *args: seen.append((args[0], args[3])) or plain(*args))
    for weight in ("0", "1"):
        run_evaluate(run, "--task", "matching", "--rerank_text_weight", weight)
    (_, none), (runner, own) = seen
    assert none is None and own.runner is runner  # without --captioner the model's own


@pytest.mark.parametrize(("after", "is_shown"), [((40.0, 20.0), False), ((30.0, 31.0), True)])
def test_reranking_that_ranks_worse_than_cosine_is_left_out_and_said(run, monkeypatch, caplog, after, is_shown):
    by_cosine = {"t2i_R@1": 40.0, "i2t_R@1": 21.0, "t2i_median_rank": 1.0, "i2t_median_rank": 1.0}
    reranked = {f"reranked_{way}_R@1": value for way, value in zip(("t2i", "i2t"), after, strict=True)}
    monkeypatch.setattr(evaluate, "retrieval_metrics", lambda *_: dict(by_cosine))
    monkeypatch.setattr(evaluate, "rerank_metrics", lambda *_: dict(reranked))
    monkeypatch.setattr(evaluate, "tables", lambda *_: "")
    warning = "re-ranking ranks worse than cosine: mean R@1 30.0 instead of 30.5"
    results = run_evaluate(run, "--task", "retrieval")["retrieval"]
    assert (results == by_cosine | reranked) == is_shown and (warning in caplog.text) != is_shown
    asked = run_evaluate(run, "--task", "retrieval", "--rerank_top_k", "16")["retrieval"]
    assert asked == by_cosine | reranked  # whoever asks for it sees it, and the warning


def test_a_run_means_its_best_checkpoint(run):
    best = run_evaluate(run, "--task", "retrieval")
    assert best == run_evaluate(run, "--task", "retrieval", checkpoint=run / "checkpoints" / "step-00000001")
    assert best != run_evaluate(run, "--task", "retrieval", checkpoint=run / "checkpoints" / "step-00000002")


def test_tasks_choose_the_sections(run):
    assert set(run_evaluate(run, "--task", "memory")) == {"memory"}
    plain = run_evaluate(run, "--task", "retrieval", "--rerank_top_k", "0", "--bootstrap", "0")
    assert set(plain) == {"retrieval"} and len(plain["retrieval"]) == 8


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--task", "retrieval,matchign"], "unknown task 'matchign'; choose from retrieval, matching, memory"),
        (["--batch_size", "0"], "--batch_size is 0; it must be at least 1"),
        (["--checkpoint", "nowhere"], "--checkpoint nowhere: there is no such folder"),
        (["--data", "nowhere"], "data folder nowhere does not exist"),
        (["--data", "scenes"], "--data scenes holds images, and this checkpoint takes features of 4 x 6"),
        (["--precision", "fp16"], "--precision fp16 needs a GPU"),
        (["--max_images", "1"], "matching needs at least two images"),
    ],
)
def test_mistakes_are_named(run, capsys, monkeypatch, flags, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stopped:
        run_evaluate(run, *flags)
    assert stopped.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_features_of_another_width_are_refused(run, capsys, tmp_path):
    with pytest.raises(SystemExit):
        run_evaluate(run, data=write_features(tmp_path / "wide", CAPTIONS, (4, 7)))
    assert "holds features of 4 x 7, and this checkpoint takes features of 4 x 6" in capsys.readouterr().err


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("content", [b"junk", encode(noise(5))[:400]], ids=["no image", "cut short"])
def test_an_image_that_cannot_be_read_is_named_and_the_program_ends(tmp_path, content, workers):
    """Workers outlive the exception that names it, and the end of the program must not wait for them."""
    records = [Record(f"{n}.png", encode(noise(n)), ["a dog"]) for n in range(3)]
    data = write_images(tmp_path / "data", [*records, Record("holiday.jpg", content, ["a dog"])])
    flags = ["--checkpoint", written_run(), "--data", data, "--task", "retrieval", "--bootstrap", 0, "--batch_size", 2]
    flags += ["--num_workers", workers, "--device", "cpu", "--output", tmp_path / "results.json"]
    done = run_warm([REPOSITORY / "src" / "evaluate.py", *flags], timeout=120)
    assert done.returncode == 2, done.stderr
    error = done.stderr[done.stderr.index("error: ") :].strip()
    assert "record 3 (holiday.jpg) cannot be read as an image" in error and "\n" not in error


def test_cuda_where_there_is_none(run, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        run_evaluate(run, "--device", "cuda")
    assert "no CUDA device" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_named(run, capsys, tmp_path):
    copy = tmp_path / "checkpoints"
    shutil.copytree(run / "checkpoints", copy, symlinks=True)
    weights = copy / "step-00000001" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(SystemExit):
        run_evaluate(run, checkpoint=copy)
    error = capsys.readouterr().err
    assert "step-00000001" in error and "damaged" in error


def test_an_output_that_cannot_be_written_is_found_before_the_work(run, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit):
        run_evaluate(run, output=tmp_path / "file" / "results.json")
    captured = capsys.readouterr()
    assert "--output" in captured.err and "cannot write there" in captured.err
    assert not captured.out


def test_results_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    write_results({"retrieval": {"t2i_R@1": 1.0, "t2i_R@1_ci95": [math.nan, math.nan]}}, str(path))
    assert json.loads(path.read_text())["retrieval"]["t2i_R@1_ci95"] == [None, None]
    before = path.read_text()
    full = OSError(28, "No space left on device")

    def refuse(_descriptor):
        raise full

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(ValueError, match="No space left"):
        write_results({"retrieval": {"t2i_R@1": 2.0}}, str(path))
    assert path.read_text() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["results.json"]
