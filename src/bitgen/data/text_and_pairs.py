"""Batches of text and batches of image-caption pairs in one run, in a fixed ratio."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

from torch.utils.data import Dataset

from bitgen.data.dataset import PairDataset
from bitgen.data.mixing import MixedDataset
from bitgen.data.sampler import ResumableBatchSampler, SampleKey
from bitgen.data.text_blocks import TextBlocks


class TextKey(NamedTuple):
    """What :class:`TextAndPairs` is indexed by where a sequence of text is meant; a SampleKey means a pair."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    epoch: int = 0


class TextAndPairsSampler:
    """Each batch is all text or all pairs; an epoch is one pass through the text, the pairs between spread evenly.

    Pairs go on from epoch to epoch: the passes through them have a length of their own.

    Args:
        text, pairs: the samplers of the two for this rank; ``pairs`` None: text alone.
        text_ratio: share of the batches that are text, above 0 and, with pairs, below 1.
    """

    def __init__(self, text: ResumableBatchSampler, pairs: ResumableBatchSampler | None, text_ratio: float) -> None:
        self.text, self.pairs, self.text_ratio = text, pairs, text_ratio
        wanted = round(len(text) * (1 - text_ratio) / text_ratio)
        self.pair_batches = max(wanted, 1) if pairs is not None else 0

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self.text) + self.pair_batches

    @property
    def passes_per_epoch(self) -> float:
        """How often an epoch shows the part of the data that it shows most often: the text once."""
        if self.pairs is None:
            return 1.0
        return max(1.0, self.pair_batches / len(self.pairs) * self.pairs.passes_per_epoch)

    def is_pairs(self, batch: int) -> bool:
        """Whether a batch of an epoch, counted from 0, holds pairs."""
        return self._pairs_before(batch + 1) > self._pairs_before(batch)

    def _pairs_before(self, batch: int) -> int:
        return batch * self.pair_batches // len(self)

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[list[TextKey] | list[SampleKey]]:
        """Yields this rank's batches of ``epoch`` from ``start_batch`` on."""
        drawn = self._pairs_before(start_batch)
        text = self.text.epoch(epoch, start_batch - drawn)
        pairs = self._pairs_from(epoch * self.pair_batches + drawn)
        for batch in range(start_batch, len(self)):
            yield next(pairs) if self.is_pairs(batch) else [TextKey(*key) for key in next(text)]

    def _pairs_from(self, batch: int) -> Iterator[list[SampleKey]]:
        """Batches of pairs from the ``batch``-th of the whole run on."""
        assert self.pairs is not None
        while True:
            number, start = divmod(batch, len(self.pairs))
            yield from self.pairs.epoch(number, start)
            batch = (number + 1) * len(self.pairs)

    def identity(self) -> dict[str, int | str]:
        """What must be the same for a resumed run to see the same order."""
        return {
            "text_ratio": str(self.text_ratio) if self.pairs is not None else "text alone",
            "text_batch_size": self.text.batch_size,
            **(self.pairs.identity() if self.pairs is not None else {}),
        }


class TextAndPairs(Dataset):
    """A text corpus and, unless ``pairs`` is None, image-caption pairs, with what a trainer asks of a dataset.

    Samples are numbered pairs first. Sequences of text are asked for by :class:`TextKey`.

    Args:
        text_ratio: share of the batches that are text.
        text_batch_size: sequences of a batch of text on each process.
    """

    steady = False  # a batch of text leaves out what sees images
    why_uncached = "with text beside the pairs, phase 1 is not cached"

    def __init__(
        self, text: TextBlocks, pairs: PairDataset | MixedDataset | None, text_ratio: float, text_batch_size: int
    ) -> None:
        self.text, self.pairs = text, pairs
        self.text_ratio, self.text_batch_size = text_ratio, text_batch_size

    def __len__(self) -> int:
        return self._first_text + len(self.text)

    @property
    def _first_text(self) -> int:
        return len(self.pairs) if self.pairs is not None else 0

    def describe(self) -> str:
        """How much there is of both."""
        if self.pairs is None:
            return self.text.describe()
        return f"{self.text.describe()}; {self.pairs.describe()}"

    def batch_sampler(self, batch_size: int, rank: int = 0, world_size: int = 1) -> TextAndPairsSampler:
        """The batches of one rank; ``batch_size`` is that of pairs."""
        pairs = self.pairs.batch_sampler(batch_size, rank, world_size) if self.pairs is not None else None
        return TextAndPairsSampler(
            self.text.batch_sampler(self.text_batch_size, rank, world_size), pairs, self.text_ratio
        )

    @cached_property
    def corpus_words(self) -> int:
        """Words of all that is trained on, each counted once."""
        return self.text.num_words + (self.pairs.num_words if self.pairs is not None else 0)

    def words_per_batch(self, sampler: TextAndPairsSampler) -> float:
        """Mean words of a batch, text and pairs in their ratio."""
        share = (len(sampler) - sampler.pair_batches) / len(sampler)
        words = share * self.text.num_words / len(self.text) * self.text_batch_size
        if self.pairs is not None:
            assert sampler.pairs is not None
            words += (1 - share) * self.pairs.words_per_batch(sampler.pairs)
        return words

    def __getitem__(self, key: TextKey | SampleKey) -> dict:
        if not isinstance(key, TextKey):
            assert self.pairs is not None
            return self.pairs[key]
        sample = self.text[SampleKey(*key)]
        return {**sample, "index": sample["index"] + self._first_text}

    def record_name(self, index: int) -> str:
        """How messages call sample ``index``."""
        if index < self._first_text:
            assert self.pairs is not None
            return self.pairs.record_name(index)
        return self.text.record_name(index - self._first_text)
