"""Image-caption pairs from an on-disk dataset, as tensors."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from bitgen.data.bad_records import NOT_FINITE, WRONG_SIZE, BadRecord, load_or_replace
from bitgen.data.records import DatasetInfo, RecordReader
from bitgen.data.sampler import ResumableBatchSampler, SampleKey
from bitgen.data.views import random_view
from bitgen.data.word_count import words_of
from bitgen.guards.printable import printable
from bitgen.model.image_decoding import ImageError
from bitgen.model.processing_bitgen import WHOLE, BitGenProcessor, View

logger = logging.getLogger(__name__)

_CAPTIONS_AT_ONCE = 10_000
DAMAGED_REMEDY = (
    "the file is damaged; prepare the dataset again with data_prep (--check_images True finds such records)"
)


def payload_tensor(
    payload: bytes, info: DatasetInfo, processor: BitGenProcessor, name: str, view: View = WHOLE
) -> torch.Tensor:
    """``pixel_values [3, H, W]`` or ``vision_features [P, C]``, float32, of a stored payload.

    Raises ``BadRecord`` naming the record for what cannot be decoded, and features as :func:`stored_features` does.
    """
    if info.kind == "images":
        try:
            return processor.image(payload, name, view)
        except ImageError as error:
            raise BadRecord(f"{error}; {DAMAGED_REMEDY}", error.reason) from error
    return torch.from_numpy(stored_features(payload, info, name))


def stored_features(payload: bytes, info: DatasetInfo, name: str) -> np.ndarray:
    """Features ``[P, C]``, float32, of a stored payload. Raises ``BadRecord`` for another size, NaN or infinity."""
    try:
        features = info.dequantize(payload)
    except ValueError as error:
        raise BadRecord(f"{name} {error}; {DAMAGED_REMEDY}", WRONG_SIZE) from error
    if not np.isfinite(features).all():
        message = f"{name} has NaN or infinite features; compute them again and prepare the dataset again"
        raise BadRecord(message, NOT_FINITE)
    return features


class PairDataset(Dataset):
    """Samples of a dataset folder: an image (or its features) and one of its captions.

    Captions are tokenized once here, into one flat array: 4 bytes a token, shared by the workers, which then never
    touch the tokenizer, and the number of truncated ones is known at the start.

    Args:
        folder: a dataset written by ``data_prep/``.
        processor: with a tokenizer; its ``max_length`` bounds the captions.
        seed: with epoch and index, decides everything random about a sample.
        caption_sampling: ``"all"``: a sample is a pair, an epoch shows every caption; ``"one"``: a sample is an image
            with one caption drawn for (seed, epoch, index).
        augment: images are seen through a random crop of 60 to 100% of their area, and mirrored half of the time unless
            the caption speaks of left or right. Stored features cannot be augmented; it is ignored for them, and said.
        max_images: use only the first so many images.
        feature_dim, feature_tokens: what the model expects of features ``[P, C]``; None accepts what the dataset
            declares.
        replace_bad: in place of a record that cannot be used, give the next image's sample, which then carries
            ``skipped``; else raise.

    ``dataset[SampleKey(index, epoch)]`` (a bare int means epoch 0) gives ``pixel_values [3, H, W]`` or
    ``vision_features [P, C]`` float32, ``input_ids [T]`` int64, ``image_id`` (row of the image) and ``index``. Raises
    ``ValueError`` naming dataset, record and remedy for whatever cannot be read; ``BadRecord`` where it is the record's
    fault alone.
    """

    steady = True

    def __init__(
        self,
        folder: str | Path,
        processor: BitGenProcessor,
        seed: int = 0,
        caption_sampling: str = "all",
        augment: bool = False,
        max_images: int | None = None,
        feature_dim: int | None = None,
        feature_tokens: int | None = None,
        replace_bad: bool = False,
    ) -> None:
        if caption_sampling not in ("all", "one"):
            raise ValueError(f"caption_sampling is {caption_sampling!r}; write 'all' or 'one'")
        if max_images is not None and max_images < 1:
            raise ValueError(f"max_images is {max_images}; write a positive number or null")
        self.reader = RecordReader(folder)
        self.processor = processor
        self.seed, self.caption_sampling, self.replace_bad = seed, caption_sampling, replace_bad
        self.info = self.reader.info
        self.kind = self.info.kind
        self._check_features(feature_dim, feature_tokens)
        self.augment = augment and self.kind == "images"
        if augment and not self.augment:
            logger.warning("%s holds features computed earlier: image_augmentation has no effect on them", folder)
        self.image_count = min(len(self.reader), max_images or len(self.reader))
        self._index_captions()

    def _check_features(self, feature_dim: int | None, feature_tokens: int | None) -> None:
        if self.kind != "features":
            return
        assert self.info.feature_shape is not None
        tokens, dim = self.info.feature_shape
        for name, wanted, found in (("feature_dim", feature_dim, dim), ("feature_tokens", feature_tokens, tokens)):
            if wanted is not None and wanted != found:
                raise ValueError(
                    f"{name} is {wanted}, but dataset {self.reader.folder} holds features of {tokens} tokens x {dim}: "
                    f"write --{name} {found}, or leave it null to take the dataset's"
                )

    def _index_captions(self) -> None:
        counts = self.reader.captions_per_image()[: self.image_count]
        if not counts.all():
            row = int(np.flatnonzero(counts == 0)[0])
            raise ValueError(
                f"{self.record_of_image(row)} has no caption: prepare the dataset again (data_prep drops such images)"
            )
        self.first_caption = np.concatenate([[0], np.cumsum(counts)])  # [N + 1]: captions of image i
        self.caption_image = np.repeat(np.arange(self.image_count), counts)  # [M]: image of caption j
        lengths: list[int] = []
        parts: list[np.ndarray] = []
        truncated_before = self.processor.truncated
        captions = islice(self.reader.iter_captions(), self.num_captions)
        while chunk := list(islice(captions, _CAPTIONS_AT_ONCE)):
            encoded = self.processor.encode(chunk)
            lengths.extend(len(ids) for ids in encoded)
            parts.append(np.fromiter((token for ids in encoded for token in ids), dtype=np.int32))
        self._tokens = np.concatenate(parts)
        self._token_start = np.concatenate([[0], np.cumsum(lengths)])
        self.truncated = self.processor.truncated - truncated_before
        if self.truncated:
            logger.warning(
                "%s: %d of %d captions are longer than max_seq_len %d tokens and were truncated (EOS kept)",
                self.reader.folder,
                self.truncated,
                self.num_captions,
                self.processor.max_length,
            )

    # ---------------------------------------------------------------- what there is

    def __len__(self) -> int:
        return self.num_captions if self.caption_sampling == "all" else self.image_count

    @property
    def num_captions(self) -> int:
        """Captions of all images."""
        return len(self.caption_image)

    def describe(self) -> str:
        """How much there is, for the run's first table."""
        return f"{self.image_count:,} images, {self.num_captions:,} captions"

    def batch_sampler(self, batch_size: int, rank: int = 0, world_size: int = 1) -> ResumableBatchSampler:
        """The batches of one rank, in an order that depends on the dataset's seed."""
        return ResumableBatchSampler(len(self), batch_size, rank, world_size, self.seed)

    @property
    def feature_shape(self) -> tuple[int, int] | None:
        """``(P, C)`` of features as the dataset declares it; None for images."""
        return self.info.feature_shape

    @property
    def images_vary(self) -> bool:
        """Whether an image may look different each time it is seen."""
        return self.augment

    def captions_of(self, image_index: int) -> list[str]:
        """All captions of an image."""
        return self.reader.captions(image_index)

    @property
    def why_uncached(self) -> str | None:
        """Why the features of its images cannot be computed once; None: they can."""
        return "the data holds features computed earlier" if self.kind == "features" else None

    def words_per_batch(self, sampler: ResumableBatchSampler) -> float:
        """Mean words of a batch."""
        return self.mean_words() * sampler.batch_size

    def mean_words(self) -> float:
        """Words of a sample's caption on average, as far as it is seen."""
        words = self._caption_words
        if self.caption_sampling == "one":
            words = np.add.reduceat(words, self.first_caption[:-1]) / np.diff(self.first_caption)
        return float(words.mean())

    @property
    def num_words(self) -> int:
        """Words of all captions, as far as they are seen."""
        return int(self._caption_words.sum())

    @cached_property  # asked for twice: when the run is planned, and at the first save
    def _caption_words(self) -> np.ndarray:
        assert self.processor.tokenizer is not None
        return words_of((self._tokens[a:b] for a, b in pairwise(self._token_start)), self.processor.tokenizer)

    def iter_captions(self) -> Iterator[str]:
        """All captions, image by image."""
        return islice(self.reader.iter_captions(), self.num_captions)

    def tokens(self, caption_index: int) -> torch.Tensor:
        """Token ids ``BOS ... EOS`` of a caption, int64 ``[T]``; captions are numbered image by image."""
        start, end = self._token_start[caption_index], self._token_start[caption_index + 1]
        return torch.from_numpy(self._tokens[start:end].astype(np.int64))

    def record_name(self, index: int) -> str:
        """How messages call sample ``index``: its dataset, row and image."""
        return self.record_of_image(self._image_of(index))

    def record_of_image(self, image_index: int) -> str:
        """How messages call an image."""
        name = printable(self.reader.image_id(image_index), 200)
        return f"dataset {self.reader.folder}, record {image_index} ({name})"

    def _image_of(self, index: int) -> int:
        return int(self.caption_image[index]) if self.caption_sampling == "all" else index

    # ---------------------------------------------------------------- tensors

    def __getitem__(self, key: SampleKey | int) -> dict:
        return self._load(key, self._sample)

    def without_image(self, key: SampleKey | int, check: Callable[[int], None]) -> dict:
        """``dataset[key]`` without its image, which is neither read nor decoded.

        ``check`` gets the number of the image; with the ``BadRecord`` that it raises, another sample takes the place.
        """

        def load(index: int, epoch: int) -> dict:
            sample = self._draw(index, epoch)[0]
            check(sample["image_id"])
            return sample

        return self._load(key, load)

    def _load(self, key: SampleKey | int, load: Callable[[int, int], dict]) -> dict:
        index, epoch = key if isinstance(key, tuple) else (key, 0)
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        if not self.replace_bad:
            return load(index, epoch)
        return load_or_replace(lambda candidate: load(candidate, epoch), self._from(index))

    def _from(self, index: int) -> Iterator[int]:
        """``index``, and then a sample of each following image."""
        yield index
        image = self._image_of(index)
        for step in range(1, self.image_count):
            following = (image + step) % self.image_count
            yield int(self.first_caption[following]) if self.caption_sampling == "all" else following

    def _sample(self, index: int, epoch: int) -> dict:
        sample, caption_index, random = self._draw(index, epoch)
        image_index, view = sample["image_id"], WHOLE
        if self.augment:
            caption = self.captions_of(image_index)[caption_index - int(self.first_caption[image_index])]
            view = random_view(random, caption)
        vision = "pixel_values" if self.kind == "images" else "vision_features"
        return {vision: self.image_tensor(image_index, view), **sample}

    def _draw(self, index: int, epoch: int) -> tuple[dict, int, np.random.Generator]:
        """A sample without its image, its caption, and the random state that decides how the image is seen."""
        random = np.random.default_rng([self.seed % 2**63, epoch, index])
        image_index = caption_index = index
        if self.caption_sampling == "all":
            image_index = self._image_of(index)
        else:
            caption_index = int(random.integers(self.first_caption[image_index], self.first_caption[image_index + 1]))
        sample = {"input_ids": self.tokens(caption_index), "image_id": image_index, "index": index}
        return sample, caption_index, random

    def picture(self, image_index: int) -> torch.Tensor | None:
        """An image as the model sees it, uint8 ``[3, H, W]``; None of features, which are no picture."""
        return self.processor.picture(self.image_tensor(image_index)) if self.kind == "images" else None

    def image_tensor(self, image_index: int, view: View = WHOLE) -> torch.Tensor:
        """``pixel_values [3, H, W]`` or ``vision_features [P, C]`` of an image, float32."""
        name = self.record_of_image(image_index)
        return payload_tensor(self.reader.payload(image_index), self.info, self.processor, name, view)
