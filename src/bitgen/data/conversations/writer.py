"""Writes the folder of conversations that ``records.py`` describes and reads: complete or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from bitgen.data.arrow_folder import ArrowWriter
from bitgen.data.captions import valid_unicode
from bitgen.data.conversations.records import ROLES, ConversationInfo, Turn, conversation_schema
from bitgen.data.picture_table import PictureTable, two_tables, write_sidecar
from bitgen.data.sidecar import SIDECAR
from bitgen.data.whole_folder import check_output
from bitgen.machine.files import replacing_folder


class ConversationWriter:
    """Adds pictures and conversations to the tables of a folder; constant memory but for 16 bytes a picture."""

    def __init__(self, conversations: ArrowWriter, pictures: PictureTable) -> None:
        self._conversations, self._pictures = conversations, pictures
        self.conversations = self.text_only = 0

    @property
    def pictures(self) -> int:
        """Different pictures so far."""
        return len(self._pictures)

    def picture(self, name: str, payload: bytes) -> int:
        """The row of an encoded picture, which is stored unless one with the same bytes is there already."""
        return self._pictures.add(name, payload)

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
        with two_tables(new, conversation_schema()) as (conversations, pictures):
            writer = ConversationWriter(conversations, pictures)
            yield writer
        if writer.conversations == 0:
            raise ValueError(f"no usable conversation for {folder}: nothing was written")
        info = ConversationInfo(valid_unicode(source), writer.conversations, writer.pictures, writer.text_only)
        write_sidecar(new, info)
