"""Texts that spell the tokens by which a chat template sets its messages apart: there they are text.

An answer about HTML may hold ``</s>``, and a question ``<|im_end|>``. As tokens they would end the answer, or let
whoever wrote the question speak as the system. Other special tokens stay what they are: boxes may be written so.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence

from transformers import PreTrainedTokenizerBase

_ROLES = ("system", "user", "assistant", "tool")


@functools.lru_cache(maxsize=64)
def _structure(tokenizer: PreTrainedTokenizerBase, template: frozenset[str]) -> re.Pattern[str] | None:
    """What finds each place where one of these tokens begins; None: there are none."""
    written = "\n".join(template)
    # Special ones alone: answers may well hold `<think>` or `<tool_call>`, which templates write, too.
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    # A template may put tokens together of a role's name; not every role speaks in this conversation.
    tokens = {token for token in added if token in written or any(role in token for role in _ROLES)}
    tokens |= {getattr(tokenizer, name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")} - {None}
    longer = sorted(re.escape(token) for token in tokens if len(token) > 1 and token.strip())  # and no run of spaces
    return re.compile(f"(?={'|'.join(longer)})") if longer else None


def cuts_in(
    tokenizer: PreTrainedTokenizerBase, template: Iterable[str], text: str, visuals: Sequence[int]
) -> list[int]:
    """Where a message is to be cut so that no token in it is one of the template's: behind the first letter of each.

    Args:
        template: its source, and what it writes around the messages of this conversation.
        visuals: where in the text the marks of visuals stand, which are meant.
    """
    found = _structure(tokenizer, frozenset(template))
    return [place.start() + 1 for place in found.finditer(text) if place.start() not in visuals] if found else []


def tokens_of_parts(
    tokenizer: PreTrainedTokenizerBase, text: str, cuts: Sequence[int], mark: str
) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids of a text whose parts between ``cuts`` are tokenised apart, and where each token stands in the text.

    Args:
        mark: a special token. It stands before each part but the first and is taken off again, because tokenizers write
            the beginning of a text in a way of its own. (Some write a space before the part all the same.)
    """
    ids: list[int] = []
    offsets: list[tuple[int, int]] = []
    for start, end in zip((0, *cuts), (*cuts, len(text)), strict=True):
        before = mark if start else ""
        encoded = tokenizer(before + text[start:end], add_special_tokens=False, return_offsets_mapping=True)
        for token, (first, last) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
            if last > len(before) or not before:
                ids.append(token)
                offsets.append((start + max(first - len(before), 0), start + last - len(before)))
    return ids, offsets
