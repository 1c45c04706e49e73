"""How well a model predicts held-out text and captions: losses in nats a token, perplexities."""

from __future__ import annotations

import math

import torch

from bitgen.data.text_blocks import TextBlocks, causal_document_mask, collate_blocks
from bitgen.evaluation.encode import EncodedSplit, Runner
from bitgen.model.likelihood import IGNORED, next_token_labels
from bitgen.model.sequence_layout import SequenceLayout
from bitgen.objectives.language import language_loss

SEQUENCES = 64  # of a source at most: some thousand tokens each settle a perplexity to a few per cent


def split_by_source(text: TextBlocks, tokenizer: object) -> dict[str, TextBlocks]:
    """The corpus's sources, each as a corpus of its own."""
    names = [source.name for source in text.sources]
    return {name: TextBlocks(text.folder, tokenizer, text.seq_len, text.seed, [name]) for name in names}


def text_perplexities(runner: Runner, sources: dict[str, TextBlocks]) -> dict[str, float]:
    """``text_loss`` over all sources, ``perplexity`` of it, and ``perplexity_NAME`` of each source.

    Of a source at most ``SEQUENCES`` sequences are read, the same ones each time.
    """
    sums: dict[str, tuple[float, int]] = {}
    for name, blocks in sources.items():
        total, tokens = 0.0, 0
        for start in range(0, min(len(blocks), SEQUENCES), runner.batch_size):
            rows = range(start, min(start + runner.batch_size, len(blocks), SEQUENCES))
            loss, count = _text_batch(runner, collate_blocks([blocks[row] for row in rows]))
            total, tokens = total + loss * count, tokens + count
        sums[name] = total, tokens
    mean = sum(total for total, _ in sums.values()) / sum(tokens for _, tokens in sums.values())
    each = {f"perplexity_{name}": _perplexity(total / tokens) for name, (total, tokens) in sums.items()}
    return {"text_loss": mean, "perplexity": _perplexity(mean), **each}


def _perplexity(loss: float) -> float:
    try:
        return math.exp(loss)
    except OverflowError:  # a loss beyond 709, of a run that diverges
        return math.inf


def _text_batch(runner: Runner, batch: dict[str, torch.Tensor]) -> tuple[float, int]:
    batch = {name: tensor.to(runner.device) for name, tensor in batch.items()}
    layout = SequenceLayout(batch["position_ids"], causal_document_mask(batch["document_ids"]), batch["attention_mask"])
    model = runner.model
    with runner.evaluating():
        hidden = model.run_stack(batch["input_ids"], layout.real, layout=layout).hidden_states
        loss = language_loss(hidden, model.embeddings.token.weight, batch["labels"])
    return loss.item(), int((batch["labels"] != IGNORED).sum())


def caption_loss(runner: Runner, encoded: EncodedSplit) -> float:
    """Mean loss a token of all captions, each given its image."""
    total, tokens = 0.0, 0
    for part, mask, fused in runner.fuse(encoded, torch.arange(encoded.num_texts), encoded.caption_image):
        ids = encoded.tokens_of(part)[0].to(mask.device)
        labels = next_token_labels(ids, mask)
        with runner.evaluating():
            loss = language_loss(fused.hidden_states, runner.model.embeddings.token.weight, labels)
        count = int((labels != IGNORED).sum())
        total, tokens = total + loss.item() * count, tokens + count
    return total / tokens
