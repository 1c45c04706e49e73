"""Conversations about pictures: what one is, what every source of them gives, and the folder that holds them.

A folder has two Arrow tables in the layout of ``datasets.Dataset.save_to_disk`` and the sidecar
``bitgen_dataset.json`` (``writer.py`` writes them):

- ``pictures/``: ``name: string``, ``image: binary``, the encoded file; stored once however many conversations show it,
- the folder itself: ``id: string``; ``visuals: list<list<int64>>``, for each visual the rows of its pictures;
  ``roles`` and ``texts: list<string>``, a turn each; ``references: list<string>``, further answers that are right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image

from bitgen.data.bad_records import BadRecord
from bitgen.data.picture_table import PICTURES, open_rows, picture_schema
from bitgen.data.sampler import SampleKey
from bitgen.data.sidecar import FORMAT_VERSION, SIDECAR, read_sidecar
from bitgen.guards.printable import printable

if TYPE_CHECKING:
    import pyarrow as pa

IMAGE_MARKER = "<image>"
"""Stands in a user's text where the next visual is shown."""

ROLES = ("system", "user", "assistant")
MISPLACED = "image markers that do not fit the images"
EMPTY = "an image without a picture"

Picture = bytes | Image.Image | np.ndarray | torch.Tensor
"""An encoded file, a picture that was drawn, or stored features: float32 ``[N, C]``, or of a cache ``[L, N, C]``."""

_FIELDS: dict[str, type | tuple[type, ...]] = {
    "kind": str,
    "source": str,
    "num_conversations": int,
    "num_pictures": int,
    "num_text_only": int,
    "format_version": int,
}
_HOW_TO_MAKE = (
    "make it with `python data_prep/conversations.py --conversations FILE --images DIR --output {folder}` "
    "(it explains itself with --help)"
)


class Turn(NamedTuple):
    """What one side says: ``role`` is system, user or assistant."""

    role: str
    text: str


class Conversation(NamedTuple):
    """Turns about visuals. A visual is what one ``<image>`` stands for: a picture, or several (the frames of a video,
    or an image and an earlier one).

    ``image``: a number that tells the first picture from others, as a row of its table; -1: there is none.
    """

    id: str
    visuals: list[list[Picture]]
    turns: list[Turn]
    image: int = -1

    @property
    def answers(self) -> list[str]:
        """What the assistant says."""
        return [turn.text for turn in self.turns if turn.role == "assistant"]


class Conversations(Protocol):
    """A source of conversations. What ``self[key]`` gives is a function of the key."""

    @property
    def feature_shape(self) -> tuple[int, int] | None:
        """``(N, C)`` where pictures are stored features; None: they are pictures."""

    @property
    def why_uncached(self) -> str | None:
        """Why the features of its pictures cannot be computed once; None: they can."""

    @property
    def seed(self) -> int:
        """Decides, with epoch and index, what is drawn."""

    @property
    def most_pictures(self) -> int:
        """The most pictures that a visual has, at least 1."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: SampleKey | int) -> Conversation:
        """Raises ``BadRecord`` naming the record where it cannot be used."""

    def text(self, key: SampleKey | int) -> Conversation:
        """The same with empty bytes in place of every picture, none of which is read or drawn."""

    def references(self, index: int) -> list[str]:
        """Every answer to the last question that counts as right."""

    def mean_words(self) -> float:
        """Words of a conversation's answers, on average."""

    def describe(self) -> str:
        """How much there is."""

    def record_name(self, index: int) -> str:
        """How messages call a conversation."""


def check_visuals(conversation: Conversation, name: str) -> None:
    """Raises ``BadRecord`` unless every visual has a picture, and one marker in the user's texts, the only ones."""
    if (empty := next((n for n, visual in enumerate(conversation.visuals, 1) if not visual), None)) is not None:
        raise BadRecord(
            f"{name}, image {empty} has no picture, such as a video without frames: give it one, or take its "
            f"{IMAGE_MARKER} out of the user's texts",
            EMPTY,
        )
    markers = {role: 0 for role in ROLES}
    for turn in conversation.turns:
        markers[turn.role] += turn.text.count(IMAGE_MARKER)
    shown = markers.pop("user")
    if shown != len(conversation.visuals) or any(markers.values()):
        raise BadRecord(
            f"{name} has {len(conversation.visuals)} visuals, {shown} {IMAGE_MARKER} in what the user says and "
            f"{sum(markers.values())} in other turns: write one for each visual into the user's texts",
            MISPLACED,
        )


# ---------------------------------------------------------------- the folder


@dataclass(frozen=True)
class ConversationInfo:
    """The sidecar of a folder of conversations; ``num_text_only`` of them show no picture."""

    source: str
    num_conversations: int = 0
    num_pictures: int = 0
    num_text_only: int = 0
    kind: str = "conversations"
    format_version: int = FORMAT_VERSION


def conversation_schema() -> pa.Schema:
    """Columns of the table of conversations."""
    import pyarrow as pa

    texts = pa.list_(pa.string())
    rows = pa.list_(pa.list_(pa.int64()))
    return pa.schema(
        [("id", pa.string()), ("visuals", rows), ("roles", texts), ("texts", texts), ("references", texts)]
    )


def read_conversation_info(folder: str | Path) -> ConversationInfo:
    """The sidecar of a folder; ``ValueError`` says what is missing or wrong in it and how to make one."""
    remedy = _HOW_TO_MAKE.format(folder=folder)
    raw = read_sidecar(folder, ("conversations",), _FIELDS, tuple(_FIELDS), remedy)
    if raw["kind"] != "conversations":
        kind = printable(raw["kind"], 40)
        raise ValueError(f"{Path(folder) / SIDECAR}: kind is {kind!r}; it must be 'conversations'; {remedy}")
    return ConversationInfo(**raw)


class ConversationReader:
    """Random access to the conversations of a folder, memory-mapped, so that workers share one copy.

    Raises ``ValueError`` for a missing, foreign, damaged or empty folder. ``reader[key]`` gives a
    :class:`Conversation`, the same in every epoch.

    Args:
        folder: written by ``data_prep/conversations.py``.
        seed: decides the order of training.
        max_conversations: use only the first so many.
    """

    feature_shape = None
    why_uncached = None

    def __init__(self, folder: str | Path, seed: int = 0, max_conversations: int | None = None) -> None:
        self.folder, self.seed, self.max_conversations = Path(folder), seed, max_conversations
        self.info = read_conversation_info(self.folder)
        self._remedy = f"remove {self.folder} and {_HOW_TO_MAKE.format(folder=self.folder)}"
        table = open_rows(self.folder, conversation_schema(), self.info.num_conversations, self._remedy)
        pictures = open_rows(self.folder / PICTURES, picture_schema(), self.info.num_pictures, self._remedy)
        if len(table) == 0:
            raise ValueError(f"dataset {self.folder} is empty: {self._remedy}")
        self._fingerprint = f"{table._fingerprint} {pictures._fingerprint} {self.info}"
        self._columns = {name: table.data.column(name) for name in table.column_names}
        self._pictures, self._names = pictures.data.column("image"), pictures.data.column("name")
        self._check_rows()

    def _check_rows(self) -> None:
        """What holds for every row; checked at once, without making Python objects of them."""
        import pyarrow.compute as pc

        rows = pc.list_flatten(pc.list_flatten(self._columns["visuals"]))
        bounds = pc.min_max(rows).as_py()
        if len(rows) and (rows.null_count or bounds["min"] < 0 or bounds["max"] >= len(self._pictures)):
            raise ValueError(f"dataset {self.folder} names pictures that it does not have: {self._remedy}")
        turns = [pc.fill_null(pc.list_value_length(self._columns[name]), 0) for name in ("roles", "texts")]
        roles = set(pc.unique(pc.list_flatten(self._columns["roles"])).to_pylist())
        if not pc.all(pc.equal(*turns)).as_py() or pc.min(turns[0]).as_py() < 1 or not roles <= set(ROLES):
            raise ValueError(f"dataset {self.folder} has conversations with damaged turns: {self._remedy}")

    def __getstate__(self) -> dict:
        # Workers started by spawn map the files again; pickling the columns would copy every picture into each of them.
        return {"folder": self.folder, "seed": self.seed, "max_conversations": self.max_conversations}

    def __setstate__(self, state: dict) -> None:
        ConversationReader.__init__(self, **state)

    def __len__(self) -> int:
        return min(self.info.num_conversations, self.max_conversations or self.info.num_conversations)

    @property
    def fingerprint(self) -> str:
        """Changes with the rows: written anew, a dataset has another one; copied elsewhere, the same."""
        return self._fingerprint

    def __getitem__(self, key: SampleKey | int) -> Conversation:
        return self._conversation(key, self.picture)

    def text(self, key: SampleKey | int) -> Conversation:
        """The same without pictures; see ``Conversations``."""
        return self._conversation(key, lambda row: b"")

    def _conversation(self, key: SampleKey | int, picture: Callable[[int], bytes]) -> Conversation:
        index = key[0] if isinstance(key, tuple) else key
        if not 0 <= index < len(self):
            raise IndexError(f"conversation {index} of {len(self)}")
        try:
            name = self._columns["id"][index].as_py() or ""
            roles, texts = self._columns["roles"][index].as_py(), self._columns["texts"][index].as_py()
        except UnicodeDecodeError as error:
            raise BadRecord(f"dataset {self.folder}, record {index} has text that is not UTF-8", "no UTF-8") from error
        rows = self.rows(index)
        visuals: list[list[Picture]] = [[picture(row) for row in visual] for visual in rows]
        turns = [Turn(role, text or "") for role, text in zip(roles, texts, strict=True)]
        first = next((row for visual in rows for row in visual), -1)
        return Conversation(name, visuals, turns, first)

    # ---- its pictures by row, for their features to be computed once ----

    @property
    def picture_count(self) -> int:
        """How many pictures there are."""
        return self.info.num_pictures

    @property
    def most_pictures(self) -> int:
        """The most pictures that a visual has, at least 1."""
        import pyarrow.compute as pc

        chunks = self._columns["visuals"].chunks
        counts = (pc.max(pc.list_value_length(pc.list_flatten(chunk))).as_py() for chunk in chunks)
        return max([1, *(count for count in counts if count is not None)])

    def rows(self, index: int) -> list[list[int]]:
        """The rows of a conversation's pictures, visual by visual."""
        return [visual or [] for visual in self._columns["visuals"][index].as_py() or []]

    def picture(self, row: int) -> bytes:
        """A picture by its row: its encoded file."""
        return self._pictures[row].as_py() or b""

    def record_of_image(self, row: int) -> str:
        """How messages call a picture."""
        return f"dataset {self.folder}, picture {row} ({printable(self.picture_name(row), 200)})"

    def references(self, index: int) -> list[str]:
        """The last answer, and the further ones that the source gives."""
        further = self._columns["references"][index].as_py() or []
        return [*self.text(index).answers[-1:], *further]

    def mean_words(self) -> float:
        """Words of a conversation's answers, on average; one chunk of texts in memory at a time."""
        words, left = 0, len(self)
        for roles, texts in zip(self._columns["roles"].chunks, self._columns["texts"].chunks, strict=True):
            for own, said in zip(roles[:left], texts[:left], strict=True):
                turns = zip(own.as_py(), said.as_py(), strict=True)
                words += sum(len((text or "").split()) for role, text in turns if role == "assistant")
            left -= min(left, len(roles))
        return words / len(self)

    def describe(self) -> str:
        """How much there is."""
        alone = f", {self.info.num_text_only:,} of text alone" if self.info.num_text_only else ""
        return f"{len(self):,} conversations{alone}, {self.info.num_pictures:,} pictures"

    def record_name(self, index: int) -> str:
        """How messages call a conversation: its dataset, row and id."""
        return f"dataset {self.folder}, record {index} ({printable(self._columns['id'][index].as_py(), 200)})"

    def picture_name(self, row: int) -> str:
        """The file that a picture came from."""
        return self._names[row].as_py() or ""


def visual_names(name: str, visuals: Sequence[Sequence[Picture]]) -> list[str]:
    """How messages call each picture of a conversation, in reading order."""
    places = [(visual, frame) for visual, own in enumerate(visuals, 1) for frame in range(1, len(own) + 1)]
    return [f"{name}, image {visual}, picture {frame}" for visual, frame in places]
