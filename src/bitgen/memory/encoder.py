"""Images and texts to the codes that a memory holds, by a trained model."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from bitgen import trained
from bitgen.guards.printable import printable
from bitgen.guards.regular_files import read_regular_file
from bitgen.memory.episodes import check_texts
from bitgen.model.image_decoding import ImageSource
from bitgen.model.modeling_bitgen import BitGenModel
from bitgen.model.processing_bitgen import BitGenProcessor

MemoryImage = str | Path | ImageSource | Tensor

_NO_TOWER = (
    "was trained on features computed earlier and has no vision tower: it cannot look at image files. Cue it with a "
    "text; in a program, pass the features [P, C] of images, computed as its training data were."
)


def open_model(path: str | Path, device: torch.device | str = "cpu") -> tuple[BitGenModel, BitGenProcessor]:
    """Model, in eval mode on ``device``, and processor of a run's folder, a checkpoint or an export.

    Raises:
        ValueError: there is no model, it is damaged or cannot be loaded; the message names the folder.
    """
    opened = trained.open_model(path, device)
    return opened.model, opened.processor


class PairEncoder:
    """``image_features`` and ``text_features`` of a model, as float64 on its device.

    Args:
        model: put into eval mode here; its running memory is read as it is now.
        processor: with the model's tokenizer and image size.
        batch_size: images or texts of a forward pass. One by one (the default) the same input has the same features to
            the last bit; in batches they differ by rounding (1e-7), which a nearly full memory can multiply by its
            condition number. Batches pay on a GPU.
    """

    def __init__(self, model: BitGenModel, processor: BitGenProcessor, batch_size: int = 1) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.model, self.processor, self.batch_size = model.eval(), processor, batch_size
        self._reader = None if model.memory is None else model.memory.reader()
        self._tokenizing = threading.Lock()  # a fast tokenizer keeps its padding and truncation settings in one place

    @property
    def half(self) -> int:
        """D, the width of the features."""
        return self.model.config.embed_dim

    @torch.no_grad()
    def images(self, images: Sequence[MemoryImage] | Tensor) -> Tensor:
        """Image features ``[B, D]`` of files, encoded bytes, PIL images, or tensors: ``pixel_values [3, H, W]`` as the
        processor makes them, or for a model without a tower ``vision_features [P, C]``.

        Raises:
            ValueError: an image that cannot be read (named), or of a kind that this model does not take.
        """
        parts = []
        for first in range(0, len(images), self.batch_size):
            batch = self.inputs(images[first : first + self.batch_size], first)
            parts.append(self.model.encode_image(**batch).image_features.double())
        return torch.cat(parts)

    def inputs(self, images: Sequence[MemoryImage] | Tensor, first: int = 0) -> dict[str, Tensor]:
        """Images as :meth:`images` takes them to the input of ``encode_image``, on the model's device.

        Args:
            first: what messages number the first of them.

        Raises:
            ValueError: as for :meth:`images`.
        """
        name = "vision_features" if self.model.config.takes_features else "pixel_values"
        batch = torch.stack([self._tensor(image, first + position) for position, image in enumerate(images)])
        return {name: batch.to(self.model.device)}

    def _tensor(self, image: MemoryImage, position: int) -> Tensor:
        if isinstance(image, Tensor):
            return image.float()
        if self.model.config.takes_features:
            raise ValueError(f"this model {_NO_TOWER}")
        if isinstance(image, (str, Path)):
            try:
                content = read_regular_file(image)
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or error
                raise ValueError(f"image {printable(image)} cannot be read: {reason}") from error
            return self.processor.image(content, printable(image))
        if isinstance(image, (bytes, Image.Image)):
            return self.processor.image(image, f"image {position}")
        raise ValueError(f"image {position} is a {type(image).__name__}; give a file name, bytes, PIL image or tensor")

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Text features ``[B, D]``.

        Raises:
            ValueError: a text that is empty or no text; the message gives its position.
        """
        check_texts(texts)
        parts = []
        for first in range(0, len(texts), self.batch_size):
            ids, mask = self.tokens(texts[first : first + self.batch_size])
            parts.append(self.model.encode_text(ids, mask, self._reader).double())
        return torch.cat(parts)

    def tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """``input_ids`` and ``attention_mask [B, T]`` of texts, on the model's device.

        Raises:
            ValueError: as for :meth:`texts`.
        """
        check_texts(texts)
        with self._tokenizing:
            inputs = self.processor.texts(texts)
        return inputs["input_ids"].to(self.model.device), inputs["attention_mask"].to(self.model.device)

    @torch.no_grad()
    def probe(self) -> Tensor:
        """The code ``[2 D]`` of a fixed image and a fixed text, by which a memory knows the model that made it."""
        config = self.model.config
        shape: tuple[int, ...]
        if config.takes_features:
            shape, name = (1, config.image_tokens, config.vision_feature_dim), "vision_features"
        else:
            shape, name = (1, 3, config.image_size, config.image_size), "pixel_values"
        ramp = torch.linspace(0, 50, torch.Size(shape).numel()).sin().view(shape).to(self.model.device)
        image = self.model.encode_image(**{name: ramp}).image_features.double()
        return torch.cat([image[0], self.texts(["a red dog and two cats on a hill"])[0]])
