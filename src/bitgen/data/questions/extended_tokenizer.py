"""A tokenizer with more tokens: those of another keep their ids, marks and frequent new words follow.

A word that the tokenizer writes with several tokens becomes one by further merges, which come after all that it has
(byte-level BPE alone). A tokenizer of another kind gets the marks only.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

_FREQUENT = 20  # occurrences from which a word is worth a token


def extended_tokenizer(
    base: PreTrainedTokenizerFast, marks: Sequence[str], texts: Iterable[str], most: int
) -> PreTrainedTokenizerFast:
    """``base`` with ``marks`` as tokens, and words of ``texts`` that it splits, of at most ``most`` tokens.

    Raises:
        ValueError: the marks alone are more than there is room for.
    """
    content = json.loads(base.backend_tokenizer.to_str())
    vocabulary = base.get_vocab()
    size = max(vocabulary.values()) + 1
    new = [mark for mark in marks if mark not in vocabulary]
    if size != len(vocabulary):
        raise ValueError(
            f"the ids of the tokenizer have gaps: {len(vocabulary)} tokens, of which the largest id is {size - 1}. New "
            "tokens would get ids that are taken; use a tokenizer without gaps."
        )
    if size + len(new) > most:
        raise ValueError(
            f"vocab_size is {most}, but the tokenizer has {size} tokens and {len(new)} marks come to them. Write "
            f"vocab_size {size + len(new) + 100}, which leaves room for new words."
        )
    # Where the marks are there already no words follow: they would take the ids of the marks. And where tokens stand
    # behind the model's own vocabulary, new words of that would move them.
    if content["model"]["type"] == "BPE" and new and len(content["model"]["vocab"]) == size:
        _add_words(content["model"], base, _frequent(texts), size, most - len(new))
    tokenizer = Tokenizer.from_str(json.dumps(content))
    # No special tokens: decoding must keep them. What a person writes is never read as one (`MarkedTokens.text`).
    tokenizer.add_tokens([AddedToken(mark, normalized=False, special=False) for mark in new])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=base.bos_token,
        eos_token=base.eos_token,
        pad_token=base.pad_token,
        unk_token=base.unk_token,
        clean_up_tokenization_spaces=False,
    )


def pieces_of_new_tokens(base: PreTrainedTokenizerBase, tokenizer: PreTrainedTokenizerBase) -> dict[int, list[int]]:
    """Of each token that an extended tokenizer has beyond ``base``, the ids that ``base`` writes it with; of a mark
    none.

    Raises:
        ValueError: the tokens of ``base`` have other ids in it.
    """
    known, found = base.get_vocab(), {}
    for token, index in tokenizer.get_vocab().items():
        if token in known:
            if known[token] != index:
                raise ValueError(f"token {token!r} is {index} in the extended tokenizer and {known[token]} in its base")
            continue
        is_mark = token.startswith("<") and token.endswith(">")
        # Not by its text: a token may end within a character.
        found[index] = [] if is_mark else [piece.id for piece in base.backend_tokenizer.model.tokenize(token)]
    return found


def _frequent(texts: Iterable[str]) -> list[str]:
    counts = Counter(word.strip("?,;.") for text in texts for word in text.split())
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [word for word, count in ordered if count >= _FREQUENT and (word.isalpha() or word.isdecimal())]


def _add_words(model: dict, base: PreTrainedTokenizerBase, words: Sequence[str], size: int, most: int) -> None:
    """Adds merges to a BPE model, each of which joins two tokens that there are."""
    vocabulary, merges = model["vocab"], model["merges"]
    for word in words:
        pieces = base.convert_ids_to_tokens(base(f" {word}", add_special_tokens=False)["input_ids"])
        if size + len(pieces) - 1 > most:
            return
        joined = pieces[0]
        for piece in pieces[1:]:
            pair, joined = [joined, piece], joined + piece
            if joined in vocabulary:
                continue
            merges.append(pair if merges and isinstance(merges[0], list) else " ".join(pair))
            vocabulary[joined] = size
            size += 1
