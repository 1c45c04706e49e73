"""A dataset seen through a feature cache: the same samples in the same order, and no image is read or decoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.utils.data import Dataset

from bitgen.data.bad_records import NO_FEATURES, BadRecord
from bitgen.data.dataset import PairDataset
from bitgen.data.sampler import SampleKey
from bitgen.feature_cache.store import FeatureCache

Batch = dict[str, torch.Tensor]


class CachedPairs(Dataset):
    """Whole batches of ``dataset`` with ``vision_features [B, P, C]`` from ``cache`` in place of ``pixel_values``.

    A DataLoader asks :meth:`__getitems__` for all of a batch at once, which copies the features straight from the
    memory map into it; its collate function is :func:`as_it_is`.

    Args:
        collate: samples without images to a batch.
    """

    def __init__(self, dataset: PairDataset, cache: FeatureCache, collate: Callable[[Sequence[dict]], Batch]) -> None:
        self.dataset, self.cache, self.collate = dataset, cache, collate

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, keys: Sequence[SampleKey | int]) -> Batch:
        batch = self.collate([self.dataset.without_image(key, self._refuse_bad) for key in keys])
        return {"vision_features": self.cache.read(batch["image_ids"]), **batch}

    def _refuse_bad(self, image_index: int) -> None:
        if self.cache.is_bad(image_index):
            name = self.dataset.record_of_image(image_index)
            raise BadRecord(f"{name} could not be read when its features were computed", NO_FEATURES)


def as_it_is(batch: Batch) -> Batch:
    """The collate function of a dataset that gives whole batches."""
    return batch


class CachedSplit:
    """What evaluation asks of a split of images, with ``vision_features`` from a cache of its first images."""

    kind = "features"

    def __init__(self, dataset: PairDataset, cache: FeatureCache) -> None:
        self.dataset, self.cache = dataset, cache
        self.image_count = cache.description.shape[0]
        self.captions_of, self.tokens = dataset.captions_of, dataset.tokens

    def image_tensor(self, row: int) -> torch.Tensor:
        """``[P, C]`` of an image. Raises ``ValueError`` where it could not be read."""
        if self.cache.is_bad(row):
            self.dataset.image_tensor(row)  # says what is wrong with it, and what to do
            name, folder = self.dataset.record_of_image(row), self.cache.folder
            raise BadRecord(
                f"{name} could not be read when its features were computed, and can be now: remove {folder}, and "
                "they are computed again",
                NO_FEATURES,
            )
        return self.cache.read(torch.tensor([row]))[0]
