"""Runs on text, with and without image-caption pairs: what they log, that they resume exactly, what they refuse."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Callable

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM

import evaluate
import export
from bitgen.checkpoint.format import CheckpointError
from bitgen.data.tokenizer import load_tokenizer, train_bpe
from bitgen.run import finish
from bitgen.trained import open_model
from support.data import write_text_corpus
from support.runs import fit_until, metrics, same_checkpoint
from support.tokenizers import prose

NO_VALIDATION = dict(val_data=None, text_val_data=None)


def losses(trainer) -> dict[int, dict[str, float]]:
    """Everything logged of the losses, training and held out, by step."""
    found: dict[int, dict[str, float]] = {}
    for record in metrics(trainer.monitor.log_dir):
        kept = {name: value for name, value in record.items() if name.startswith(("train/", "val/"))}
        found.setdefault(record["step"], {}).update(kept)
    return found


def texts_of(trainer) -> dict[str, list[str]]:
    """TensorBoard's texts, read back from the event files."""
    trainer.monitor.flush()
    events = EventAccumulator(str(trainer.monitor.log_dir), size_guidance={"tensors": 0}).Reload()
    names = [name for name in events.Tags()["tensors"] if name.startswith("samples/")]
    return {
        name.removesuffix("/text_summary"): [
            event.tensor_proto.string_val[0].decode() for event in events.Tensors(name)
        ]
        for name in names
    }


# ---- what a run logs ----


def test_a_run_on_text_and_pairs_logs_both_losses_perplexities_and_texts(build, both, caplog) -> None:
    trainer = build(**both, eval_steps=4, max_words_seen=10**6, max_epochs=30)
    with caplog.at_level(logging.INFO):
        assert trainer.fit()
        finish(trainer)
    logged = losses(trainer)
    assert all({"train/text_loss", "train/caption_loss", "train/loss"} <= set(logged[step]) for step in range(1, 9))
    assert logged[8]["train/text_loss"] < logged[1]["train/text_loss"]
    for step in (4, 8):
        held_out = logged[step]
        assert held_out["val/perplexity"] == pytest.approx(math.exp(held_out["val/text_loss"]))
        assert {"val/perplexity_childes", "val/perplexity_wiki", "val/caption_loss", "val/t2i_R@1"} <= set(held_out)
    texts = texts_of(trainer)
    assert set(texts) == {"samples/captions", "samples/continuations"}
    assert all(len(shown) == len(trainer.scores) for shown in texts.values())
    assert "| childes |" in texts["samples/continuations"][-1] and "| wiki |" in texts["samples/continuations"][-1]
    assert "| 0.png |" in texts["samples/captions"][-1]
    words = trainer.progress.words_seen
    assert f"{words / 10**6:.1%} of max_words_seen 1,000,000" in caplog.text
    assert "of max_epochs 30" in caplog.text and "(50% of the batches are text)" in caplog.text
    assert "--task captioning" in caplog.text and "--task babylm" in caplog.text


def test_words_are_those_of_the_source_and_of_the_captions_shown(build, both) -> None:
    settings = dict(max_steps=None, num_epochs=9, grad_accum_steps=1, batch_size=3, text_batch_size=43)
    trainer = build(**both | NO_VALIDATION | settings)
    trainer.fit()
    text, pairs = trainer.source.dataset.text, trainer.source.sampler.pairs
    assert len(text) % 43 == 0, "no sequence is dropped"
    captions = list(trainer.source.dataset.pairs.iter_captions())
    shown = [key.index for epoch in range(9) for batch in pairs.epoch(epoch) for key in batch]
    words = sum(len(captions[index].split()) for index in shown[: 9 * trainer.source.sampler.pair_batches * 3])
    assert trainer.progress.words_seen == 9 * text.num_words + words


# ---- stopping and going on ----


def test_a_run_on_text_and_pairs_resumes_bit_for_bit(build, both) -> None:
    """Over the end of an epoch of text, which is not one of the pairs, with workers, averages and validation."""
    settings = both | dict(max_steps=9, text_batch_size=20, num_workers=1, eval_steps=3, ema_decay=0.9)
    straight = build("straight", **settings)
    straight.fit()
    assert (
        straight.stage.steps_per_epoch == 4
        and len(straight.source.sampler.pairs) != straight.source.sampler.pair_batches
    )
    assert not fit_until(build("resumed", **settings), 5)
    second = build("resumed", **settings, resume="auto")
    assert second.progress.step == 5
    assert second.fit()
    same_checkpoint(straight.store.folder, second.store.folder)
    assert losses(straight) == losses(second) and len(losses(second)) == 9


def test_text_alone_resumes_bit_for_bit(build, text_alone) -> None:
    """From a checkpoint on the way, in another folder."""
    settings = text_alone | dict(save_steps=3, text_batch_size=20, max_steps=7, max_checkpoints_to_keep=9)
    straight = build("straight", **settings)
    straight.fit()
    second = build("resumed", **settings, resume=str(straight.store.folder / "step-00000003"))
    second.fit()
    same_checkpoint(straight.store.folder, second.store.folder)
    assert losses(second) == {step: found for step, found in losses(straight).items() if step > 3}


@pytest.mark.parametrize(
    "changed", [{"text_ratio": 0.6}, {"text_batch_size": 5}, {"text_seq_len": 21}, {"optimizer": "adamw"}]
)
def test_another_order_of_the_text_or_another_optimizer_is_refused(build, both, changed: dict) -> None:
    build(**both | dict(max_steps=1)).fit()
    with pytest.raises(CheckpointError, match="belongs to another run"):
        build(**both | dict(max_steps=1, resume="auto") | changed)


# ---- text alone ----


def test_text_alone_trains_exports_reloads_and_is_evaluated(build, text_alone, tmp_path) -> None:
    trainer = build(**text_alone | dict(max_steps=6, max_seq_len=40))
    assert trainer.fit()
    logged = losses(trainer)
    assert logged[6]["train/text_loss"] < logged[1]["train/text_loss"]
    assert (
        "val/perplexity" in logged[6] and "train/caption_loss" not in logged[6] and "val/caption_loss" not in logged[6]
    )
    assert set(texts_of(trainer)) == {"samples/continuations"}
    assert trainer.store.best is not None

    export.main(["--checkpoint", str(trainer.store.folder), "--output", str(tmp_path / "export")])
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "export", trust_remote_code=True)
    loaded = open_model(trainer.store.folder)
    ids = torch.tensor([loaded.tokenizer(prose(99, 1))["input_ids"]])
    with torch.no_grad():
        torch.testing.assert_close(reloaded(ids).logits, loaded.model(ids), rtol=0, atol=1e-5)
    assert reloaded.generate(ids, max_new_tokens=3, do_sample=False).shape[1] <= ids.shape[1] + 3

    items = [{"sentence_good": prose(n, 1), "sentence_bad": prose(n + 50, 1), "UID": "one"} for n in range(4)]
    (tmp_path / "sets" / "blimp_fast").mkdir(parents=True)
    lines = [json.dumps(item | {"field": "f", "linguistics_term": "t"}) + "\n" for item in items]
    (tmp_path / "sets" / "blimp_fast" / "one.jsonl").write_text("".join(lines))
    results = tmp_path / "results.json"
    evaluate.main(
        ["--task", "babylm", "--checkpoint", str(trainer.store.folder), "--eval_dir", str(tmp_path / "sets")]
        + ["--output", str(results), "--device", "cpu"]
    )
    assert 0 <= json.loads(results.read_text())["babylm"]["blimp_fast"]["accuracy"] <= 100


# ---- bad input ----


@pytest.fixture
def broken(both, tmp_path) -> Callable[[str], str]:
    """Folders of text that cannot be used."""

    def make(kind: str) -> str:
        folder = tmp_path / kind
        if kind == "missing":
            return str(folder)
        if kind == "foreign":
            other = train_bpe(["quite other words altogether"], 280)
            return str(write_text_corpus(folder, other, {"a": ["quite other words"]}))
        if kind == "empty":
            folder.mkdir()
            return str(folder)
        return str(write_text_corpus(folder, load_tokenizer(both["tokenizer"]), {}))

    return make


def test_a_copy_of_the_training_text_is_no_held_out_text(main, both, tmp_path) -> None:
    copy = shutil.copytree(both["text_data"], tmp_path / "copy")
    status, said = main(**both | {"text_val_data": str(copy)})
    assert status == 2 and "copy holds the training text itself" in said


@pytest.mark.parametrize("setting", ["text_data", "text_val_data"])
@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("missing", "does not exist: make it with `python data_prep/babylm_text.py"),
        ("foreign", "was made with another tokenizer"),
        ("empty", "is not a BitGen text corpus"),
        ("nothing in it", "holds no text"),
    ],
)
def test_text_that_cannot_be_used_is_one_message_and_status_2(main, both, broken, setting, kind, named) -> None:
    status, said = main(**both | {setting: broken(kind)})
    assert status == 2
    assert "Traceback" not in said and said.count("error: ") == 1
    assert named in said and kind in said


def test_too_little_text_for_a_batch(main, both) -> None:
    status, said = main(**both | dict(text_batch_size=10_000))
    assert status == 2 and "Traceback" not in said
    assert "text_batch_size 10000 is larger than text corpus" in said and "use --text_batch_size 86 or less" in said
