"""How many words a batch shows: budgets of training data (BabyLM's 100M) are counted in words, batches hold tokens."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from transformers import PreTrainedTokenizerBase

# How byte-level BPE and SentencePiece write the space before a word.
_SPACE_MARKS = ("Ġ", "▁")


class WordCounter:
    """Counts words separated by spaces from token ids: tokens that start with a space, and the first of each caption.

    A tokenizer that does not mark spaces has its tokens counted instead, which is never too few.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        tokens = tokenizer.get_vocab()
        starts = torch.zeros(max(tokens.values()) + 1, dtype=torch.bool)
        for token, index in tokens.items():
            starts[index] = token.startswith(_SPACE_MARKS)
        self.starts = starts if starts.any() else ~starts

    def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> int:
        """Words in ``input_ids [B, T]`` (BOS ... EOS), on the CPU; a truncated caption counts as far as it is seen."""
        # Neither BOS, nor the first word's token (counted by the row), nor what the mask hides.
        inner = attention_mask[:, 2:].bool()
        return int((self.starts[input_ids[:, 2:]] & inner).sum()) + len(input_ids)


def caption_words_per_batch(captions: Iterable[str], batch_size: int) -> float:
    """Mean words of a batch of captions."""
    counts = [len(caption.split()) for caption in captions]
    return sum(counts) / max(len(counts), 1) * batch_size
