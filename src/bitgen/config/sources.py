"""What ``train_data`` names, as a person writes it: one dataset, or several that are joined or mixed by weight."""

from __future__ import annotations

import re
from typing import NamedTuple

SCENES = "scenes"  # the built-in data, rendered on the fly
_WEIGHT = re.compile(r"(?P<path>.*[^:/]):(?P<weight>[0-9]*\.?[0-9]+)")


class Source(NamedTuple):
    """A dataset's folder, glob or URL, and its weight; None where sources are joined."""

    path: str
    weight: float | None = None


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
    if 0.0 in weights:
        raise ValueError(f"train_data {text!r} has a weight of 0; write a positive number or leave that source out")
    paths = [source.path for source in sources]
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise ValueError(f"train_data {text!r} names {twice} twice; name it once, with a weight")
    return sources if len(sources) > 1 else [Source(sources[0].path)]
