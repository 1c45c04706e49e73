"""Texts as ids, and ids as tensors: what a processor does with text, and who has a tokenizer alone."""

from __future__ import annotations

import string
import unicodedata
from collections.abc import Sequence

import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

# With each letter that a name may begin with, and several that may follow.
_NAMES = [f"{first}{second}" for first in string.ascii_uppercase for second in "aeilrou"]


def text_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """The ids of texts, without BOS and EOS. Text that spells a special token is text.

    ``split_special_tokens`` sees to that where special tokens are no ordinary ones. Unigram and WordLevel vocabularies
    hold ``</s>`` as a piece that any text can reach: there its characters take its place, those that the vocabulary
    lacks as unknown tokens. Unknown words stay the unknown token that they are.
    """
    encoded = tokenizer(
        list(texts), add_special_tokens=False, split_special_tokens=True, return_attention_mask=False, verbose=False
    )["input_ids"]
    ends = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    specials = ends | (set(tokenizer.all_special_ids) - {tokenizer.unk_token_id})
    return [ids if specials.isdisjoint(ids) else _spelled(tokenizer, ids, specials) for ids in encoded]


def space_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that stands between a text and a name behind it, whose other tokens are those of the name alone.

    None where there is none: the tokenizer keeps no spaces, or its tokens of a name begin with one.
    """
    (space, *names), behind = text_ids(tokenizer, [" ", *_NAMES]), text_ids(tokenizer, [f" {name}" for name in _NAMES])
    apart = len(space) == 1 and all(found == [*space, *name] for name, found in zip(names, behind, strict=True))
    return space[0] if apart and space[0] != tokenizer.unk_token_id else None


def begins_behind_space(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a text's first word has the tokens that it has inside a text only behind a space.

    No: the tokenizer keeps no spaces, puts one before each text itself, or has a token of its own for one
    (:func:`space_id`), which is known to stand between words.
    """
    if space_id(tokenizer) is not None:
        return False
    word, within = text_ids(tokenizer, ["a"])[0], text_ids(tokenizer, [f"a {name}" for name in _NAMES])
    parted = all(found[: len(word)] == word for found in within)
    within, behind = [found[len(word) :] for found in within], text_ids(tokenizer, [f" {name}" for name in _NAMES])
    return parted and behind == within != text_ids(tokenizer, _NAMES)


def words_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """What each token is of a word, a digit for each id: 0 no part of one (spaces, marks, special tokens), 1 letters, 2
    letters behind a space, with which a word begins. An unknown word is a word."""
    ends = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    specials = set(tokenizer.all_special_ids)
    before = text_ids(tokenizer, ["a"])[0]
    alone = tokenizer.decode(before)

    def kind(token: int) -> str:
        if token in specials:
            return "2" if token == tokenizer.unk_token_id and token not in ends else "0"
        text = tokenizer.decode([*before, token]).removeprefix(alone)  # alone a token may lose its space
        first = text.lstrip(" ")[:1]
        # Letters, numbers and signs on letters; a part of such a character decodes to a mark of its own.
        is_word = first != "" and (unicodedata.category(first)[0] in "LNM" or first == "\N{REPLACEMENT CHARACTER}")
        return "12"[text[0] == " "] if is_word else "0"

    known = set(tokenizer.get_vocab().values())  # ids may have gaps
    return "".join(kind(token) if token in known else "0" for token in range(max(known) + 1))


def know_words(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let a network that recalls know its tokenizer's words, where its files are of an earlier release."""
    if config.recall_tokens and config.recall_words is None:
        config.recall_words = words_of(tokenizer)


def _spelled(tokenizer: PreTrainedTokenizerBase, ids: list[int], specials: set[int | None]) -> list[int]:
    spelled: list[int] = []
    for token in ids:
        characters = tokenizer.convert_tokens_to_ids(list(tokenizer.convert_ids_to_tokens(token)))
        spelled += [one for one in characters if one not in specials] if token in specials else [token]
    return spelled


def pad_tokens(sequences: Sequence[torch.Tensor], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Token sequences ``[T_i]`` to ``input_ids`` and ``attention_mask``, int64 ``[B, T]``, padded right.

    The mask comes from the lengths: with GPT-2's tokenizer pad and EOS are the same id.
    """
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    longest = int(lengths.max())
    input_ids = torch.full((len(sequences), longest), pad_token_id, dtype=torch.int64)
    for row, sequence in enumerate(sequences):
        input_ids[row, : len(sequence)] = sequence
    attention_mask = (torch.arange(longest) < lengths[:, None]).long()
    return {"input_ids": input_ids, "attention_mask": attention_mask}
