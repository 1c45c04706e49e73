"""Conversations in JSON, in the layouts in which they are passed on: LLaVA's and Libra's, OpenAI's, and questions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from _common.problems import Unusable
from _common.reading import shown
from bitgen.data.conversations.records import IMAGE_MARKER, Turn
from bitgen.guards.printable import printable

_ROLES = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
_MARKERS = {IMAGE_MARKER: "image", "<video>": "video"}
_MARKER = re.compile("|".join(map(re.escape, _MARKERS)))
_LONGEST_TEXT = 1_000_000  # characters of a turn: no model here reads as many

MISCOUNTED = f"more or fewer {IMAGE_MARKER} in the user's texts than images"


class File(NamedTuple):
    """A file that a record names: ``kind`` is image or video."""

    kind: str
    path: str


class Parsed(NamedTuple):
    """A conversation whose pictures are not read yet: for each visual the files that it shows."""

    id: str
    visuals: list[list[File]]
    turns: list[Turn]
    references: list[str]


class _Said(NamedTuple):
    """A turn as a record has it: ``slots`` are the markers of its text, with the file that a marker itself names."""

    role: str
    text: str
    slots: list[tuple[str, str | None]]


def parse_entry(entry: dict, where: str) -> Parsed:
    """A record of a file of conversations.

    Raises:
        Unusable: this record cannot be used; the reason is the same for all with the same trouble.
        ValueError: it is in none of the layouts.
    """
    read = next((read for key, read in _LAYOUTS.items() if key in entry), None)
    if read is None:
        raise ValueError(
            f"{where} has neither `conversations` (LLaVA, Libra) nor `messages` (OpenAI) nor `text` with `reference` "
            f"(questions); it has: {printable(', '.join(entry), 200)}"
        )
    images, videos = _names(entry, "image"), _names(entry, "video")
    said, references = read(entry, bool(images or videos))
    turns = _checked(said)
    slots = [slot for turn in said for slot in turn.slots]
    return Parsed(_id(entry, where), _visuals(slots, images, videos), turns, references)


def _id(entry: dict, where: str) -> str:
    found = entry.get("id", entry.get("question_id"))
    return str(found) if isinstance(found, (str, int)) and str(found) else where


# ---- what the layouts say ----


def _llava(entry: dict, _: bool) -> tuple[list[_Said], list[str]]:
    said = []
    for turn in _objects(entry["conversations"], "conversations"):
        said.append(_said(turn.get("from"), turn.get("value")))
    return said, []


def _openai(entry: dict, _: bool) -> tuple[list[_Said], list[str]]:
    said = []
    for message in _objects(entry["messages"], "messages"):
        content = message.get("content")
        if not isinstance(content, list):
            said.append(_said(message.get("role"), content))
            continue
        parts = [_part(part) for part in _objects(content, "content")]
        text = "\n".join(part.text for part in parts)
        said.append(_said(message.get("role"), text)._replace(slots=[slot for part in parts for slot in part.slots]))
    return said, []


def _part(part: dict) -> _Said:
    """A part of a message's content as text, in which a marker stands for a picture."""
    kind = str(part.get("type", "")).removeprefix("input_").removesuffix("_url")
    if kind == "text" or (not kind and "text" in part):
        return _said("user", part.get("text"))
    marker = next((marker for marker, of in _MARKERS.items() if of == kind), None)
    if marker is None:
        raise Unusable("content of an unknown type", shown(part.get("type")))
    keys = (kind, f"{kind}_url", "path", "url")
    found = next((part[key] for key in keys if part.get(key) is not None), None)
    if isinstance(found, dict):  # OpenAI's image_url: {"url": ...}
        found = found.get("url", found.get("path"))
    if found is not None and not isinstance(found, str):
        raise Unusable(f"{kind} that is not the name of a file", shown(found))
    return _Said("user", marker, [(kind, found)])


def _question(entry: dict, has_files: bool) -> tuple[list[_Said], list[str]]:
    """A question with the answers that are right: the first one becomes the assistant's."""
    found = entry.get("reference", entry.get("references"))
    references = found if isinstance(found, list) else [found]
    texts = [text.strip() for text in references if isinstance(text, str) and text.strip()]
    if not texts or len(texts) != len(references):
        raise Unusable("question without a reference that is a text", shown(found))
    question = _said("user", entry["text"])
    if has_files and not question.slots:  # such files name the image beside the text alone
        question = _said("user", f"{IMAGE_MARKER}\n{question.text}")
    return [question, _said("assistant", texts[0])], texts[1:]


_LAYOUTS = {"conversations": _llava, "messages": _openai, "text": _question}


def _objects(found: object, key: str) -> Iterator[dict]:
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise Unusable(f"`{key}` that is not a list of objects", shown(found))
    yield from found


def _said(role: object, text: object) -> _Said:
    if not isinstance(role, str) or role not in _ROLES:
        raise Unusable(f"turn of an unknown side (known are {', '.join(_ROLES)})", shown(role))
    if not isinstance(text, str):
        raise Unusable("turn whose text is not a text", shown(text))
    if len(text) > _LONGEST_TEXT:
        raise Unusable(f"turn of more than {_LONGEST_TEXT:,} characters")
    return _Said(_ROLES[role], text.strip(), [(_MARKERS[marker], None) for marker in _MARKER.findall(text)])


# ---- what makes a conversation ----


def _checked(said: list[_Said]) -> list[Turn]:
    """The turns, ``<video>`` written as ``<image>``; user and assistant alternate, perhaps after a system's text."""
    roles = [turn.role for turn in said]
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    if not spoken:
        raise Unusable("conversation without turns")
    if any(not turn.text for turn in said):
        raise Unusable("empty turn", f"turn {1 + next(n for n, turn in enumerate(said) if not turn.text)}")
    if spoken[0] == "assistant":
        raise Unusable("conversation that the assistant begins")
    if any(role != ("user", "assistant")[place % 2] for place, role in enumerate(spoken)):
        raise Unusable("turns that do not alternate between user and assistant", " ".join(roles[:10]))
    if spoken[-1] != "assistant":
        raise Unusable("conversation that ends without an answer")
    if any(turn.slots for turn in said if turn.role != "user"):
        raise Unusable(f"{IMAGE_MARKER} in a turn that is not the user's")
    return [Turn(turn.role, _MARKER.sub(IMAGE_MARKER, turn.text)) for turn in said]


def _names(entry: dict, kind: str) -> list[str]:
    """The files that a record names beside its turns: one name or a list of them, under ``image`` or ``images``."""
    found = next((entry[key] for key in (kind, f"{kind}s") if entry.get(key) is not None), [])
    names = found if isinstance(found, list) else [found]
    if not all(isinstance(name, str) for name in names):
        raise Unusable(f"{kind} that is not the name of a file", shown(found))
    return names


def _visuals(slots: list[tuple[str, str | None]], images: list[str], videos: list[str]) -> list[list[File]]:
    """The files of each marker, in their order.

    A marker that names no file takes the next of the record's own; where there is one such marker and several images,
    it shows them all: an image and earlier ones. Where a record has videos alone, every marker means a video.
    """
    if videos and not images:
        slots = [("video" if name is None else kind, name) for kind, name in slots]
    groups = {
        kind: _grouped([File(kind, name) for name in names], sum(slot == (kind, None) for slot in slots))
        for kind, names in (("image", images), ("video", videos))
    }
    given = {kind: iter(own) for kind, own in groups.items()}
    return [next(given[kind]) if name is None else [File(kind, name)] for kind, name in slots]


def _grouped(files: list[File], markers: int) -> list[list[File]]:
    if markers == len(files):
        return [[file] for file in files]
    if markers == 1 and files and files[0].kind == "image":
        return [files]
    raise Unusable(MISCOUNTED, f"{markers} for {len(files)}")
