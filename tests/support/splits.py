"""Splits for the evaluation's tests, encoded and not, and a stand-in for the model that judges pairs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from hypothesis import strategies as st
from torch import Tensor

from bitgen.evaluation.encode import EncodedSplit
from support.models import FEATURES


class FeatureSplit:
    """Random features with one to three captions of uneven length an image."""

    kind = "features"

    def __init__(self, image_count: int = 11, vocabulary: int = 50) -> None:
        generator = torch.Generator().manual_seed(3)
        self.image_count = image_count
        self.features = torch.randn(image_count, *FEATURES, generator=generator)
        self.owner = [row for row in range(image_count) for _ in range(1 + row % 3)]
        lengths = torch.randint(2, 15, (len(self.owner),), generator=generator).tolist()
        self.captions = [torch.randint(vocabulary, (length,), generator=generator) for length in lengths]

    def captions_of(self, row: int) -> list[str]:
        return ["a caption"] * self.owner.count(row)

    def tokens(self, caption: int) -> Tensor:
        return self.captions[caption]

    def image_tensor(self, row: int) -> Tensor:
        return self.features[row]


def split_of(image_features: Tensor, text_features: Tensor, caption_image: list[int]) -> EncodedSplit:
    """A split of given features; captions have one token, image tokens are zeros."""
    return EncodedSplit(
        image_features=image_features.float(),
        text_features=text_features.float(),
        caption_image=torch.tensor(caption_image),
        input_ids=torch.zeros(len(text_features), 1, dtype=torch.int32),
        lengths=torch.ones(len(text_features), dtype=torch.int64),
        image_tokens=torch.zeros(len(image_features), 1, image_features.shape[1], dtype=torch.bfloat16),
    )


@st.composite
def tied_splits(draw: st.DrawFn, min_images: int = 1) -> EncodedSplit:
    """Small splits with one to four captions an image in any order, over so few values that scores tie often."""
    counts = draw(st.lists(st.integers(1, 4), min_size=min_images, max_size=7))
    owners = draw(st.permutations([image for image, count in enumerate(counts) for _ in range(count)]))
    width = draw(st.integers(1, 3))
    value = st.sampled_from([-0.5, 0.0, 0.25, 0.5])
    row = st.lists(value, min_size=width, max_size=width)
    images = draw(st.lists(row, min_size=len(counts), max_size=len(counts)))
    texts = draw(st.lists(row, min_size=len(owners), max_size=len(owners)))
    return split_of(torch.tensor(images), torch.tensor(texts), list(owners))


class TableRunner:
    """In place of a Runner: looks ITM scores up in a table [M, N] and counts the pairs asked for."""

    def __init__(self, scores: Tensor | Callable[[Tensor, Tensor], Tensor]) -> None:
        self.scores = scores
        self.pairs: list[tuple[int, int]] = []

    def match(self, encoded: EncodedSplit, texts: Tensor, images: Tensor) -> Tensor:
        self.pairs += list(zip(texts.tolist(), images.tolist(), strict=True))
        return self.scores[texts, images].float()

    order = match
