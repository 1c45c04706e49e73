"""Datasets of images with captions, and the built-in scenes, as conversations: a prompt is answered by a caption."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bitgen.data.conversations.records import IMAGE_MARKER, Conversation, Picture, Turn
from bitgen.data.dataset import stored_features
from bitgen.data.records import RecordReader
from bitgen.data.sampler import SampleKey
from bitgen.data.scenes.dataset import SceneReader
from bitgen.guards.printable import printable


class PairConversations:
    """Conversations of one question, a prompt, and one answer, a caption; implements ``Conversations``.

    Args:
        reader: of a folder of images or features with captions, or of scenes, which are drawn afresh each epoch.
        prompts: the question is one of them, drawn for (seed, epoch, index).
        seed: decides what is drawn.
        caption_sampling: ``"all"``: a conversation is a pair, an epoch shows every caption; ``"one"``: a conversation
            is an image with one caption drawn for (seed, epoch, index), so that ``references`` are all of it.
        picture_size: side of the scenes' pictures, pixels.
        max_images: use only the first so many images.

    Raises ``ValueError`` for prompts that cannot be used, and naming an image without a caption.
    """

    def __init__(
        self,
        reader: RecordReader | SceneReader,
        prompts: Sequence[str],
        seed: int = 0,
        caption_sampling: str = "all",
        picture_size: int = 224,
        max_images: int | None = None,
    ) -> None:
        if caption_sampling not in ("all", "one"):
            raise ValueError(f"caption_sampling is {caption_sampling!r}; write 'all' or 'one'")
        if not prompts:
            raise ValueError("there is no prompt: write at least one, such as 'Describe the image.'")
        for prompt in prompts:
            if not prompt.strip() or IMAGE_MARKER in prompt:
                raise ValueError(
                    f"the prompt {printable(repr(prompt), 80)} cannot be used: write a text without {IMAGE_MARKER}, "
                    "which is put before it"
                )
        self.reader, self.prompts, self.seed = reader, list(prompts), seed
        self.caption_sampling, self.picture_size = caption_sampling, picture_size
        self.image_count = min(len(reader), max_images or len(reader))
        counts = reader.captions_per_image()[: self.image_count]
        if not counts.all():
            row = int(np.flatnonzero(counts == 0)[0])
            raise ValueError(
                f"{self.record_of_image(row)} has no caption: prepare the dataset again (data_prep drops such images)"
            )
        self.first_caption = np.concatenate([[0], np.cumsum(counts)])  # [N + 1]: captions of image i

    most_pictures = 1

    @property
    def feature_shape(self) -> tuple[int, int] | None:
        """``(N, C)`` of stored features; None for pictures."""
        return self.reader.info.feature_shape

    @property
    def why_uncached(self) -> str | None:
        """Why the features of its pictures cannot be computed once; None: they can."""
        if self.feature_shape is not None:
            return "the data holds features computed earlier"
        return "scenes are drawn afresh each epoch" if isinstance(self.reader, SceneReader) else None

    def __len__(self) -> int:
        return int(self.first_caption[-1]) if self.caption_sampling == "all" else self.image_count

    def __getitem__(self, key: SampleKey | int) -> Conversation:
        said, epoch = self.text(key), key[1] if isinstance(key, tuple) else 0
        return said._replace(visuals=[[self._picture(said.image, epoch)]])

    def text(self, key: SampleKey | int) -> Conversation:
        """The same without pictures; see ``Conversations``."""
        index, epoch = key if isinstance(key, tuple) else (key, 0)
        if not 0 <= index < len(self):
            raise IndexError(f"conversation {index} of {len(self)}")
        random = np.random.default_rng([self.seed % 2**63, epoch, index])
        prompt = self.prompts[int(random.integers(len(self.prompts)))]
        image = self._image_of(index)
        captions = self.reader.captions(image)
        number = index - int(self.first_caption[image])
        caption = captions[number if self.caption_sampling == "all" else int(random.integers(len(captions)))]
        turns = [Turn("user", f"{IMAGE_MARKER}\n{prompt}"), Turn("assistant", caption)]
        return Conversation(self.reader.image_id(image), [[b""]], turns, image)

    def _picture(self, image: int, epoch: int) -> Picture:
        if isinstance(self.reader, SceneReader):
            return self.reader.picture(image, self.picture_size, epoch)
        payload = self.reader.payload(image)
        if self.reader.info.kind == "images":
            return payload
        return stored_features(payload, self.reader.info, self.record_of_image(image))

    def _image_of(self, index: int) -> int:
        if self.caption_sampling == "one":
            return index
        return int(np.searchsorted(self.first_caption, index, side="right")) - 1

    # ---- its pictures by row, for their features to be computed once ----

    @property
    def picture_count(self) -> int:
        """How many pictures there are."""
        return self.image_count

    @property
    def fingerprint(self) -> str:
        """Changes with what a folder holds."""
        assert isinstance(self.reader, RecordReader)
        return self.reader.fingerprint

    def rows(self, index: int) -> list[list[int]]:
        """The rows of a conversation's pictures, visual by visual."""
        return [[self._image_of(index)]]

    def picture(self, row: int) -> Picture:
        """A picture by its row, as the first epoch shows it."""
        return self._picture(row, 0)

    def references(self, index: int) -> list[str]:
        """All captions of a conversation's image."""
        return self.reader.captions(self._image_of(index))

    def mean_words(self) -> float:
        """Words of a caption, on average."""
        captions = (caption for image in range(self.image_count) for caption in self.reader.captions(image))
        return sum(len(caption.split()) for caption in captions) / int(self.first_caption[-1])

    def describe(self) -> str:
        """How much there is."""
        return f"{self.image_count:,} images, {int(self.first_caption[-1]):,} captions"

    def record_name(self, index: int) -> str:
        """How messages call a conversation: its dataset, row and image."""
        return self.record_of_image(self._image_of(index))

    def record_of_image(self, image: int) -> str:
        """How messages call an image."""
        return f"dataset {self.reader.folder}, record {image} ({printable(self.reader.image_id(image), 200)})"
