"""Sequences of stage 2: a question, perhaps why, and the answer, with marks that are tokens of their own between them.

::

    <s><q> what colour is the thing just left of the star?<think> find <b3>.. small red star; next left <b1>.. large
    blue ring<answer> blue</s>
    <s><q> where is the red star?<answer><b3><b8><b7><b12></s>

Marks in a text that a person or a file brings are text: only what is built here has marks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from bitgen.data.questions.boxes import EDGES, read_boxes
from bitgen.model.token_ids import text_ids

QUESTION, THINK, ANSWER, NONE = "<q>", "<think>", "<answer>", "<none>"
MARKS = (QUESTION, THINK, ANSWER, NONE, *EDGES)
DOT = " ."
_WHOLE_BOX = re.compile("((?:<b[0-9]{1,2}>){4})")
_MARK = re.compile("(" + "|".join(map(re.escape, MARKS)) + ")")


class Asked(NamedTuple):
    """A question and what follows it. ``question`` empty: a caption stands alone as ``answer``. ``rationale`` None: the
    answer follows at once. ``family`` and ``hops``: what is measured by it. ``trusted``: marks in its texts are marks;
    of texts that a file brings they are text, but for whole boxes, and an answer that says that nothing is there."""

    question: str
    answer: str
    rationale: str | None = None
    family: str = ""
    hops: int = -1
    trusted: bool = True


class MarkedSequence(NamedTuple):
    """Token ids, BOS to EOS, and how much each counts as what is to be predicted: 0 what is given."""

    ids: list[int]
    weights: list[int]


class MarkedTokens:
    """Texts with marks to ids.

    Raises:
        ValueError: the tokenizer lacks a mark.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        vocabulary = tokenizer.get_vocab()
        missing = [mark for mark in MARKS if mark not in vocabulary]
        if missing:
            raise ValueError(
                f"the tokenizer lacks {len(missing)} marks of stage 2, first {missing[0]}: the model was not trained "
                "to answer questions. Train one with src/train_stage2_reasoning.py."
            )
        self.tokenizer = tokenizer
        self.ids = {mark: vocabulary[mark] for mark in MARKS}
        self.edges = [self.ids[edge] for edge in EDGES]

    def text(self, text: str) -> list[int]:
        """A text of somebody else's, in which whole boxes are boxes and other marks are text; its words begin with a
        space."""
        found: list[int] = []
        for part, is_box in _boxes_apart(" ".join(text.split())):
            if is_box:
                found += self.marked(part)
                continue
            for piece in _MARK.split(_begun(part)):
                # What spells a mark is cut in two, so that the tokenizer does not know it for one.
                for half in (piece[:1], piece[1:]) if piece in self.ids else (piece,):
                    found += text_ids(self.tokenizer, [half])[0] if half else []
        return found

    def marked(self, text: str) -> list[int]:
        """A text whose marks are tokens."""
        found: list[int] = []
        for part in _MARK.split(text):
            if part in self.ids:
                found.append(self.ids[part])
            elif begun := _begun(part):
                found += text_ids(self.tokenizer, [begun])[0]
        return found

    def cannot_write(self, asked: Asked) -> bool:
        """Whether an answer has a word that the tokenizer has no tokens for. (GPT-2's unknown token is its EOS, which
        no text gives.)"""
        words = self.marked(asked.answer) if asked.trusted else self.text(asked.answer)
        return self.tokenizer.unk_token_id in words

    def prompt(self, question: str, thinks: bool, trusted: bool = False) -> list[int]:
        """What the model goes on from: ``<s><q> question<think>`` or ``<s><q> question<answer>``.

        Args:
            trusted: the question was made here, and its marks are marks.
        """
        words = self.marked(question) if trusted else self.text(question)
        bos = self.tokenizer.bos_token_id
        return [bos, self.ids[QUESTION], *words, self.ids[THINK if thinks else ANSWER]]

    def sequence(self, asked: Asked, answer_weight: int = 1, dots: bool = False) -> MarkedSequence:
        """A whole sequence with the weights of its tokens.

        Args:
            answer_weight: of the tokens of an answer that follows a question; others count 1.
            dots: the rationale's tokens are dots, as many as it has, which are given and not predicted.
        """
        eos, words = self.tokenizer.eos_token_id, self.marked if asked.trusted else self.text
        is_none = asked.answer.strip() == NONE
        answer = [*(self.marked if is_none else words)(asked.answer), eos]
        if not asked.question:
            return MarkedSequence([self.tokenizer.bos_token_id, *answer], [0] + [1] * len(answer))
        ids = self.prompt(asked.question, asked.rationale is not None, asked.trusted)
        weights = [0] * len(ids)
        if asked.rationale is not None:
            why = words(asked.rationale)
            if dots:
                why = self.dots(len(why))
            ids += [*why, self.ids[ANSWER]]
            weights += [0 if dots else 1] * (len(why) + 1)
        return MarkedSequence(ids + answer, weights + [answer_weight] * len(answer))

    def dots(self, count: int) -> list[int]:
        """That many tokens that say nothing."""
        (dot, *_) = text_ids(self.tokenizer, [DOT])[0]
        return [dot] * count

    def decode(self, ids: Sequence[int]) -> str:
        """Ids as text, with their marks, one space between words."""
        text = self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return " ".join(text.split())


def _boxes_apart(text: str) -> list[tuple[str, bool]]:
    """A text in parts, each with whether it is a box; four marks that are none are text."""
    parts: list[tuple[str, bool]] = []
    for part in _WHOLE_BOX.split(text):
        is_box = _WHOLE_BOX.fullmatch(part) is not None and None not in read_boxes(part)
        if parts and not is_box and not parts[-1][1]:
            parts[-1] = (parts[-1][0] + part, False)
        else:
            parts.append((part, is_box))
    return parts


def _begun(part: str) -> str:
    """What stands between marks: words begin with a space, marks of punctuation do not."""
    words = part.strip()
    return f" {words}" if words and words[0] not in ",;.?" else words


class Reply(NamedTuple):
    """What a model wrote after a question: why (None: it was not to say) and the answer; None: there is none."""

    rationale: str | None
    answer: str | None


def read_reply(text: str, thinks: bool) -> Reply:
    """What stands after a prompt. With ``thinks``, what comes before ``<answer>`` is why; a second ``<answer>``, or
    ``<think>`` or ``<q>`` anywhere, is no reply."""
    if thinks:
        why, found, answer = text.partition(ANSWER)
        if not found:
            return Reply(why.strip(), None)
    else:
        why, answer = None, text
    said = answer.strip()
    whole = text.replace(ANSWER, "", 1) if thinks else text
    is_reply = said and not any(mark in whole for mark in (QUESTION, THINK, ANSWER))
    return Reply(why.strip() if why is not None else None, said if is_reply else None)
