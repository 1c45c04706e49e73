"""Questions about a picture: the answer, why clause by clause, and the boxes that it speaks of."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from torchvision.transforms.v2.functional import to_pil_image

from bitgen.api import Model, VisionLanguage
from bitgen.data.scenes.rationales import is_there, read_rationale
from bitgen.data.scenes.tables import TableScene
from bitgen.evaluation.asking import Answered
from bitgen.guards.printable import printable
from bitgen.guards.regular_files import read_regular_file
from bitgen.model.image_decoding import decode_image
from bitgen.show.boxes import draw_boxes

_ARTICLE = re.compile(r"^(the|an?)\s+", re.IGNORECASE)
NO_ANSWER = "none: the model gave no answer"


class Reason(NamedTuple):
    """A clause of a rationale, and whether the things that it names are where it says; None: nobody knows, because the
    picture is no built-in scene."""

    text: str
    holds: bool | None


class Asked(NamedTuple):
    """An answer, the clauses before it, and the picture with the boxes of both; None: there are none to draw."""

    answer: str
    reasons: list[Reason]
    picture: Image.Image | None


def ask(
    model: Model | VisionLanguage, picture: str | Path, question: str, think: bool, scene: TableScene | None = None
) -> Asked:
    """What the model answers to a question about a picture in a file.

    Args:
        think: say why before the answer.
        scene: what the picture shows, if it is a built-in scene: clauses are compared with it.

    Raises:
        ValueError: a picture that cannot be read, or a question that is empty or as long as the context.
    """
    if isinstance(model, VisionLanguage):
        if not question.strip():
            raise ValueError("the question is empty")
        return Asked(model.ask(question, picture), [], None)
    found = model.ask(question, picture, think)
    return Asked(found.answer or NO_ANSWER, _reasons(found, scene), _drawn(model, picture, found))


def where(model: Model, picture: str | Path, thing: str) -> Asked:
    """Where a thing is: a box, or that there is none. Errors as of :func:`ask`."""
    name = _ARTICLE.sub("", thing.strip()).rstrip("?.! ")
    if not name:
        raise ValueError("there is nothing to look for: name a thing, such as red star")
    return ask(model, picture, f"where is the {name}?", think=False)


def _reasons(found: Answered, scene: TableScene | None) -> list[Reason]:
    if found.why is None:
        return []
    texts = [part.strip() for part in found.why.split(";") if part.strip()]
    clauses = read_rationale(found.reply.rationale or "")
    if scene is None or len(clauses) != len(texts):
        return [Reason(text, None) for text in texts]
    return [Reason(text, is_there(scene, clause)) for text, clause in zip(texts, clauses, strict=True)]


def _drawn(model: Model, picture: str | Path, found: Answered) -> Image.Image | None:
    if not found.boxes:
        return None
    name = printable(Path(picture).name)
    pixels = decode_image(read_regular_file(picture), name, model.trained.processor.max_image_pixels)
    return draw_boxes(to_pil_image(pixels), found.boxes)
