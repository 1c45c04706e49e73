"""How many words a batch shows: budgets of training data (BabyLM's 100M) are counted in words, batches hold tokens."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import islice

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from bitgen.data.scripts import count_words, is_unspaced

# How byte-level BPE and SentencePiece write the space before a word.
_SPACE_MARKS = ("Ġ", "▁")
# What a token of a script without spaces may hold: its characters (from U+0E00 on), or, from its three or four bytes,
# the first one, as byte-level BPE (à to ô) and SentencePiece write it. Other text holds these too.
_MAYBE_UNSPACED = re.compile("[à-ô]|<0x[EF].>")

_AT_ONCE = 1024  # captions


class WordCounter:
    """Counts words from token ids, as :func:`bitgen.data.scripts.count_words` counts them in the text.

    Words between spaces are the tokens that start with a space, and the first of each caption. A caption in a script
    without spaces is decoded, and its characters are counted. A tokenizer that does not mark spaces has its tokens
    counted instead, which is never too few.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        tokens = tokenizer.get_vocab()
        starts = torch.zeros(max(tokens.values()) + 1, dtype=torch.bool)
        unspaced = torch.zeros_like(starts)
        for token, index in tokens.items():
            starts[index] = token.startswith(_SPACE_MARKS)
            unspaced[index] = is_unspaced(token) or _MAYBE_UNSPACED.search(token) is not None
        marked = bool(starts.any())
        self.starts = starts if marked else ~starts
        self.maybe_unspaced = unspaced if marked else torch.zeros_like(starts)
        self.tokenizer = tokenizer

    def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> int:
        """Words in ``input_ids [B, T]`` (BOS ... EOS), on the CPU; a truncated caption counts as far as it is seen."""
        return int(self.each(input_ids, attention_mask).sum())

    def each(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Words of each row, int64 ``[B]``."""
        shown = attention_mask.bool()
        # Neither BOS, nor the first word's token (counted by the row), nor what the mask hides.
        counts = (self.starts[input_ids[:, 2:]] & shown[:, 2:]).sum(1) + 1  # (B,)
        for row in (self.maybe_unspaced[input_ids] & shown).any(1).nonzero().flatten().tolist():
            ids = input_ids[row][shown[row]].tolist()
            text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            if is_unspaced(text):
                counts[row] = count_words(text)
        return counts


def words_of(sequences: Iterable[Sequence[int] | np.ndarray], tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Words of captions that are given as ids ``BOS ... EOS``, as a :class:`WordCounter` counts them: int64 ``[M]``."""
    count, found, rows = WordCounter(tokenizer), [np.zeros(0, np.int64)], iter(sequences)
    while chunk := [torch.as_tensor(np.asarray(row, np.int64)) for row in islice(rows, _AT_ONCE)]:
        ids, mask = (pad_sequence(each, batch_first=True) for each in (chunk, [torch.ones_like(row) for row in chunk]))
        found.append(count.each(ids, mask).numpy())
    return np.concatenate(found)
