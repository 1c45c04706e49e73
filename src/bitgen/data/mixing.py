"""Several mapped datasets as one; ``quotas.py`` says what joining and mixing mean."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import cast

import numpy as np
import torch
from torch.utils.data import Dataset

from bitgen.data.dataset import PairDataset
from bitgen.data.quotas import most_passes, quotas, source_passes
from bitgen.data.sampler import ResumableBatchSampler, SampleKey
from bitgen.guards.printable import printable
from bitgen.model.processing_bitgen import WHOLE, View

logger = logging.getLogger(__name__)

_NAMES_SHOWN = 5


class MixedBatchSampler(ResumableBatchSampler):
    """A :class:`ResumableBatchSampler` whose epoch holds each source's share, shuffled together.

    Args:
        sizes: samples of each source, numbered one source after the other.
        weights: of each source.
        The rest: as for :class:`ResumableBatchSampler`.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        weights: Sequence[float],
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(sum(sizes), batch_size, rank, world_size, seed)
        self.sizes, self.weights = list(sizes), list(weights)
        self.quotas = quotas(sizes, weights)

    def order(self, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """As of :class:`ResumableBatchSampler`; a sample's epoch is the pass through its source."""
        indices, passes = [], []
        offset = 0
        for source, (size, quota) in enumerate(zip(self.sizes, self.quotas.tolist(), strict=True)):
            for number, start, stop in source_passes(size, quota, epoch):
                random = np.random.default_rng([self.seed % 2**63, source, number])
                indices.append(torch.from_numpy(random.permutation(size)[start:stop]) + offset)
                passes.append(torch.full((stop - start,), number))
            offset += size
        row, its_pass = torch.cat(indices), torch.cat(passes)
        shuffled = self.permutation(epoch)
        # What a source gives to two passes stays in their order, at the places that the shuffle gave to the source: a
        # run that ends inside an epoch then has not begun a pass before the one before it was at its end.
        of_source = torch.arange(len(self.sizes)).repeat_interleave(torch.from_numpy(self.quotas))[shuffled]
        in_order = torch.argsort(of_source * (int(its_pass.max()) + 1) + its_pass[shuffled], stable=True)
        ordered = torch.empty_like(shuffled)
        ordered[torch.argsort(of_source, stable=True)] = shuffled[in_order]
        return row[ordered], its_pass[ordered]

    @property
    def passes_per_epoch(self) -> float:
        """As of :class:`ResumableBatchSampler`: that of the source with the largest share for its size."""
        return most_passes(self.quotas, self.sizes)

    def identity(self) -> dict[str, int | str]:
        """Sizes and weights."""
        return {"sizes of the mixed sources": str(self.sizes), "weights of the mixed sources": str(self.weights)}


class MixedDataset(Dataset):
    """Several :class:`PairDataset` as one, with what a trainer asks of a dataset.

    Images and captions are numbered one source after the other: images of two sources are different images, even under
    one ``image_id`` string, for names such as ``1.jpg`` say nothing across sources. How often that happens is logged.

    Args:
        datasets: all of images, or all of features of one shape.
        weights: one each; None joins them.

    Raises ``ValueError`` for sources that do not go together.
    """

    steady = True
    why_uncached = "only one mapped data folder is cached, not several mixed and not a stream"

    def __init__(self, datasets: Sequence[PairDataset], weights: Sequence[float | None]) -> None:
        assert len(datasets) == len(weights) > 0
        self.datasets, self.weights = list(datasets), list(weights)
        first = self.datasets[0]
        for other in self.datasets[1:]:
            others = [encoder_of(one) for one in (first, other)]
            differ = None not in others and others[0] != others[1]
            if differ or (other.kind, other.feature_shape) != (first.kind, first.feature_shape):
                raise ValueError(
                    f"train_data mixes {_what(first)} with {_what(other)}: prepare all of them as images, or with one "
                    "encoder"
                )
        self.kind, self.feature_shape = first.kind, first.feature_shape
        self.seed = first.seed
        self._first_sample = np.cumsum([0, *map(len, self.datasets)])
        self._first_image = np.cumsum([0, *(dataset.image_count for dataset in self.datasets)])
        self._first_caption = np.cumsum([0, *(dataset.num_captions for dataset in self.datasets)])
        self.image_count, self.num_captions = int(self._first_image[-1]), int(self._first_caption[-1])
        self._report_shared_names()

    def _report_shared_names(self) -> None:
        shared = names_in_several(dataset.reader.image_ids() for dataset in self.datasets)
        if shared:
            logger.warning(
                "%d image ids occur in more than one source of train_data (%s%s); they count as different images. If "
                "they are the same ones, each is a false negative of the other: join their captions in one dataset",
                len(shared),
                ", ".join(shared[:_NAMES_SHOWN]),
                ", ..." if len(shared) > _NAMES_SHOWN else "",
            )

    def __len__(self) -> int:
        return int(self._first_sample[-1])

    def describe(self) -> str:
        """How much there is, source by source."""
        each = [
            f"{dataset.reader.folder}: {dataset.describe()}" + (f", weight {weight:g}" if weight is not None else "")
            for dataset, weight in zip(self.datasets, self.weights, strict=True)
        ]
        return "; ".join(each)

    def batch_sampler(self, batch_size: int, rank: int = 0, world_size: int = 1) -> ResumableBatchSampler:
        """The batches of one rank, in an order that depends on the seed and the weights."""
        sizes = [len(dataset) for dataset in self.datasets]
        if self.weights[0] is None:
            return ResumableBatchSampler(sum(sizes), batch_size, rank, world_size, self.seed)
        weights = cast(list[float], self.weights)  # all sources have a weight, or none
        return MixedBatchSampler(sizes, weights, batch_size, rank, world_size, self.seed)

    def __getitem__(self, key: SampleKey | int) -> dict:
        index, epoch = key if isinstance(key, tuple) else (key, 0)
        source, own = self._locate(self._first_sample, index)
        sample = self.datasets[source][SampleKey(own, epoch)]
        return {
            **sample,
            "image_id": sample["image_id"] + int(self._first_image[source]),
            "index": sample["index"] + int(self._first_sample[source]),
        }

    @staticmethod
    def _locate(firsts: np.ndarray, index: int) -> tuple[int, int]:
        """Source of a number that runs over all sources, and its number there."""
        if not 0 <= index < firsts[-1]:
            raise IndexError(f"{index} of {int(firsts[-1])}")
        source = int(np.searchsorted(firsts, index, side="right")) - 1
        return source, index - int(firsts[source])

    def image_tensor(self, image_index: int, view: View = WHOLE) -> torch.Tensor:
        """``pixel_values [3, H, W]`` or ``vision_features [P, C]`` of an image, float32."""
        source, own = self._locate(self._first_image, image_index)
        return self.datasets[source].image_tensor(own, view)

    def captions_of(self, image_index: int) -> list[str]:
        """All captions of an image."""
        source, own = self._locate(self._first_image, image_index)
        return self.datasets[source].captions_of(own)

    def words_per_batch(self, sampler: ResumableBatchSampler) -> float:
        """Mean words of a batch, which holds each source's share."""
        shares = sampler.quotas if isinstance(sampler, MixedBatchSampler) else [len(each) for each in self.datasets]
        return float(np.average([each.mean_words() for each in self.datasets], weights=shares)) * sampler.batch_size

    @property
    def num_words(self) -> int:
        """Words of all captions, as far as they are seen."""
        return sum(dataset.num_words for dataset in self.datasets)

    def iter_captions(self) -> Iterator[str]:
        """All captions, source by source."""
        return chain.from_iterable(dataset.iter_captions() for dataset in self.datasets)

    def tokens(self, caption_index: int) -> torch.Tensor:
        """Token ids of a caption, int64 ``[T]``."""
        source, own = self._locate(self._first_caption, caption_index)
        return self.datasets[source].tokens(own)

    def record_name(self, index: int) -> str:
        """How messages call sample ``index``."""
        source, own = self._locate(self._first_sample, index)
        return self.datasets[source].record_name(own)

    def record_of_image(self, image_index: int) -> str:
        """How messages call an image."""
        source, own = self._locate(self._first_image, image_index)
        return self.datasets[source].record_of_image(own)


def encoder_of(dataset: object) -> str | None:
    """The encoder that a dataset's features were computed with, where its record says it."""
    info = getattr(getattr(dataset, "reader", None), "info", None)
    return getattr(info, "encoder", None)


def _what(dataset: PairDataset) -> str:
    shape = f" {list(dataset.feature_shape)}" if dataset.feature_shape else ""
    encoder = encoder_of(dataset)
    by = f" of {printable(encoder, 100)}" if encoder else ""
    return f"{dataset.kind}{shape}{by} ({dataset.reader.folder})"


def names_in_several(columns: Iterator) -> list[str]:
    """Image ids (Arrow string columns, one a source) that occur in more than one source, sorted."""
    import pyarrow as pa
    import pyarrow.compute as pc

    unique = [pc.unique(column) for column in columns]
    counts = pc.value_counts(pa.chunked_array(unique))
    several = counts.filter(pc.greater(counts.field("counts"), 1))
    return sorted(several.field("values").to_pylist())
