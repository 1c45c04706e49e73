"""Pairs of scenes whose captions have the same words in another order, in the manner of Winoground (arXiv 2204.03162).

Who matches a caption's words with a picture, each by itself, cannot tell the two apart; who reads which word belongs to
which can. What is swapped between the two objects of a relation is their order ("a red star left of a blue ring" and
"a blue ring left of a red star"), their colours or shapes, or their sizes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from bitgen.data.scenes.descriptions import Scene, is_held_out, random_scene, scene_rng
from bitgen.data.scenes.drawing import render_scene
from bitgen.data.scenes.wording import caption_scene
from bitgen.model.processing_bitgen import BitGenProcessor

# The most captions that are drawn of the second scene, until one has the words of the first; then both are left.
_DRAWS = 400


class SwappedPair(NamedTuple):
    """Two scenes and a caption of each, which have the same words."""

    scenes: tuple[Scene, Scene]
    captions: tuple[str, str]


def swapped_pairs(count: int, seed: int) -> Iterator[SwappedPair]:
    """The first ``count`` pairs of a seed. Both scenes have a combination that training never shows, and no two pairs
    have the same scenes."""
    rng = scene_rng(seed, "swapped")
    seen: set[frozenset[tuple]] = set()
    while len(seen) < count:
        first = random_scene(rng)
        second = _swapped(first, rng)
        meanings = frozenset((first.meaning, second.meaning))
        if len(meanings) < 2 or meanings in seen or not (is_held_out(first) and is_held_out(second)):
            continue
        captions = _captions(first, second, rng)
        if captions is not None:
            seen.add(meanings)
            yield SwappedPair((first, second), captions)


def _swapped(scene: Scene, rng: random.Random) -> Scene:
    """The scene with something of its two objects swapped; itself where there is nothing to swap."""
    if scene.kind != "relation" or any(thing.count > 1 for thing in scene.things):
        return scene
    first, second = scene.things
    what = rng.choice(("order", "colour", "size"))
    if what == "order":
        things = (second, first)
    elif what == "colour":  # the same pictures as if the shapes were swapped, in the other order
        things = (replace(first, colour=second.colour), replace(second, colour=first.colour))
    else:
        things = (replace(first, size=second.size), replace(second, size=first.size))
    return replace(scene, things=things)


def _captions(first: Scene, second: Scene, rng: random.Random) -> tuple[str, str] | None:
    caption = caption_scene(first, rng)
    wanted = sorted(caption.split())
    for _ in range(_DRAWS):
        other = caption_scene(second, rng)
        if sorted(other.split()) == wanted and other != caption:
            return caption, other
    return None


class SwappedScenes:
    """Those pairs as a split that evaluation encodes: pictures 2 i and 2 i + 1, with a caption each, are pair i.

    Args:
        processor: with a tokenizer.
    """

    kind = "images"

    def __init__(self, count: int, seed: int, processor: BitGenProcessor) -> None:
        pairs = list(swapped_pairs(count, seed))
        self.scenes = [scene for pair in pairs for scene in pair.scenes]
        self.captions = [caption for pair in pairs for caption in pair.captions]
        self.processor, self.seed = processor, seed
        self._tokens = processor.texts(self.captions)

    @property
    def image_count(self) -> int:
        return len(self.scenes)

    def captions_of(self, row: int) -> list[str]:
        return [self.captions[row]]

    def tokens(self, caption: int) -> Tensor:
        """Token ids ``[T]`` of a caption, BOS and EOS included."""
        length = int(self._tokens["attention_mask"][caption].sum())
        return self._tokens["input_ids"][caption, :length]

    def image_tensor(self, row: int, /) -> Tensor:
        """``pixel_values [3, H, W]``."""
        rng = scene_rng(self.seed, "swapped", row, "picture")
        return self.processor.image(render_scene(self.scenes[row], self.processor.image_size, rng), f"swapped-{row}")
