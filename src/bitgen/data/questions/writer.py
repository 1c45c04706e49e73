"""Writes the folder of questions that ``records.py`` describes and reads: complete or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from bitgen.data.arrow_folder import ArrowWriter
from bitgen.data.captions import valid_unicode
from bitgen.data.picture_table import PictureTable, two_tables, write_sidecar
from bitgen.data.questions.boxes import checked_box
from bitgen.data.questions.records import NO_PICTURE, Question, QuestionInfo, question_schema
from bitgen.data.sidecar import SIDECAR
from bitgen.data.whole_folder import check_output
from bitgen.machine.files import replacing_folder


class QuestionWriter:
    """Adds pictures and questions to the tables of a folder; constant memory but for 16 bytes a picture."""

    def __init__(self, questions: ArrowWriter, pictures: PictureTable) -> None:
        self._questions, self._pictures = questions, pictures
        self.questions = self.text_only = 0

    @property
    def pictures(self) -> int:
        """Different pictures so far."""
        return len(self._pictures)

    def picture(self, name: str, payload: bytes) -> int:
        """The row of an encoded picture, which is stored unless one with the same bytes is there already."""
        return self._pictures.add(name, payload)

    def add(self, question: Question) -> None:
        """Adds a question; its ``picture`` is a row that :meth:`picture` gave, or -1.

        Raises:
            ValueError: a box that is none, as ``checked_box`` says.
        """
        assert question.answers and NO_PICTURE <= question.picture < self.pictures, question.id
        edges = [edge for box in question.boxes for edge in checked_box(box)]
        texts = [valid_unicode(text) for text in (question.id, question.question, question.rationale, question.family)]
        answers, choices = ([valid_unicode(text) for text in own] for own in (question.answers, question.choices))
        row = (texts[0], question.picture, texts[1], answers, texts[2], edges, texts[3], question.hops, choices)
        self._questions.add(row, sum(map(len, [*texts, *answers, *choices])) + 8 * len(edges) + 100)
        self.questions += 1
        self.text_only += question.picture == NO_PICTURE


@contextlib.contextmanager
def writing_questions(folder: str | Path, source: str, overwrite: bool = False) -> Iterator[QuestionWriter]:
    """A writer of ``folder``, which takes its name when the block is left without an exception.

    Raises:
        ValueError: the folder is taken, or no question was added.
    """
    check_output(folder, overwrite, SIDECAR)
    with replacing_folder(folder) as new:
        with two_tables(new, question_schema()) as (questions, pictures):
            writer = QuestionWriter(questions, pictures)
            yield writer
        if writer.questions == 0:
            raise ValueError(f"no usable question for {folder}: nothing was written")
        write_sidecar(new, QuestionInfo(valid_unicode(source), writer.questions, writer.pictures))
