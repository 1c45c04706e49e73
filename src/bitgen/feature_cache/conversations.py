"""Conversations seen through a feature cache: the same samples in the same order, and no picture is decoded."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from bitgen.data.bad_records import NO_FEATURES, BadRecord
from bitgen.data.conversations.records import Conversation, Conversations
from bitgen.data.dataset import DAMAGED_REMEDY
from bitgen.data.sampler import SampleKey
from bitgen.feature_cache.description import CacheDescription
from bitgen.feature_cache.filling import Filling, fill
from bitgen.feature_cache.store import ROUNDED, FeatureCache
from bitgen.machine.devices import Precision
from bitgen.machine.files import digest
from bitgen.machine.ranks import Processes, from_main
from bitgen.model.image_decoding import ImageError
from bitgen.vlm.vision import OURS, VisionTower


class Shown(Conversations, Protocol):
    """A source whose pictures are the same in every epoch, and have rows."""

    picture_count: int
    fingerprint: str

    def rows(self, index: int) -> list[list[int]]:
        """The rows of a conversation's pictures, visual by visual."""

    def picture(self, row: int) -> Any:
        """A picture by its row."""

    def record_of_image(self, row: int) -> str:
        """How messages call it."""


@dataclass(frozen=True)
class PicturesOf:
    """The pictures of a source as the encoder takes them; a ``filling.Pictures``.

    Args:
        prepare: ``(picture, its name) -> [3, S, S]``; may raise ``ImageError``.
    """

    source: Shown
    prepare: Callable[[Any, str], torch.Tensor]

    def image_tensor(self, row: int) -> torch.Tensor:
        """See ``filling.Pictures``."""
        try:
            return self.prepare(self.source.picture(row), self.record_of_image(row))
        except ImageError as error:
            raise BadRecord(f"{error}; {DAMAGED_REMEDY}", error.reason) from error

    def record_of_image(self, row: int) -> str:
        """See ``filling.Pictures``."""
        return self.source.record_of_image(row)


class CachedConversations:
    """Conversations with features ``[L, N, C]`` from a cache in place of pictures; implements ``Conversations``."""

    why_uncached = "its features are in a cache already"

    def __init__(self, source: Shown, cache: FeatureCache, layers: int) -> None:
        self.source, self.cache, self.layers = source, cache, layers

    @property
    def feature_shape(self) -> tuple[int, int]:
        """``(N, C)`` of a layer."""
        _, tokens, width = self.cache.description.shape
        return tokens // self.layers, width

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "source":
            raise AttributeError(name)
        return getattr(self.source, name)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: SampleKey | int) -> Conversation:
        """Raises ``BadRecord`` for one whose picture could not be read when the cache was filled."""
        index = key[0] if isinstance(key, tuple) else key
        said, rows = self.source.text(key), self.source.rows(index)
        if bad := [row for visual in rows for row in visual if self.cache.is_bad(row)]:
            name = self.source.record_of_image(bad[0])
            raise BadRecord(f"{name} could not be read when its features were computed", NO_FEATURES)
        return said._replace(visuals=[list(self._features(visual)) for visual in rows])

    def _features(self, rows: list[int]) -> torch.Tensor:
        return self.cache.read(torch.tensor(rows, dtype=torch.long)).unflatten(1, (self.layers, -1))


def fill_for(
    parent: str | Path,
    source: Shown,
    tower: VisionTower,
    prepare: Callable[[Any, str], torch.Tensor],
    preprocessing: str,
    dtype: str,
    how: tuple[Processes, Precision, int, int, bool],
) -> CachedConversations:
    """The features of all pictures of a source, computed where they lack; on all ranks together.

    Args:
        tower: frozen, on its device.
        preprocessing: fingerprint of ``prepare``.
        how: processes, precision, pictures at a time, workers that decode, and whether to show progress.

    Raises:
        CacheError: the disk is too small or full, the folder cannot be written or is damaged.
        InUse: another process fills it.
    """
    processes, precision = how[:2]
    spec, layers = tower.spec, len(tower.layers)
    assert spec.image_size is not None
    fingerprint = from_main(tower_fingerprint(tower) if processes.is_main else None, processes)
    shape = (source.picture_count, layers * spec.tokens, spec.width)
    description = CacheDescription(fingerprint, preprocessing, source.fingerprint, precision.name, dtype, shape)
    cache = FeatureCache(parent, description, smaller=[ROUNDED])
    cache.check_space()
    see = lambda pictures: tower(pictures).flatten(1, 2)  # noqa: E731
    fill(Filling(cache, PicturesOf(source, prepare), spec.image_size, see, *how))
    return CachedConversations(source, cache, layers)


def tower_fingerprint(tower: VisionTower) -> str:
    """Hash of all that decides a tower's output: configuration, layers read, weights."""
    config = {name: value for name, value in tower.vision_config.items() if name != OURS}
    text = json.dumps([config, list(tower.layers)], sort_keys=True, default=str)
    return digest([(text, torch.empty(0)), *sorted(tower.state_dict().items())])
