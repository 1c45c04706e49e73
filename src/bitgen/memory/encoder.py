"""Images and texts to the codes that a memory holds, by a trained model."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from bitgen import trained
from bitgen.guards.printable import printable
from bitgen.guards.regular_files import BadFile, read_regular_file
from bitgen.guards.texts import check_texts
from bitgen.model.image_decoding import ImageSource
from bitgen.model.modeling_bitgen import BitGenModel, ImageEncoding
from bitgen.model.processing_bitgen import BitGenProcessor

logger = logging.getLogger(__name__)

SHOWN = 40  # characters of a text in a message
PROBE_TEXT = "a red dog and two cats on a hill"

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


def check_lists(images: object, texts: object) -> None:
    """Raise ValueError for one image or one text in place of a list: a text would be read as a list of letters."""
    if isinstance(texts, str) or isinstance(images, (str, bytes, Path, Image.Image)):
        raise ValueError("images and texts are lists: write images=[image], texts=[text]")


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
        return torch.cat([seen.image_features.double() for seen in self._encoded(images)])

    @torch.no_grad()
    def looked_at(self, images: Sequence[MemoryImage] | Tensor) -> ImageEncoding:
        """Image features as :meth:`images` gives them, and the tokens that text is written from, ``[B, P', D]``.

        Raises:
            ValueError: as for :meth:`images`.
        """
        pool, kind = self.model.pool_image_tokens, self.model.dtype
        seen = [(pool(tokens).to(kind), features) for tokens, features in self._encoded(images)]
        tokens, features = (torch.cat(parts) for parts in zip(*seen, strict=True))
        return ImageEncoding(tokens, features.double())

    def _encoded(self, images: Sequence[MemoryImage] | Tensor) -> Iterator[ImageEncoding]:
        for first in range(0, len(images), self.batch_size):
            yield self.model.encode_image(**self.inputs(images[first : first + self.batch_size], first))

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
            return self._checked(image, position)
        if self.model.config.takes_features:
            raise ValueError(f"this model {_NO_TOWER}")
        if isinstance(image, (str, Path)):
            name = printable(image)
            try:
                content = read_regular_file(image)
            except (OSError, BadFile) as error:
                reason = error.strerror or error if isinstance(error, OSError) else error
                raise ValueError(f"image {name} cannot be read: {reason}") from error
            return self.processor.image(content, name)
        if isinstance(image, (bytes, Image.Image)):
            return self.processor.image(image, f"image {position}")
        raise ValueError(f"image {position} is a {type(image).__name__}; give a file name, bytes, PIL image or tensor")

    def _checked(self, image: Tensor, position: int) -> Tensor:
        """A tensor that is shaped as the model takes it."""
        config = self.model.config
        size = None if config.takes_features else config.image_size
        wanted = "vision_features [P, C]" if size is None else f"pixel_values [3, {size}, {size}]"
        fits = image.dim() == 2 if size is None else image.shape == (3, size, size)
        if not fits:
            raise ValueError(f"image {position} is a tensor of shape {list(image.shape)}; this model takes {wanted}")
        return image.float()

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Text features ``[B, D]``. A warning says what of them is longer than the model reads.

        Raises:
            ValueError: a text that is empty, too long or no text; the message gives its position.
        """
        return self._features(self._sequences(texts))

    def _features(self, sequences: list[list[int]]) -> Tensor:
        parts = []
        for first in range(0, len(sequences), self.batch_size):
            ids, mask = self._padded(sequences[first : first + self.batch_size])
            parts.append(self.model.encode_text(ids, mask, self._reader).double())
        return torch.cat(parts)

    def tokens(
        self, texts: Sequence[str], say: bool = True, written: Callable[[str], str] = str
    ) -> tuple[Tensor, Tensor]:
        """``input_ids`` and ``attention_mask [B, T]`` of texts, on the model's device.

        Args:
            say: warn as :meth:`texts` does.
            written: how each of them is written before it is encoded.

        Raises:
            ValueError: as for :meth:`texts`.
        """
        return self._padded(self._sequences(texts, say, written))

    def _sequences(
        self, texts: Sequence[str], say: bool = True, written: Callable[[str], str] = str
    ) -> list[list[int]]:
        """``BOS ... EOS`` of each text, cut to what the model reads, which a warning says."""
        check_texts(texts)
        longest, whole = self.processor.max_length, self.whole_sequences(list(map(written, texts)))
        cut = [position for position, ids in enumerate(whole) if len(ids) > longest]
        if cut and say:
            self._say_cut(texts, whole, cut)
        return [ids if len(ids) <= longest else [*ids[: longest - 1], ids[-1]] for ids in whole]

    def whole_sequences(self, texts: Sequence[str]) -> list[list[int]]:
        """``BOS ... EOS`` of each text, however long it is."""
        with self._tokenizing:
            return self.processor.encode(texts, max_length=sys.maxsize)

    def _say_cut(self, texts: Sequence[str], whole: list[list[int]], cut: list[int]) -> None:
        first, read = cut[0], self.processor.max_length - 2
        tokenizer = self.processor.tokenizer
        assert tokenizer is not None
        count = "" if len(cut) == 1 else f"{len(cut):,} of {len(texts):,} texts are longer than the model reads: "
        logger.warning(
            "%sthe text '%s' is cut: it has %d tokens and the model reads %d, as far as '...%s'. What follows changes "
            "nothing: shorten it, or begin with what matters.",
            count,
            printable(texts[first], SHOWN),
            len(whole[first]) - 2,
            read,
            printable(tokenizer.decode(whole[first][1 : read + 1])[-SHOWN:]),
        )

    def _padded(self, sequences: list[list[int]]) -> tuple[Tensor, Tensor]:
        inputs = self.processor.pad([torch.tensor(ids) for ids in sequences])
        return inputs["input_ids"].to(self.model.device), inputs["attention_mask"].to(self.model.device)

    @torch.no_grad()
    def probe(self) -> Tensor:
        """The code ``[2 D]`` of a fixed image and a fixed text, by which a memory knows the model that made it."""
        image = self.images(self.probe_images())
        text = self._features(self._sequences([PROBE_TEXT], say=False))
        return torch.cat([image[0], text[0]])

    def probe_images(self) -> Tensor:
        """The fixed image of a probe, one, as the model takes images: ``[1, 3, H, W]`` or ``[1, P, C]``."""
        config = self.model.config
        shape: tuple[int, ...] = (1, 3, config.image_size, config.image_size)
        if config.takes_features:
            shape = (1, config.image_tokens, config.vision_feature_dim)
        return torch.linspace(0, 50, torch.Size(shape).numel()).sin().view(shape)
