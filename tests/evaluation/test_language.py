"""Held-out losses against BitGenForCausalLM's own, one document and one caption at a time."""

from __future__ import annotations

import math

import pytest
import torch

from bitgen.data.text_blocks import TextBlocks
from bitgen.data.tokenizer import train_bpe
from bitgen.evaluation import language
from bitgen.evaluation.encode import Runner
from bitgen.evaluation.generation import language_model
from bitgen.evaluation.language import caption_loss, split_by_source, text_perplexities
from bitgen.evaluation.matching import RerankWeights, score_candidates
from bitgen.evaluation.retrieval import rank_split
from bitgen.model.modeling_bitgen import BitGenModel
from support.data import write_text_corpus
from support.models import tiny_model
from support.splits import FeatureSplit

WORDS = "the cat sat on a mat and saw the big red dog run far away".split()


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe([" ".join(WORDS[n:] + WORDS[:n]) for n in range(len(WORDS))], 300)


@pytest.fixture(scope="module")
def blocks(tokenizer, tmp_path_factory) -> TextBlocks:
    """Two sources of documents that cuts divide."""
    prose = [" ".join(WORDS[n % 5 : 6 + n % 9]) for n in range(30)]
    folder = write_text_corpus(tmp_path_factory.mktemp("text") / "val", tokenizer, {"a": prose[:22], "b": prose[20:]})
    return TextBlocks(folder, tokenizer, 14, seed=5)


def build(tokenizer, **changes: object) -> BitGenModel:
    model = tiny_model(vocab_size=len(tokenizer), max_seq_len=16, **changes)
    with torch.no_grad():
        for parameter in model.embeddings.parameters():
            parameter.mul_(20)
        if model.memory is not None:
            model.memory.state.normal_()
    return model.train()


def mean_of(parts: list[tuple[float, int]]) -> float:
    return sum(loss * count for loss, count in parts) / sum(count for _, count in parts)


@pytest.mark.parametrize("changes", [{}, {"positions": "rope"}, {"use_memory": False}], ids=str)
@pytest.mark.parametrize("batch_size", [3, 64])
def test_perplexities_are_those_of_documents_read_one_by_one(tokenizer, blocks, batch_size, changes) -> None:
    model = build(tokenizer, **changes)
    reader = language_model(model, tokenizer).eval()
    sources = split_by_source(blocks, tokenizer)
    assert list(sources) == ["a", "b"]
    losses: dict[str, list[tuple[float, int]]] = {}
    for name, source in sources.items():
        losses[name] = []
        for index in range(len(source)):
            sample = source[index]
            for document in range(int(sample["document_ids"].max()) + 1):
                ids = sample["input_ids"][sample["document_ids"] == document][None]
                if ids.shape[1] > 1:
                    with torch.no_grad():
                        losses[name].append((reader(ids, labels=ids).loss.item(), ids.shape[1] - 1))
    model.train()
    found = text_perplexities(Runner(model, batch_size), sources)
    assert model.training
    mean = mean_of(losses["a"] + losses["b"])
    assert found.pop("text_loss") == pytest.approx(mean, rel=1e-5)
    expected = {f"perplexity_{name}": math.exp(mean_of(parts)) for name, parts in losses.items()}
    assert found == pytest.approx({"perplexity": math.exp(mean), **expected}, rel=1e-4)


def test_a_large_source_is_read_in_part_and_always_the_same(tokenizer, blocks, monkeypatch) -> None:
    model = build(tokenizer)
    monkeypatch.setattr(language, "SEQUENCES", 4)
    read = []
    stack = model.run_stack
    monkeypatch.setattr(
        model, "run_stack", lambda ids, *rest, **named: (read.append(ids), stack(ids, *rest, **named))[1]
    )
    first, second = (text_perplexities(Runner(model, 3), {"a": blocks}) for _ in range(2))
    assert first == second
    assert [len(ids) for ids in read] == [3, 1, 3, 1]
    assert torch.equal(torch.cat(read[:2]), torch.stack([blocks[row]["input_ids"] for row in range(4)]))


def test_a_hopeless_loss_is_an_infinite_perplexity_and_no_error(tokenizer, blocks) -> None:
    """exp() of a loss beyond 709 overflows: a run on its way to divergence must not end with a traceback."""
    model = build(tokenizer)
    with torch.no_grad():
        model.embeddings.token.weight.mul_(1e4)
    found = text_perplexities(Runner(model, 64), {"a": blocks})
    assert found["text_loss"] > 1000 and found["perplexity"] == found["perplexity_a"] == math.inf


@pytest.mark.parametrize(
    "changes", [{}, {"positions": "rope"}, {"use_memory": False}, {"fusion": "concat_mlp"}], ids=str
)
def test_the_caption_loss_is_that_of_captions_read_one_by_one(tokenizer, changes) -> None:
    model, split = build(tokenizer, **changes), FeatureSplit(7, len(tokenizer))
    reader = language_model(model, tokenizer).eval()
    losses = []
    for caption, row in zip(split.captions, split.owner, strict=True):
        with torch.no_grad():
            loss = reader(caption[None], vision_features=split.features[row : row + 1], labels=caption[None]).loss
        losses.append((loss.item(), len(caption) - 1))
    model.train()
    runner = Runner(model, 4)
    found = caption_loss(runner, runner.encode(split))
    assert model.training
    assert found == pytest.approx(mean_of(losses), rel=1e-4)


def test_the_captioner_s_evidence_is_what_the_image_adds_to_the_likelihood(tokenizer) -> None:
    model, split = build(tokenizer), FeatureSplit(7, len(tokenizer))
    reader = language_model(model, tokenizer).eval()

    def log_prob(caption: torch.Tensor, **image: torch.Tensor) -> float:
        with torch.no_grad():
            loss = reader(caption[None], labels=caption[None], **image).loss
        return -loss.item() * (len(caption) - 1)

    texts, images = torch.tensor([0, 3, 3, 9, 1]), torch.tensor([6, 0, 5, 2, 1])
    expected = [
        log_prob(split.captions[text], vision_features=split.features[row : row + 1]) - log_prob(split.captions[text])
        for text, row in zip(texts.tolist(), images.tolist(), strict=True)
    ]
    runner = Runner(model, 2)
    found = runner.text_evidence(runner.encode(split), texts, images)
    assert found.tolist() == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_re_ranking_by_the_captioner_alone_orders_by_likelihood(tokenizer) -> None:
    model, split = build(tokenizer), FeatureSplit(7, len(tokenizer))
    torch.nn.init.zeros_(model.itm_head.weight)
    torch.nn.init.zeros_(model.itm_head.bias)
    runner = Runner(model, 4)
    encoded = runner.encode(split)
    ranking = rank_split(encoded, top_k=3)
    scores, _ = score_candidates(runner, encoded, ranking, RerankWeights(text=2.0))
    texts = torch.arange(encoded.num_texts).repeat_interleave(3)
    expected = 2 * runner.text_evidence(encoded, texts, ranking.text_candidates.flatten())
    torch.testing.assert_close(scores.flatten(), expected, rtol=1e-4, atol=1e-4)
