"""Image-caption pairs streamed from shards: what a mapped dataset gives, at constant memory whatever their number."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from hashlib import blake2b
from itertools import chain, islice

import numpy as np
import torch
from torch.utils.data import Dataset

from bitgen.data.bad_records import NO_CAPTION, BadRecord, load_or_replace
from bitgen.data.dataset import payload_tensor
from bitgen.data.records import Record
from bitgen.data.sampler import SampleKey
from bitgen.data.shards import Shards
from bitgen.data.stream_order import StreamBatchSampler
from bitgen.data.views import random_view
from bitgen.data.word_count import words_of
from bitgen.guards.printable import printable
from bitgen.model.processing_bitgen import WHOLE, BitGenProcessor

# Captions that a tokenizer is trained on: those of the first shards, as many as its training profits from.
CAPTIONS_FOR_TOKENIZER = 2_000_000
_COUNTED = 100_000  # captions of each source whose words are counted
_ROWS_LOOKED_AT = 1000

logger = logging.getLogger(__name__)


def stream_captions(sources: Sequence[Shards]) -> Iterator[str]:
    """Captions of the sources in order: a tokenizer's training text, the first so many of each where there are more."""
    return chain.from_iterable(islice(s.iter_captions(), CAPTIONS_FOR_TOKENIZER // len(sources)) for s in sources)


def warn_of_copies(shards: Shards) -> None:
    """Says so where rows among the first thousand hold one picture: a stream cannot join what stands far apart."""
    seen: dict[bytes, str] = {}
    first: tuple[str, str] | None = None
    read = copies = 0
    for chunk, rows in enumerate(shards.chunk_rows):
        if read and read + rows > _ROWS_LOOKED_AT:
            break
        records = shards.read(chunk)
        for row in range(int(rows)):
            name = shards.where(chunk, row)
            with suppress(BadRecord):  # counted when its turn comes
                payload = records[row].payload
                other = seen.setdefault(blake2b(payload, digest_size=16).digest(), name) if payload else name
                if other != name:
                    first, copies = first or (name, other), copies + 1
        read += int(rows)
    if first is not None:
        logger.warning(
            "%s: %d of the first %d rows hold the picture of an earlier one (%s, that of %s). A stream takes each row "
            "for a picture of its own, so that copies count as wrong answers: join the captions of a picture in one "
            "row, as data_prep/image_folder.py --hub_dataset does",
            *(shards.name, copies, read, *first),
        )


class StreamDataset(Dataset):
    """Samples of shards, for a sampler that asks for neighbouring rows together (:class:`StreamBatchSampler`).

    It answers for any row at any time, so that the same loader feeds mapped and streamed training; but each worker
    keeps only the chunks it used last, about ``shuffle_buffer`` rows of them.

    An epoch shows each image once, with one of its captions: how many captions there are is not known before the
    shards are read.

    Args:
        sources: of one kind, numbered one after the other; see :class:`Shards`.
        weights: one each; None joins the sources.
        processor: with a tokenizer.
        seed: with the pass and the row, decides everything random about a sample.
        caption_sampling: ``"all"``: an image's captions take turns, pass by pass; ``"one"``: a caption is drawn.
        augment: as for :class:`PairDataset`.
        lanes: worker processes of each rank; 1 where the process itself loads.
        shuffle_buffer: rows that are shuffled together, and that each worker holds.

    ``dataset[SampleKey(row, pass)]`` as :class:`PairDataset`'s; ``image_id`` and ``index`` are the row's number over
    all sources, so that images of two sources are different images whatever they are called. A record that cannot be
    used is replaced by the next one, and the sample carries ``skipped``. Raises ``ValueError`` for a shard that cannot
    be read.
    """

    steady = True
    why_uncached = "only one mapped data folder is cached, not several mixed and not a stream"

    def __init__(
        self,
        sources: Sequence[Shards],
        weights: Sequence[float | None],
        processor: BitGenProcessor,
        seed: int = 0,
        caption_sampling: str = "all",
        augment: bool = False,
        lanes: int = 1,
        shuffle_buffer: int = 1000,
    ) -> None:
        assert len(sources) == len(weights) > 0
        self.sources, self.weights, self.processor = list(sources), list(weights), processor
        self.seed, self.caption_sampling, self.lanes = seed, caption_sampling, lanes
        self.shuffle_buffer = shuffle_buffer
        first = sources[0].info
        for other in sources[1:]:
            differ = None not in (first.encoder, other.info.encoder) and first.encoder != other.info.encoder
            if differ or (other.info.kind, other.info.feature_shape) != (first.kind, first.feature_shape):
                raise ValueError(
                    f"train_data mixes {first.kind} {first.feature_shape or ''} ({sources[0].name}) with "
                    f"{other.info.kind} {other.info.feature_shape or ''} ({other.name}): prepare all of them alike, "
                    "with one encoder"
                )
        self.kind, self.feature_shape = first.kind, first.feature_shape
        self.augment = augment and self.kind == "images"
        self._chunks = [shards.chunk_rows for shards in sources]
        rows = np.concatenate(self._chunks)
        self._first_chunk = np.cumsum([0, *map(len, self._chunks)])  # of each source, over all of them
        self._chunk_end = np.cumsum(rows)
        self.image_count = int(self._chunk_end[-1])
        # A window is a little more than shuffle_buffer rows; the chunks at its two ends count in full.
        self._cached_rows = shuffle_buffer + 2 * int(rows.max())
        self._cache: OrderedDict[int, Sequence[Record]] = OrderedDict()
        if self.kind == "images":
            for shards in self.sources:
                warn_of_copies(shards)

    def __getstate__(self) -> dict:
        return {**vars(self), "_cache": OrderedDict()}

    def __len__(self) -> int:
        return self.image_count

    def describe(self) -> str:
        """How much there is, source by source."""
        each = [
            f"{int(rows.sum()):,} images in {len(rows):,} chunks of {shards.num_files:,} files"
            for shards, rows in zip(self.sources, self._chunks, strict=True)
        ]
        if len(each) > 1:
            each = [f"{shards.name}: {text}" for shards, text in zip(self.sources, each, strict=True)]
        if self.weights[0] is not None:
            each = [f"{text}, weight {weight:g}" for text, weight in zip(each, self.weights, strict=True)]
        return "; ".join(each) + "; streamed"

    def batch_sampler(self, batch_size: int, rank: int = 0, world_size: int = 1) -> StreamBatchSampler:
        """The batches of one rank."""
        return StreamBatchSampler(
            self._chunks, self.weights, batch_size, rank, world_size, self.lanes, self.shuffle_buffer, self.seed
        )

    def words_per_batch(self, sampler: StreamBatchSampler) -> float:
        """Mean words of a batch, by the first captions of each source as far as they are seen."""
        assert self.processor.tokenizer is not None
        truncated, means = self.processor.truncated, []
        for source in self.sources:
            encoded = self.processor.encode(list(islice(source.iter_captions(), _COUNTED)))
            means.append(words_of(encoded, self.processor.tokenizer).mean())
        self.processor.truncated = truncated  # which counts what is trained on
        return float(np.average(means, weights=sampler.quotas)) * sampler.batch_size

    def iter_captions(self) -> Iterator[str]:
        """Captions to train a tokenizer on; see :func:`stream_captions`."""
        return stream_captions(self.sources)

    def record_name(self, index: int) -> str:
        """How messages call a row, without reading it."""
        shards, chunk, row, _ = self._locate(index)
        return shards.where(chunk, row)

    def _locate(self, index: int) -> tuple[Shards, int, int, int]:
        """Source, chunk in it, row in that, and the chunk's number over all sources."""
        number = int(np.searchsorted(self._chunk_end, index, side="right"))
        source = int(np.searchsorted(self._first_chunk, number, side="right")) - 1
        chunk = number - int(self._first_chunk[source])
        row = index - (int(self._chunk_end[number - 1]) if number else 0)
        return self.sources[source], chunk, row, number

    def _rows(self, shards: Shards, chunk: int, number: int) -> Sequence[Record]:
        """The rows of a chunk, kept until newer ones need the room."""
        if number in self._cache:
            self._cache.move_to_end(number)
            return self._cache[number]
        room = self._cached_rows - int(shards.chunk_rows[chunk])
        while self._cache and sum(map(len, self._cache.values())) > room:
            self._cache.popitem(last=False)
        self._cache[number] = shards.read(chunk)
        return self._cache[number]

    def __getitem__(self, key: SampleKey | int) -> dict:
        index, epoch = key if isinstance(key, tuple) else (key, 0)
        if not 0 <= index < self.image_count:
            raise IndexError(f"row {index} of {self.image_count}")
        candidates = ((index + step) % self.image_count for step in range(self.image_count))
        return load_or_replace(lambda row: self._sample(row, epoch), candidates)

    def _sample(self, index: int, epoch: int) -> dict:
        shards, chunk, row, number = self._locate(index)
        record = self._rows(shards, chunk, number)[row]
        name = f"{shards.where(chunk, row)} ({printable(record.image_id, 200)})"
        if not record.captions:
            raise BadRecord(f"{name} has no caption: prepare the shard again without it", NO_CAPTION)
        random = np.random.default_rng([self.seed % 2**63, epoch, index])
        if self.caption_sampling == "all":
            caption = record.captions[(epoch + index) % len(record.captions)]
        else:
            caption = record.captions[int(random.integers(len(record.captions)))]
        view = random_view(random, caption) if self.augment else WHOLE
        pixels = payload_tensor(record.payload, shards.info, self.processor, name, view)
        return {
            "pixel_values" if self.kind == "images" else "vision_features": pixels,
            "input_ids": torch.tensor(self.processor.encode([caption])[0]),
            "image_id": index,
            "index": index,
        }
