"""Questions about pictures with their answers, rationales and boxes: what one is, and the folder that holds them.

A folder has two Arrow tables in the layout of ``datasets.Dataset.save_to_disk`` and the sidecar
``bitgen_dataset.json`` (``writer.py`` writes them):

- ``pictures/``: ``name: string``, ``image: binary``, the encoded file; stored once however many questions ask of it,
- the folder itself, a row a question: ``id``, ``question``, ``rationale`` and ``family: string``; ``picture`` and
  ``hops: int64``; ``answers`` and ``choices: list<string>``; ``boxes: list<double>``, four edges a box.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bitgen.data.bad_records import BadRecord
from bitgen.data.picture_table import PICTURES, open_rows, picture_schema
from bitgen.data.questions.boxes import EDGES_OF_A_BOX, Box
from bitgen.data.sidecar import FORMAT_VERSION, SIDECAR, read_sidecar
from bitgen.guards.printable import printable

if TYPE_CHECKING:
    import pyarrow as pa

KIND = "questions"
NO_PICTURE = -1

_FIELDS: dict[str, type | tuple[type, ...]] = {
    "kind": str,
    "source": str,
    "num_questions": int,
    "num_pictures": int,
    "format_version": int,
}
_HOW_TO_MAKE = (
    "make it with `python data_prep/questions.py --source jsonl --questions FILE --images DIR --output {folder}` "
    "(it explains itself with --help)"
)


class Question(NamedTuple):
    """A question about a picture, or about none.

    ``picture``: the row of its picture in the table of pictures; -1: there is none. ``answers``: all that people gave,
    the one to train on first. ``boxes``: where the answer is, as fractions of the picture. ``hops``: how many steps
    lead from one object to another; -1: not known. ``choices``: those of multiple choice.
    """

    id: str
    picture: int
    question: str
    answers: tuple[str, ...]
    rationale: str = ""
    boxes: tuple[Box, ...] = ()
    family: str = ""
    hops: int = -1
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class QuestionInfo:
    """The sidecar of a folder of questions."""

    source: str
    num_questions: int = 0
    num_pictures: int = 0
    kind: str = KIND
    format_version: int = FORMAT_VERSION


def question_schema() -> pa.Schema:
    """Columns of the table of questions, in the order of the fields of :class:`Question`."""
    import pyarrow as pa

    text, number, texts = pa.string(), pa.int64(), pa.list_(pa.string())
    kinds = (text, number, text, texts, text, pa.list_(pa.float64()), text, number, texts)
    return pa.schema(list(zip(Question._fields, kinds, strict=True)))


def read_question_info(folder: str | Path) -> QuestionInfo:
    """The sidecar of a folder; ``ValueError`` says what is missing or wrong in it and how to make one."""
    remedy = _HOW_TO_MAKE.format(folder=folder)
    raw = read_sidecar(folder, (KIND,), _FIELDS, tuple(_FIELDS), remedy)
    if raw["kind"] != KIND:
        shown = printable(raw["kind"], 40)
        raise ValueError(f"{Path(folder) / SIDECAR}: kind is {shown!r}; it must be {KIND!r}; {remedy}")
    return QuestionInfo(**raw)


class QuestionFolder:
    """Random access to the questions of a folder, memory-mapped, so that workers share one copy.

    Raises ``ValueError`` for a missing, foreign, damaged or empty folder. ``reader[i]`` gives a :class:`Question`;
    ``BadRecord`` names one whose text is not UTF-8.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.info = read_question_info(self.folder)
        self._remedy = f"remove {self.folder} and {_HOW_TO_MAKE.format(folder=self.folder)}"
        table = open_rows(self.folder, question_schema(), self.info.num_questions, self._remedy)
        pictures = open_rows(self.folder / PICTURES, picture_schema(), self.info.num_pictures, self._remedy)
        if len(table) == 0:
            raise ValueError(f"dataset {self.folder} is empty: {self._remedy}")
        self._fingerprint = f"{table._fingerprint} {pictures._fingerprint} {self.info}"
        self._columns = {name: table.data.column(name) for name in Question._fields}
        self._pictures, self._names = pictures.data.column("image"), pictures.data.column("name")
        self._check_rows()

    def _check_rows(self) -> None:
        """What holds for every row; checked at once, without making Python objects of them."""
        import pyarrow.compute as pc

        rows = self._columns["picture"]
        bounds = pc.min_max(rows).as_py()
        if rows.null_count or bounds["min"] < NO_PICTURE or bounds["max"] >= len(self._pictures):
            raise ValueError(f"dataset {self.folder} names pictures that it does not have: {self._remedy}")
        if pc.min(pc.fill_null(pc.list_value_length(self._columns["answers"]), 0)).as_py() < 1:
            raise ValueError(f"dataset {self.folder} has questions without an answer: {self._remedy}")
        lengths = pc.fill_null(pc.list_value_length(self._columns["boxes"]), 0).to_numpy()
        edges = pc.list_flatten(self._columns["boxes"])
        whole = not (lengths % EDGES_OF_A_BOX).any() and not edges.null_count
        if whole and len(edges):
            x1, y1, x2, y2 = edges.to_numpy().reshape(-1, EDGES_OF_A_BOX).T
            whole = ((x1 >= 0) & (y1 >= 0) & (x1 < x2) & (y1 < y2) & (x2 <= 1) & (y2 <= 1)).all()  # NaN is in none
        if not whole:
            raise ValueError(f"dataset {self.folder} has damaged boxes: {self._remedy}")

    def __getstate__(self) -> dict:
        # Workers started by spawn map the files again; pickling the columns would copy every picture into each of them.
        return {"folder": self.folder}

    def __setstate__(self, state: dict) -> None:
        QuestionFolder.__init__(self, state["folder"])

    def __len__(self) -> int:
        return self.info.num_questions

    def __getitem__(self, index: int) -> Question:
        if not 0 <= index < len(self):
            raise IndexError(f"question {index} of {len(self)}")
        try:
            row = {name: column[index].as_py() for name, column in self._columns.items()}
        except UnicodeDecodeError as error:
            raise BadRecord(f"dataset {self.folder}, record {index} has text that is not UTF-8", "no UTF-8") from error
        edges = row["boxes"] or []
        boxes = (edges[start : start + EDGES_OF_A_BOX] for start in range(0, len(edges), EDGES_OF_A_BOX))
        return Question(
            row["id"] or "",
            row["picture"],
            row["question"] or "",
            tuple(answer or "" for answer in row["answers"]),
            row["rationale"] or "",
            tuple(Box(*box) for box in boxes),
            row["family"] or "",
            -1 if row["hops"] is None else row["hops"],
            tuple(choice or "" for choice in row["choices"] or ()),
        )

    @property
    def fingerprint(self) -> str:
        """Changes with the rows: written anew, a dataset has another one; copied elsewhere, the same."""
        return self._fingerprint

    @property
    def has_rationales(self) -> bool:
        """Whether some question comes with a rationale."""
        import pyarrow.compute as pc

        longest = pc.max(pc.binary_length(self._columns["rationale"])).as_py()
        return bool(longest)

    def about_pictures(self, with_boxes: bool) -> np.ndarray:
        """The rows of questions about a picture that have boxes, or, without them, of all questions about a picture
        (a box beside an answer in words is no answer). ``int64``, in their order."""
        import pyarrow.compute as pc

        counts = pc.fill_null(pc.list_value_length(self._columns["boxes"]), 0).to_numpy()
        return np.flatnonzero((self.picture_rows() >= 0) & ((counts > 0) | (not with_boxes)))

    def words(self, index: int) -> str:
        """What a question asks, why, and its first answer; faster than the whole record. Raises ``BadRecord``."""
        try:
            parts = [self._columns[name][index].as_py() for name in ("question", "rationale", "answers")]
        except UnicodeDecodeError as error:
            raise BadRecord(f"dataset {self.folder}, record {index} has text that is not UTF-8", "no UTF-8") from error
        return f"{parts[0] or ''} {parts[1] or ''} {parts[2][0] or ''}"

    def picture_rows(self) -> np.ndarray:
        """The row of every question's picture, ``int64 [num_questions]``; -1: none."""
        return self._columns["picture"].to_numpy()

    def picture(self, row: int) -> bytes:
        """A picture by its row: its encoded file."""
        return self._pictures[row].as_py() or b""

    def picture_name(self, row: int) -> str:
        """The file that a picture came from."""
        return self._names[row].as_py() or ""

    def record_name(self, index: int) -> str:
        """How messages call a question: its dataset, row and id."""
        return f"dataset {self.folder}, record {index} ({printable(self._columns['id'][index].as_py(), 200)})"
