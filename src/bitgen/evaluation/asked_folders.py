"""How well the questions of a folder are answered, and the things of a folder found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from bitgen.data.boxes import Box, read_boxes
from bitgen.data.marked_text import MarkedTokens, Reply, read_reply
from bitgen.data.questions import Question, QuestionFolder
from bitgen.evaluation.reasoning import BATCH, box_measures
from bitgen.evaluation.replies import Decoding, write_replies
from bitgen.evaluation.vqa_metrics import vqa_scores
from bitgen.trained import Trained


def score_folder(
    trained: Trained, folder: QuestionFolder, count: int, thinks: bool
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """VQA accuracy and exact match of the answers to the first ``count`` questions about pictures, and the answers.

    Raises:
        ValueError: there is no such question, or a picture cannot be read.
    """
    asked = _first(folder, count, boxes=False)
    said = _replies(trained, folder, asked, thinks)
    answers = [reply.answer or "" for reply in said]
    figures = vqa_scores(answers, [list(one.answers) for one in asked])
    records = [
        {"id": one.id, "question": one.question, "rationale": reply.rationale, "answer": reply.answer}
        for one, reply in zip(asked, said, strict=True)
    ]
    return figures, records


def boxes_of_folder(trained: Trained, folder: QuestionFolder, count: int) -> dict[str, float]:
    """Box measures of the first ``count`` questions whose answer is a box; other boxes of the same picture are the
    other objects.

    Raises:
        ValueError: there is no such question, or a picture cannot be read.
    """
    asked = _first(folder, count, boxes=True)
    said = _replies(trained, folder, asked, thinks=False)
    of_picture: dict[int, set[Box]] = {}
    for one in asked:
        of_picture.setdefault(one.picture, set()).update(one.boxes)
    found = []
    for one, reply in zip(asked, said, strict=True):
        boxes = read_boxes(reply.answer or "")
        others = sorted(of_picture[one.picture] - set(one.boxes))
        found.append((boxes[0] if boxes else None, one.boxes[0], others))
    return box_measures(found)


def _first(folder: QuestionFolder, count: int, boxes: bool) -> list[Question]:
    found: list[Question] = []
    for index in range(len(folder)):
        question = folder[index]
        if question.picture >= 0 and bool(question.boxes) == boxes:
            found.append(question)
            if len(found) == count:
                break
    if not found:
        what = "with a box as its answer" if boxes else "about a picture that is answered in words"
        raise ValueError(f"{folder.folder} has no question {what}")
    return found


@torch.no_grad()
def _replies(trained: Trained, folder: QuestionFolder, asked: Sequence[Question], thinks: bool) -> list[Reply]:
    model, tokens, found = trained.model, MarkedTokens(trained.tokenizer), list[Reply]()
    device = next(model.parameters()).device
    for start in range(0, len(asked), BATCH):
        part = asked[start : start + BATCH]
        rows = list(dict.fromkeys(one.picture for one in part))
        pixels = trained.processor.images([folder.picture(row) for row in rows], [folder.picture_name(r) for r in rows])
        seen = model.pool_image_tokens(model.encode_image(pixels.to(device)).image_tokens)
        at = {row: place for place, row in enumerate(rows)}
        prompts = [tokens.prompt(one.question, thinks) for one in part]
        written = write_replies(model, tokens, seen[[at[one.picture] for one in part]], prompts, Decoding())
        for ids, ended in zip(written.ids, written.ended, strict=True):
            reply = read_reply(tokens.decode(ids), thinks)
            found.append(reply if ended else reply._replace(answer=None))
    return found
