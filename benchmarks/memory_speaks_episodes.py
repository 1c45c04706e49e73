"""The episodes that models which speak from a memory are asked about, and how a figure of theirs is printed."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from typing import Any

from bitgen.data.dataset import PairDataset
from bitgen.data.episodes.dataset import EpisodeDataset, SceneEpisodes
from bitgen.data.episodes.photos import PhotoEpisodes
from bitgen.data.sampler import SampleKey
from bitgen.trained import Trained

SEEDS = (11, 12, 13)


def episodes(trained: Trained, data: PairDataset | None, seed: int, count: int, **sizes: Any) -> Iterator[tuple]:
    """(data, episode) of a seed; sizes are those of the makers."""
    maker: Any
    if data is None:
        maker = SceneEpisodes(trained.processor, seed, held_out=True, **sizes)
    else:
        maker = PhotoEpisodes(data, trained.processor, seed, held_out=True, **sizes)
    dataset = EpisodeDataset(maker, trained.processor, count, seed, trained.model.config.as_taught)
    for index in range(count):
        yield dataset, maker.episode(SampleKey(index))


def report(name: str, values: list[float], **more: Any) -> None:
    """One line; ``values``: the mean of each episode."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    line = {"name": name, **more, "value": statistics.fmean(values), "interval": 1.96 * spread / len(values) ** 0.5}
    print(json.dumps(line | {"episodes": len(values)}), flush=True)
