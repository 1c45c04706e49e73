"""What validation says of a model that reads and writes: its score, its texts."""

from __future__ import annotations

import math

import pytest
import torch

from bitgen.config import Config
from bitgen.data.dataset import PairDataset
from bitgen.data.text_blocks import TextBlocks
from bitgen.data.tokenizer import train_bpe
from bitgen.evaluation.put_right import PutRight
from bitgen.machine.devices import Precision
from bitgen.model.modeling_bitgen import BitGenModel
from bitgen.model.processing_bitgen import BitGenProcessor
from bitgen.tasks.stage1_validation import HeldOut, score_text
from support.data import write_features, write_text_corpus
from support.models import FEATURES, tiny_model

DOCUMENTS = ["a b c", "the cat sat on the mat", "the dog ran far away from here", "größe naïve größe naïve größe"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(DOCUMENTS[1:3], 280)


@pytest.fixture
def held_out(tokenizer, tmp_path):
    """``held_out(context, *documents)`` validates on text alone; the second is a tiny model."""

    def build(context: int, *documents: str) -> tuple[HeldOut, BitGenModel]:
        text = TextBlocks(write_text_corpus(tmp_path / "val", tokenizer, {"a": list(documents)}), tokenizer, context)
        config = Config().replace(max_seq_len=context, text_loss_weight=1.0, text_batch_size=4)
        cpu = torch.device("cpu")
        model = tiny_model(vocab_size=len(tokenizer), max_seq_len=context, use_memory=False)
        return HeldOut(config, None, text, tokenizer, cpu, Precision("fp32", "cpu")), model

    return build


def table(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]


def test_text_alone_is_scored_by_its_loss_and_continued(held_out) -> None:
    validate, model = held_out(64, *DOCUMENTS[1:3])
    before = torch.get_rng_state()
    result = validate(model, 0.5)
    assert torch.equal(torch.get_rng_state(), before)
    assert set(result.scalars) == {"val/text_loss", "val/perplexity", "val/perplexity_a"}
    assert result.score == -result.scalars["val/text_loss"] and not result.pictures
    assert score_text(result.score) == f"held-out loss {result.scalars['val/text_loss']:.3f}"
    head, _, row = table(result.texts["samples/continuations"])
    assert head == ["source", "prompt", "continuation"] and row[0] == "a"
    assert any(document.startswith(row[1]) for document in DOCUMENTS[1:3])


@pytest.mark.parametrize("context", [3, 4, 8, 13, 32])
@pytest.mark.parametrize("document", [*DOCUMENTS, "ßß ßß"])
def test_a_prompt_is_of_one_document_and_leaves_room(held_out, context: int, document: str) -> None:
    """Short contexts, and characters of several tokens that the prompt's end may cut."""
    validate, model = held_out(context, *[document] * 3)
    _, _, row = table(validate(model, 0.5).texts["samples/continuations"])
    assert document.startswith(row[1])


def test_a_loss_that_is_no_number_is_never_the_best(held_out) -> None:
    validate, model = held_out(64, *DOCUMENTS[1:3])
    with torch.no_grad():
        model.final_norm.weight.fill_(math.nan)
    assert validate(model, 0.5).score == -math.inf


@pytest.mark.parametrize(
    ("changes", "better"),
    [
        ({}, {"val/t2i_R@1": 2.0}),
        ({"contrastive_weight": 0.0, "itm_weight": 0.5, "text_loss_weight": 1.0}, {"val/caption_loss": 1.0}),
        ({"contrastive_weight": 0.0, "itm_weight": 0.5}, {"val/itm_loss": 0.1}),
    ],
)
def test_what_scores_is_what_was_learned(changes: dict, better: dict[str, float]) -> None:
    """Similarities of a model that matches without contrast are those of the beginning, and their recalls chance."""
    config, held_out = Config().replace(**changes), object.__new__(HeldOut)
    held_out.config = config
    found = {"val/t2i_R@1": 1.0, "val/itm_loss": 0.6}
    if config.objective.text_loss_weight:
        found["val/caption_loss"] = 2.0
    assert held_out._score({**found, **better}) > held_out._score(found)
    if changes:
        assert held_out._score({**found, "val/t2i_R@1": 50.0}) == held_out._score(found)


def test_what_re_ranking_put_right_is_drawn_and_kept_for_the_summary(tokenizer, tmp_path, monkeypatch) -> None:
    captions = [["the cat sat"], ["the mat"], ["far away"], ["a dog ran", "the dog ran"]]
    processor = BitGenProcessor(tokenizer, 28, 12)
    dataset = PairDataset(write_features(tmp_path / "pairs", captions, FEATURES), processor, seed=0)
    model = tiny_model(vocab_size=len(tokenizer), max_seq_len=12)
    config = Config().replace(max_seq_len=12, text_loss_weight=0.0)
    held_out = HeldOut(config, dataset, None, tokenizer, torch.device("cpu"), Precision("fp32", "cpu"))
    asked: list[float] = []

    def example(runner, encoded, ranking, cosine_weight):
        asked.append(cosine_weight)
        return [PutRight(3, torch.tensor([1, 3, 0, 2]), torch.tensor([3, 1, 0, 2]))]

    monkeypatch.setattr("bitgen.tasks.stage1_validation.put_right", example)
    assert "retrieval/reranked" in held_out(model, 0.5).pictures
    assert held_out.put_right == [("a dog ran", "the mat")]
    assert asked == [1 / config.objective.itm_temperature]

    monkeypatch.setattr("bitgen.tasks.stage1_validation.put_right", lambda *_: [])
    assert "retrieval/reranked" not in held_out(model, 0.5).pictures and held_out.put_right == []
