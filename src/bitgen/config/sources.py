"""What ``train_data`` names, as a person writes it: one dataset, or several that are joined or mixed by weight."""

from __future__ import annotations

import math
import os
import re
from typing import NamedTuple

SCENES = "scenes"  # the built-in data, rendered on the fly
SORT_OF_CLEVR = "sort_of_clevr"  # for stage 2: a benchmark whose pictures are drawn by its rules
BUILT_IN_QUESTIONS = (SCENES, SORT_OF_CLEVR)
_WEIGHT = re.compile(r"(?P<path>.*[^:/]):(?P<weight>[0-9]*\.?[0-9]+)")


class Source(NamedTuple):
    """A dataset's folder, glob or URL, and its weight; None where sources are joined."""

    path: str
    weight: float | None = None


def same_source(one: str, other: str) -> bool:
    """Whether two names are of one folder or URL, however each is written: ``data/``, ``./data``, a link to it."""
    if SCENES in (one, other) or "://" in one or "://" in other:
        return one.rstrip("/") == other.rstrip("/")
    paths = [os.path.realpath(os.path.expanduser(name)) for name in (one, other)]
    try:
        return paths[0] == paths[1] or os.path.samefile(*paths)
    except (OSError, ValueError):  # not there, or no name of a file: whoever opens it says so
        return False


def parse_sources(text: str) -> list[Source]:
    """``"A:2,B:1"`` to its sources; ``"A,B"`` has no weights, ``"A"`` is one source.

    Raises ``ValueError`` for an empty entry, a weight of 0, a source named twice, or weights for some sources only.
    """
    sources = []
    for entry in text.split(","):
        if not entry.strip():
            raise ValueError(f"train_data {text!r} has an empty entry; write DIR_A:2,DIR_B:1")
        match = _WEIGHT.fullmatch(entry.strip())
        sources.append(Source(match["path"], float(match["weight"])) if match else Source(entry.strip()))
    weights = [source.weight for source in sources]
    if None in weights and any(weight is not None for weight in weights):
        without = next(source.path for source in sources if source.weight is None)
        raise ValueError(f"train_data {text!r}: {without} has no weight; give all sources one (DIR:2), or none")
    if math.inf in weights:
        raise ValueError(f"train_data {text[:80]!r} has a weight that is no finite number; write a smaller one")
    if 0.0 in weights:
        raise ValueError(f"train_data {text!r} has a weight of 0; write a positive number or leave that source out")
    paths = [source.path for source in sources]
    twice = next((path for n, path in enumerate(paths) if any(same_source(path, p) for p in paths[:n])), None)
    if twice is not None:
        raise ValueError(f"train_data {text!r} names {twice} twice; name it once, with a weight")
    return sources if len(sources) > 1 else [Source(sources[0].path)]
