"""Text and pairs over two gloo processes: where a batch leaves out half of the network, the ranks stay together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bitgen.data.tokenizer import load_tokenizer
from support.data import write_features, write_text_corpus
from support.runs import assert_equal_ranks, gradients_of, two_ranks

NO_VALIDATION = dict(val_data=None, text_val_data=None)


@pytest.fixture
def run_two(tiny_config, tmp_path: Path) -> Callable[..., list[dict]]:
    """``run_two(name, nan_at=0, **settings)``: what each of two processes held at the end."""

    def run(name: str, nan_at: int = 0, **settings: object) -> list[dict]:
        return two_ranks(tiny_config(name, **settings), tmp_path / name, nan_at=nan_at)

    return run


@pytest.fixture
def even(corpora, tmp_path) -> dict[str, object]:
    """Text whose sequences are one document each, and captions of one length: then the mean over the ranks' means is
    the mean over all tokens. Nothing is drawn that each rank would draw for itself."""
    tokenizer = load_tokenizer(corpora["tokenizer"])
    draw = torch.Generator().manual_seed(0)

    def words(count: int) -> list[int]:
        return torch.randint(3, len(tokenizer), (count,), generator=draw).tolist()

    documents = [([tokenizer.bos_token_id, *words(10), tokenizer.eos_token_id], 10) for _ in range(48)]
    drawn = [f"{one}{two}{one}" for one in "abcdef" for two in "ghijkl"]
    captions = [[caption] for caption in drawn if len(tokenizer(caption)["input_ids"]) == 3]
    assert len(captions) > 16
    return {
        **corpora,
        **NO_VALIDATION,
        "text_data": str(write_text_corpus(tmp_path / "text", tokenizer, {"a": documents})),
        "text_seq_len": 12,
        "train_data": str(write_features(tmp_path / "pairs", captions)),
        "use_memory": False,
        "itm_weight": 0.0,
        "dropout": 0.0,
        "compressor_dropout": 0.0,
    }


def test_the_gradients_of_two_ranks_are_those_of_one_with_the_larger_batches(run_two, build, even) -> None:
    """A step of text, pairs and text: what the last batch leaves out has its gradient from the one before."""
    settings = {**even, "grad_accum_steps": 3, "max_steps": 1}
    first, second = run_two("two", **settings, batch_size=4)
    assert_equal_ranks(first, second)

    alone = build("one", **settings | dict(batch_size=8, text_batch_size=8))
    gradients = gradients_of(alone)
    alone.fit()
    assert first["samples"] == alone.progress.samples_seen == 3 * 8
    assert gradients.keys() == first["gradients"].keys()
    assert any("compressor" in name for name in gradients)
    for name, gradient in gradients.items():
        torch.testing.assert_close(first["gradients"][name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def test_everything_on_the_ranks_end_equal_and_a_mishap_of_one_is_both_s(run_two, corpora) -> None:
    """All losses, both optimizers, memory and dropout, a budget of words, the last batch of a step once text and once
    pairs, and a loss of rank 1 that is not finite, in a batch of text."""
    settings = {**corpora, **NO_VALIDATION, "max_steps": 9, "max_words_seen": 1500, "grad_accum_steps": 3}
    settings["optimizer"] = "muon"
    first, second = run_two("all", nan_at=3, **settings, batch_size=4, save_steps=2)
    assert_equal_ranks(first, second)
    assert first["skipped"] == second["skipped"] == 1
    assert first["finished"] and second["finished"]
    assert 2 < first["step"] == second["step"] < 9, "the budget ends the run"
    assert 1000 < first["words"] == second["words"] <= 1500
