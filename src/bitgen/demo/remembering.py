"""Teaching a model pictures, and what they bring back."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from PIL import Image

from bitgen.api import Model
from bitgen.memory import EpisodicMemory
from bitgen.memory.episodes import Episode, Recollection

SHOWN = 5


class Said(NamedTuple):
    """What a model says of a picture without the memory and with it, and the episodes that it has the second from,
    each with the probability that the picture is about it."""

    before: str
    after: str
    facts: list[tuple[Episode, float]]


def teach(memory: EpisodicMemory, picture: str | Path | None, text: str) -> str:
    """Write a picture with a text, or a text alone where the model speaks; the new episode's id.

    Raises:
        ValueError: an empty text, a picture that cannot be read, or no picture for a model that does not speak.
    """
    [key] = memory.tell([text]) if picture is None else memory.write([picture], [text])
    return key


def recall(memory: EpisodicMemory, picture: str | Path | None, text: str) -> list[Recollection]:
    """What a picture, or without one a text, brings back, best first.

    Raises:
        ValueError: neither, one that cannot be read, or an empty memory.
    """
    if picture is None and not text.strip():
        raise ValueError("recalling takes a picture or a text: give one of them")
    return memory.recall(picture, None if picture is not None else text, SHOWN)


def said(model: Model, memory: EpisodicMemory, picture: str | Path | None, text: str) -> Said | None:
    """What the model says of a picture, or answers to a text, before and after; None: it does not speak."""
    if not memory.speaks:
        return None
    if picture is None:
        facts = memory.recalled(text=text).facts
        try:
            return Said(model.answer(text), model.answer(text, memory=memory), facts)
        except ValueError as error:  # it is too long to be answered, and recalls what it recalls
            return Said(f"({error})", f"({error})", facts)
    facts = memory.recalled(image=picture).facts
    return Said(model.caption(picture), model.caption(picture, memory=memory), facts)


def rows(memory: EpisodicMemory) -> list[list[str]]:
    """Each episode: id, text, when it was written or edited."""
    return [[one.id, one.text, one.edited or one.written] for one in memory.episodes]


def summary(memory: EpisodicMemory) -> str:
    """How full the memory is and what to expect of it, in a sentence."""
    if not len(memory):
        return "The memory is empty."
    state = memory.state()
    image, text = state.expected_recall
    return (
        f"{state.episodes} of {state.capacity} episodes that {state.slots} slots tell apart for certain. By their own "
        f"picture {image:.0%} are recalled first, by their own text {text:.0%}."
    )


def drawn(memory: EpisodicMemory) -> Image.Image | None:
    """Slots, addresses and recall as a picture; None: there is nothing to draw."""
    from bitgen.memory.picture import draw_memory  # with matplotlib, half a second: the page is there sooner
    from bitgen.show.inline import as_image

    return as_image(draw_memory(memory)) if len(memory) else None
