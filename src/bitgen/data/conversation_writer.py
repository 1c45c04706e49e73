"""Writes the folder of conversations that ``conversations.py`` describes and reads: complete or not at all."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path

from bitgen.data.arrow_folder import ArrowWriter, arrow_folder
from bitgen.data.captions import valid_unicode
from bitgen.data.conversations import (
    PICTURES,
    ROLES,
    ConversationInfo,
    Turn,
    conversation_schema,
    picture_schema,
)
from bitgen.data.sidecar import SIDECAR
from bitgen.data.whole_folder import check_output
from bitgen.machine.files import replacing_folder


class ConversationWriter:
    """Adds pictures and conversations to the tables of a folder; constant memory but for 16 bytes a picture."""

    def __init__(self, conversations: ArrowWriter, pictures: ArrowWriter) -> None:
        self._conversations, self._pictures = conversations, pictures
        self._rows: dict[bytes, int] = {}
        self.conversations = self.text_only = 0

    @property
    def pictures(self) -> int:
        """Different pictures so far."""
        return len(self._rows)

    def picture(self, name: str, payload: bytes) -> int:
        """The row of an encoded picture, which is stored unless one with the same bytes is there already."""
        digest = blake2b(payload, digest_size=16).digest()
        if digest not in self._rows:
            self._rows[digest] = len(self._rows)
            self._pictures.add((valid_unicode(name), payload), len(payload))
        return self._rows[digest]

    def add(
        self, name: str, visuals: Sequence[Sequence[int]], turns: Sequence[Turn], references: Sequence[str] = ()
    ) -> None:
        """Adds a conversation; ``visuals`` are rows that :meth:`picture` gave."""
        assert turns and all(turn.role in ROLES for turn in turns), name
        roles, texts = [turn.role for turn in turns], [valid_unicode(turn.text) for turn in turns]
        further = [valid_unicode(text) for text in references]
        size = sum(map(len, texts)) + sum(map(len, further)) + 100
        self._conversations.add((valid_unicode(name), [list(rows) for rows in visuals], roles, texts, further), size)
        self.conversations += 1
        self.text_only += not visuals


@contextlib.contextmanager
def writing_conversations(folder: str | Path, source: str, overwrite: bool = False) -> Iterator[ConversationWriter]:
    """A writer of ``folder``, which takes its name when the block is left without an exception.

    Raises:
        ValueError: the folder is taken, or no conversation was added.
    """
    check_output(folder, overwrite, SIDECAR)
    with replacing_folder(folder) as new:
        (new / PICTURES).mkdir()
        with (
            arrow_folder(new, conversation_schema()) as conversations,
            arrow_folder(new / PICTURES, picture_schema()) as pictures,
        ):
            writer = ConversationWriter(conversations, pictures)
            yield writer
        if writer.conversations == 0:
            raise ValueError(f"no usable conversation for {folder}: nothing was written")
        info = ConversationInfo(valid_unicode(source), writer.conversations, writer.pictures, writer.text_only)
        text = json.dumps(asdict(info), indent=2, ensure_ascii=False)
        (new / SIDECAR).write_text(text + "\n", encoding="utf-8")
