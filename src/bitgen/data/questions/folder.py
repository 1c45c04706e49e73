"""What is asked about pictures of a folder that ``data_prep/questions.py`` or ``data_prep/grounding.py`` wrote."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch

from bitgen.data.bad_records import BadRecord
from bitgen.data.dataset import DAMAGED_REMEDY
from bitgen.data.questions.boxes import read_boxes
from bitgen.data.questions.marked_text import Asked
from bitgen.data.questions.records import Question, QuestionFolder
from bitgen.data.sampler import SampleKey
from bitgen.data.scenes.descriptions import scene_rng
from bitgen.guards.printable import printable
from bitgen.model.image_decoding import ImageError
from bitgen.model.processing_bitgen import BitGenProcessor

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SeenPicture:
    """A picture and what is asked of it; see ``dataset.AskedPicture``."""

    pixels: torch.Tensor
    asked: tuple[Asked, ...]


class FolderQuestions:
    """The pictures of a folder that have questions, each with some of them, drawn by the key.

    Args:
        per_picture: questions of a picture in a sample, at most.
        rationale_share: share of the questions with a rationale that are answered with it.

    Raises:
        ValueError: the folder cannot be read, or no question of it has a picture.
    """

    def __init__(
        self, folder: str, processor: BitGenProcessor, seed: int, per_picture: int, rationale_share: float
    ) -> None:
        self.reader, self.processor, self.seed = QuestionFolder(folder), processor, seed
        self.per_picture, self.rationale_share = per_picture, rationale_share
        rows = self.reader.picture_rows()
        order = np.argsort(rows, kind="stable")
        order = order[rows[order] >= 0]
        if blind := len(rows) - len(order):
            logger.warning("%d of %d questions of %s have no picture: they are left out", blind, len(rows), folder)
        if not len(order):
            raise ValueError(f"dataset {folder}: no question of it has a picture, and stage 2 asks about pictures")
        starts = np.flatnonzero(np.diff(rows[order], prepend=-1))
        self._questions = np.split(order, starts[1:])

    def __len__(self) -> int:
        return len(self._questions)

    def name(self, index: int) -> str:
        """How messages call a picture."""
        picture = self.reader[int(self._questions[index][0])].picture
        return f"{self.reader.folder} picture {printable(self.reader.picture_name(picture), 200)}"

    def texts(self, count: int) -> Iterator[str]:
        """All questions, rationales and first answers, for a tokenizer to learn its words; ``count`` is for pictures
        that are drawn, of which there is no end."""
        for index in range(len(self.reader)):
            with suppress(BadRecord):  # which is counted when its turn comes
                yield self.reader.words(index)

    def __getitem__(self, key: SampleKey) -> SeenPicture:
        rng = scene_rng(self.seed, "questions of a folder", key.index, key.epoch)
        rows = self._questions[key.index].tolist()
        chosen = rows if len(rows) <= self.per_picture else rng.sample(rows, self.per_picture)
        questions = [self.reader[row] for row in chosen]
        try:
            pixels = self.processor.image(self.reader.picture(questions[0].picture), self.name(key.index))
        except ImageError as error:
            raise BadRecord(f"{error}; {DAMAGED_REMEDY}", error.reason) from error
        return SeenPicture(pixels, tuple(self._asked(one, rng) for one in questions))

    def _asked(self, question: Question, rng: random.Random) -> Asked:
        thinks = rng.random() < self.rationale_share
        # Where something is has no reasons: a model that is to give some gives none.
        why = question.rationale if thinks and (question.rationale or read_boxes(question.answers[0])) else None
        return Asked(question.question, question.answers[0], why, question.family, question.hops, trusted=False)
