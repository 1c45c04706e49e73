"""A stage whose frozen encoder is run once: its data from a feature cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bitgen.config.values import ConfigError
from bitgen.config.vlm import VISION, VlmConfig
from bitgen.data.conversations.dataset import ConversationDataset
from bitgen.data.loader_source import LoaderSource
from bitgen.feature_cache.conversations import fill_for
from bitgen.machine.devices import Precision
from bitgen.machine.ranks import Processes
from bitgen.stages import Stage
from bitgen.tasks.vlm_data import Picture
from bitgen.tasks.vlm_parts import VlmParts
from bitgen.vlm.vision import VisionTower

OFF = "off"


def is_cached(config: VlmConfig, parts: VlmParts) -> bool:
    """Whether a stage reads a cache.

    Raises:
        ConfigError: it is asked to, and its pictures change.
    """
    if config.vision.feature_cache == OFF or parts.model.connector is None:
        return False
    for name, data in (("train_data", parts.train), ("val_data", parts.val)):
        if data is not None and data.why_uncached is not None:
            raise ConfigError(f"feature_cache is on, but {name}: {data.why_uncached}. Write feature_cache off.")
    return True


class CachedVisuals(LoaderSource):
    """Batches with features from a cache in place of pictures. The encoder is given up once they are computed, unless
    checkpoints hold it.

    Args:
        The rest: as of :class:`LoaderSource`.
    """

    def __init__(
        self,
        config: VlmConfig,
        parts: VlmParts,
        ranks: Processes,
        precision: Precision,
        *arguments: Any,
        **settings: Any,
    ) -> None:
        super().__init__(*arguments, **settings)
        self.config, self.parts, self.ranks, self.precision = config, parts, ranks, precision
        self._cached: ConversationDataset | None = None
        self._held_out: ConversationDataset | None = None

    def prepare(self, stage: Stage, step: int, validates: bool) -> None:
        """Compute the features that lack. Errors as of ``fill_for``."""
        if self._cached is not None or (step >= stage.steps and not validates):
            return
        self._cached = self._from_cache(self.parts.train)
        if self.parts.val is not None:
            self._held_out = self._from_cache(self.parts.val)
        model = self.parts.model
        for name, parameter in model.named_parameters():
            if model.part_of(name) == VISION and not model.owns(name):  # its adapters are in the checkpoints
                parameter.data = torch.empty(0, dtype=parameter.dtype, device=parameter.device)

    def _from_cache(self, data: ConversationDataset) -> ConversationDataset:
        config, tower = self.config, self.parts.model.tower
        assert isinstance(tower, VisionTower) and isinstance(data.picture, Picture)
        cached = fill_for(
            config.vision.feature_cache,
            data.conversations,  # type: ignore[arg-type]  # is_cached has seen that its pictures have rows
            tower,
            data.picture,
            data.picture.processor.image_fingerprint,
            config.vision.feature_cache_dtype,
            (self.ranks, self.precision, config.training.batch_size, config.data.num_workers, config.output.progress),
        )
        return data.showing(cached)

    def reads(self, phase: int) -> tuple[Any, Callable]:
        """The data as features."""
        return (self.dataset if self._cached is None else self._cached), self.collate

    def held_out_in(self, phase: int) -> ConversationDataset | None:
        """The held-out data as features."""
        return self._held_out
