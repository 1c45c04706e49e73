"""The built-in data: coloured shapes rendered on the fly, with captions and a held-out split of unseen combinations.

What a scene is and what is held out: ``descriptions``; looks: ``drawing``; words: ``wording``.
Nothing is stored or downloaded: scene, captions and picture are pure functions of (seed, split, index), the picture's
jitter also of the epoch.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image

from bitgen.data.dataset import PairDataset
from bitgen.data.records import DatasetInfo
from bitgen.data.sampler import SampleKey
from bitgen.data.scenes.descriptions import Scene, Thing, is_held_out, iter_scenes, scene_rng
from bitgen.data.scenes.drawing import render_scene
from bitgen.data.scenes.wording import caption_scene, caption_scene_differently
from bitgen.model.processing_bitgen import WHOLE, BitGenProcessor, View

__all__ = [
    "Scene",
    "Thing",
    "ScenesDataset",
    "caption_scene",
    "is_held_out",
    "iter_scenes",
    "render_scene",
    "scene_captions",
]

CAPTIONS_PER_SCENE = 3


def scene_captions(split: str, size: int, seed: int) -> Iterator[str]:
    """All captions of a split, scene by scene, without rendering: a tokenizer's training text.

    Errors as in :func:`iter_scenes`.
    """
    for index, scene in enumerate(iter_scenes(split, size, seed)):
        yield from _captions(scene, split, seed, index)


def _captions(scene: Scene, split: str, seed: int, index: int) -> list[str]:
    return caption_scene_differently(scene, CAPTIONS_PER_SCENE, scene_rng(seed, split, index, "captions"))


class SceneReader:
    """The scenes of a split as records: what a dataset asks of ``RecordReader``, with pictures in place of payloads."""

    def __init__(self, split: str, size: int, seed: int) -> None:
        self.split, self.seed = split, seed
        self.scenes = list(iter_scenes(split, size, seed))
        self.folder = f"scenes ({split}, seed {seed})"  # a name for messages
        self.info = DatasetInfo("images", self.folder, num_images=size, num_captions=size * CAPTIONS_PER_SCENE)

    def __len__(self) -> int:
        return len(self.scenes)

    def image_id(self, index: int) -> str:
        """Name of scene ``index``: all that is needed to make it again."""
        return f"scene-{self.split}-{self.seed}-{index}"

    def captions(self, index: int) -> list[str]:
        """All captions of scene ``index``."""
        return _captions(self.scenes[index], self.split, self.seed, index)

    def captions_per_image(self) -> np.ndarray:
        """Number of captions of every scene, ``int64 [num_images]``."""
        return np.full(len(self), CAPTIONS_PER_SCENE, dtype=np.int64)

    def iter_captions(self) -> Iterator[str]:
        """All captions, scene by scene."""
        for index in range(len(self)):
            yield from self.captions(index)

    def picture(self, index: int, size: int, epoch: int = 0) -> Image.Image:
        """Scene ``index`` rendered at ``size`` x ``size``; a training scene is laid out afresh each epoch."""
        epoch = epoch if self.split == "train" else 0
        return render_scene(self.scenes[index], size, scene_rng(self.seed, self.split, index, "picture", epoch))

    def another_picture(self, index: int, size: int) -> Image.Image:
        """Scene ``index`` laid out anew, in either split: other places, sizes and shades that fit its captions."""
        return render_scene(self.scenes[index], size, scene_rng(self.seed, "another", index, "picture", 1))


class ScenesDataset(PairDataset):
    """Samples of the built-in scenes, in every respect but their source those of :class:`PairDataset`.

    Pictures are rendered at the processor's ``image_size`` in the worker that asks for them. There is no augmentation:
    a crop or a mirror image would make captions about places false, and the jitter of each epoch takes its part.

    Args:
        split: ``"train"`` or ``"val"``; every validation scene has a combination that no training scene has.
        size: number of scenes; each has CAPTIONS_PER_SCENE captions.
        seed: decides scenes, captions and pictures.
        processor: with a tokenizer.
        caption_sampling: as for :class:`PairDataset`.

    Raises ``ValueError`` for an unknown split, no scenes, or more validation scenes than there are different ones.
    """

    reader: SceneReader  # type: ignore[assignment]  # it has what is asked of a RecordReader here, and no payloads

    def __init__(
        self, split: str, size: int, seed: int, processor: BitGenProcessor, caption_sampling: str = "all"
    ) -> None:
        # Not super().__init__, which opens a folder: a scene reader takes its place.
        if caption_sampling not in ("all", "one"):
            raise ValueError(f"caption_sampling is {caption_sampling!r}; write 'all' or 'one'")
        self.reader = SceneReader(split, size, seed)
        self.processor = processor
        self.seed, self.caption_sampling, self.replace_bad = seed, caption_sampling, False
        self.info, self.kind = self.reader.info, self.reader.info.kind
        self.augment = False
        self.image_count = len(self.reader)
        self._index_captions()

    @property
    def images_vary(self) -> bool:
        """Scenes are drawn when they are asked for, and training scenes afresh each epoch."""
        return True

    def scene(self, image_index: int) -> Scene:
        """Description of an image."""
        return self.reader.scenes[image_index]

    def image_tensor(self, image_index: int, view: View = WHOLE, epoch: int = 0) -> torch.Tensor:
        """``pixel_values [3, H, W]`` float32 of a scene as ``epoch`` lays it out."""
        picture = self.reader.picture(image_index, self.processor.image_size, epoch)
        return self.processor.image(picture, self.record_of_image(image_index), view)

    def __getitem__(self, key: SampleKey | int) -> dict:
        index, epoch = key if isinstance(key, tuple) else (key, 0)
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        image_index, caption_index = self._image_of(index), index
        if self.caption_sampling == "one":
            caption = scene_rng(self.seed, "caption", index, epoch).randrange(CAPTIONS_PER_SCENE)
            caption_index = image_index * CAPTIONS_PER_SCENE + caption
        return {
            "pixel_values": self.image_tensor(image_index, epoch=epoch),
            "input_ids": self.tokens(caption_index),
            "image_id": image_index,
            "index": index,
        }
