"""How well questions of a source are answered, and the things of a folder found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from bitgen.data.bad_records import BadRecord
from bitgen.data.questions.boxes import Box, read_boxes
from bitgen.data.questions.dataset import AskedPicture
from bitgen.data.questions.marked_text import MarkedTokens, Reply
from bitgen.data.questions.records import Question, QuestionFolder
from bitgen.data.questions.shown import OWN, PictureShown, shown
from bitgen.evaluation.reasoning import BATCH, box_measures
from bitgen.evaluation.replies import Decoding, replies_to
from bitgen.evaluation.vqa_metrics import same_answer, vqa_scores
from bitgen.guards.printable import printable
from bitgen.model.modeling_bitgen import BitGenModel
from bitgen.model.processing_bitgen import BitGenProcessor

_PICTURES = 32  # of a pass
_FAMILIES = 12  # more are no kinds of questions
Records = list[dict[str, Any]]


class Model(NamedTuple):
    """A model in eval mode with its processor, and what it sees with a question."""

    model: BitGenModel
    processor: BitGenProcessor
    sees: PictureShown = OWN


def score_pictures(model: Model, pictures: Sequence[AskedPicture], thinks: bool) -> tuple[dict[str, float], Records]:
    """Percent of the questions that are answered to the word, of ``all`` and of each family; and the answers."""
    records: Records = []
    for start in range(0, len(pictures), _PICTURES):
        part = pictures[start : start + _PICTURES]
        asked = [(at, one) for at, picture in enumerate(part) for one in picture.asked]
        pixels = torch.stack([picture.pixels for picture in part])
        said = _replies(model, pixels, [at for at, _ in asked], [one.question for _, one in asked], thinks)
        for (_, one), reply in zip(asked, said, strict=True):
            known = {"family": one.family, "question": one.question, "right_answer": one.answer}
            records.append({**known, "rationale": reply.rationale, "answer": reply.answer})
    figures = {"all": _right(records)}
    for family in dict.fromkeys(one["family"] for one in records):
        figures[family] = _right([one for one in records if one["family"] == family])
    return figures, records


def _right(records: Records) -> float:
    return 100 * sum(one["answer"] == one["right_answer"] for one in records) / len(records)


def score_folder(model: Model, folder: QuestionFolder, count: int, thinks: bool) -> tuple[dict[str, float], Records]:
    """VQA accuracy and exact match of the answers to the first ``count`` questions about pictures, and the answers. Of
    questions with choices, also how often the right one is the one that is said; where the data has several families of
    questions (answer types of VQA v2, structural types of GQA), the VQA accuracy of each.

    Raises:
        ValueError: there is no such question, or a picture cannot be read.
    """
    asked = _asked(folder, count, boxes=False)
    said = _of_folder(model, folder, asked, thinks)
    answers = [reply.answer or "" for reply in said]
    figures = vqa_scores(answers, [list(one.answers) for one in asked])
    families = list(dict.fromkeys(one.family for one in asked))
    for family in families if 1 < len(families) <= _FAMILIES else ():
        own = [row for row, one in enumerate(asked) if one.family == family]
        of_family = vqa_scores([answers[row] for row in own], [list(asked[row].answers) for row in own])
        figures[f"vqa_accuracy_{printable(family, 40) or 'other'}"] = of_family["vqa_accuracy"]
    choosing = [(one, answer) for one, answer in zip(asked, answers, strict=True) if one.choices]
    if choosing:
        right = sum(same_answer(answer, one.answers[0]) for one, answer in choosing)
        figures["right_choice"] = 100 * right / len(choosing)
    records = [
        {
            "id": one.id,
            "question": one.question,
            "rationale": reply.rationale,
            "answer": reply.answer,
            "right_answer": " / ".join(dict.fromkeys(one.answers)),
        }
        for one, reply in zip(asked, said, strict=True)
    ]
    return figures, records


def boxes_of_folder(model: Model, folder: QuestionFolder, count: int) -> dict[str, float]:
    """Box measures of the first ``count`` questions whose answer is a box; other boxes of the same picture are the
    other objects.

    Raises:
        ValueError: there is no such question, or a picture cannot be read.
    """
    asked = _asked(folder, count, boxes=True)
    said = _of_folder(model, folder, asked, thinks=False)
    of_picture: dict[int, set[Box]] = {}
    for one in asked:
        of_picture.setdefault(one.picture, set()).update(one.boxes)
    found = []
    for one, reply in zip(asked, said, strict=True):
        boxes = read_boxes(reply.answer or "")
        others = sorted(of_picture[one.picture] - set(one.boxes))
        found.append((boxes[0] if boxes else None, one.boxes[0], others))
    return box_measures(found)


def check_questions(folder: QuestionFolder, words: bool, boxes: bool) -> None:
    """Refuse a folder without questions that are answered in words, or with boxes, before any is answered.

    Raises:
        ValueError: there is none of a kind that is asked for.
    """
    for is_wanted, with_boxes in ((words, False), (boxes, True)):
        if is_wanted:
            _asked(folder, 1, with_boxes)


def _asked(folder: QuestionFolder, count: int, boxes: bool) -> list[Question]:
    found = first_questions(folder, count, boxes)
    if not found:
        what = "with a box as its answer" if boxes else "about a picture that is answered in words"
        raise ValueError(f"{folder.folder} has no question {what}")
    return found


def first_questions(folder: QuestionFolder, count: int, boxes: bool) -> list[Question]:
    """The first questions about pictures whose answer is a box, or words; none where there are none."""
    found: list[Question] = []
    for index in folder.about_pictures(boxes):
        try:
            question = folder[int(index)]
        except BadRecord:  # which training leaves out, too
            continue
        if bool(question.boxes and read_boxes(question.answers[0])) == boxes:
            found.append(question)
            if len(found) == count:
                break
    return found


def _of_folder(model: Model, folder: QuestionFolder, asked: Sequence[Question], thinks: bool) -> list[Reply]:
    found: list[Reply] = []
    for start in range(0, len(asked), BATCH):
        part = asked[start : start + BATCH]
        rows = list(dict.fromkeys(one.picture for one in part))
        names = [folder.picture_name(row) for row in rows]
        pixels = model.processor.images([folder.picture(row) for row in rows], names)
        at = {row: place for place, row in enumerate(rows)}
        found += _replies(model, pixels, [at[one.picture] for one in part], [one.question for one in part], thinks)
    return found


@torch.no_grad()
def _replies(
    model: Model, pixels: torch.Tensor, picture_of: Sequence[int], questions: Sequence[str], thinks: bool
) -> list[Reply]:
    """What is answered to questions, each about one of the pictures ``[B, ...]``, which are seen once."""
    network, processor, sees = model
    assert processor.tokenizer is not None
    tokens = MarkedTokens(processor.tokenizer)
    pixels = shown(pixels, sees).to(next(network.parameters()).device)
    seen = network.pool_image_tokens(network.encode_image(pixels).image_tokens)[list(picture_of)]
    prompts = [tokens.prompt(question, thinks) for question in questions]
    # Rationales of people's data may be as long as the context.
    return replies_to(network, tokens, seen, prompts, thinks, Decoding(network.config.max_seq_len))
