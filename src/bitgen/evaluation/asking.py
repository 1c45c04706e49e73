"""A person's question about a picture, to a model of stage 2: why, the answer, and the boxes that it speaks of."""

from __future__ import annotations

import re
from typing import NamedTuple

import torch

from bitgen.data.questions.boxes import Box, read_boxes
from bitgen.data.questions.marked_text import MARKS, NONE, MarkedTokens, Reply
from bitgen.evaluation.replies import Decoding, read_replies, write_replies
from bitgen.guards.texts import as_question
from bitgen.trained import Trained

_FOUR_EDGES = re.compile(r"(?:<b\d{1,2}>\s*){4}")
_LEFT_OVER = re.compile(r"<b\d{1,2}>")


class Answered(NamedTuple):
    """What a model answered: ``why`` and ``answer`` as a person reads them, with ``[1]``, ``[2]`` where a box is spoken
    of, and the ``boxes`` by their labels. ``why`` None: it was not to say. ``answer`` empty: it gave none."""

    why: str | None
    answer: str
    boxes: tuple[tuple[str, Box], ...]
    reply: Reply


def thinks_by_default(trained: Trained) -> bool:
    """Whether a model was trained to say why; of an export that does not say so that is taken for granted."""
    return trained.config.reasoning.rationale == "clauses"


def whether_to_think(trained: Trained, asked_for: bool | None) -> bool:
    """Whether a model says why: as is asked for, or (None) if it was trained to.

    Raises:
        ValueError: it is asked for, and the model was never trained to.
    """
    able = thinks_by_default(trained)
    if asked_for and not able:
        raise ValueError("this model was trained without rationales, so it cannot say why. Leave think out")
    return able if asked_for is None else asked_for


def answers_questions(trained: Trained) -> bool:
    """Whether a model was trained to answer questions about pictures: its tokenizer has the marks."""
    return set(MARKS) <= set(trained.tokenizer.get_vocab())


@torch.no_grad()
def ask(
    trained: Trained, image: torch.Tensor, question: str, thinks: bool, max_new_tokens: int | None = None
) -> Answered:
    """The answer to a question, or an instruction (:func:`as_question`), about one picture.

    Args:
        max_new_tokens: of the reply; None: what the context holds.
        image: ``[1, 3, H, W]`` as the processor makes it, or of a model without a tower ``[1, P, C]``.

    Raises:
        ValueError: the model was not trained to answer, or the question is empty or as long as the context.
    """
    if not question.strip():
        raise ValueError("the question is empty")
    tokens, model = MarkedTokens(trained.tokenizer), trained.model
    name = "vision_features" if model.config.takes_features else "pixel_values"
    image = image.to(next(model.parameters()).device)
    seen = model.pool_image_tokens(model.encode_image(**{name: image}).image_tokens)
    prompt = tokens.prompt(as_question(question, instructions=True), thinks)
    written = write_replies(model, tokens, seen, [prompt], Decoding(max_new_tokens or model.config.max_seq_len))
    (reply,) = read_replies(tokens, written, thinks)
    return readable(reply)


def readable(reply: Reply) -> Answered:
    """A reply as a person reads it. A box that is spoken of again keeps its number."""
    numbers: dict[Box, str] = {}

    def numbered(text: str) -> str:
        def label(match: re.Match[str]) -> str:
            (box,) = read_boxes(match[0])
            if box is None:
                return " "
            return f" [{numbers.setdefault(box, str(len(numbers) + 1))}] "

        with_numbers = _LEFT_OVER.sub(" ", _FOUR_EDGES.sub(label, text.replace(NONE, " nothing ")))
        return re.sub(r"\s+([,;.?])", r"\1", " ".join(with_numbers.split()))

    why = numbered(reply.rationale) if reply.rationale is not None else None
    answer = "there is none" if reply.answer == NONE else numbered(reply.answer or "")
    return Answered(why, answer, tuple((number, box) for box, number in numbers.items()), reply)
