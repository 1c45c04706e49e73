"""What a model writes about a picture, and how likely it found each word."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

from bitgen.api import Model, VisionLanguage
from bitgen.evaluation.generation import LONGEST
from bitgen.evaluation.word_probabilities import WordProbability, word_probabilities


class Described(NamedTuple):
    """A caption, and how long it took."""

    text: str
    seconds: float


def describe(
    model: Model | VisionLanguage, picture: str | Path, num_beams: int = 3, temperature: float = 0.0
) -> Described:
    """The caption of a picture in a file.

    Args:
        temperature: above 0 words are drawn, and ``num_beams`` counts as 1.

    Raises:
        ValueError: a picture that cannot be read, or a setting out of its range.
    """
    started = time.perf_counter()
    if isinstance(model, VisionLanguage):
        prompt, beams = model.trained.description.speech.prompt, 1 if temperature else num_beams
        decoding = {"num_beams": beams, "temperature": temperature, "max_new_tokens": LONGEST}
        text = model.talk(picture, **decoding).ask(prompt)
    else:
        text = model.caption(picture, num_beams=num_beams, temperature=temperature)
    return Described(text, time.perf_counter() - started)


def probabilities(model: Model | VisionLanguage, picture: str | Path, text: str) -> list[WordProbability]:
    """How likely the model finds each word of a caption; none: it is a model that does not say, or says nothing.

    Raises:
        ValueError: a picture that cannot be read.
    """
    if isinstance(model, VisionLanguage) or not text:
        return []
    return word_probabilities(model.trained, model.pixels(picture), text)
