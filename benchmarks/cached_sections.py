"""Phase 1 from a feature cache, for stage1_throughput.py: a real cache of random features, the tower given up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from bitgen.feature_cache.description import CacheDescription
from bitgen.feature_cache.store import FeatureCache
from bitgen.model.configuration_bitgen import BitGenConfig

# Enough that no batch repeats within a step, and little enough that the page cache holds them: 200 MB at 256 x 768.
_IMAGES = 512


def random_cache(config: BitGenConfig, folder: Path) -> FeatureCache:
    """A complete bf16 cache of random features of the shape that ``config`` asks for."""
    shape = (_IMAGES, config.image_tokens, config.vision_feature_dim)
    cache = FeatureCache(folder, CacheDescription("random", "random", "random", "bf16", "bf16", shape))
    cache.create()
    for shard in cache.missing_shards():
        cache.write_shard(shard, torch.randn(len(cache.description.rows_of(shard)), *shape[1:]))
    return cache


def cached_batches(cache: FeatureCache, batch: dict[str, Tensor]) -> Callable[[], dict[str, Tensor]]:
    """Gives ``batch`` with features read from the cache in place of its pixels, other rows each time."""
    captions = {name: tensor for name, tensor in batch.items() if name != "pixel_values"}
    device = captions["input_ids"].device

    def read() -> dict[str, Tensor]:
        rows = torch.randint(_IMAGES, (len(captions["image_ids"]),))
        return {**captions, "vision_features": cache.read(rows).to(device)}

    return read


class Split:
    """Seconds of the parts of a section, summed over its runs."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the block's time under ``name``. On a GPU this is until its work is queued; reading waits for what was
        queued before."""
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def shares(self) -> dict[str, float]:
        """Share of each part in their sum."""
        total = sum(self.seconds.values())
        return {name: round(seconds / total, 3) for name, seconds in self.seconds.items()}
