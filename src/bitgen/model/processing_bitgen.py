"""BitGenProcessor: the one place where images and text become tensors, in training, evaluation and inference alike."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers import PreTrainedTokenizerBase

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

ImageSource = Image.Image | bytes


class View(NamedTuple):
    """How to look at an image: through ``box``, fractions (left, top, right, bottom) of it, mirrored or not."""

    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    mirror: bool = False


WHOLE = View()


class BitGenProcessor:
    """Turns PIL images or encoded bytes, and captions, into model inputs.

    Images: upright by EXIF, RGB, resized with antialiasing straight to ``image_size`` x ``image_size`` (the whole
    image, no crop), scaled to [0, 1] and normalised once. Text: ``BOS tokens EOS``, right-padded; a longer caption
    loses its last tokens but never the EOS, at which ``encode_text`` reads.

    Args:
        tokenizer: with BOS, EOS and pad tokens; None where only images are needed.
        image_size: side of the square in pixels, as the vision encoder declares it.
        max_length: longest token sequence, BOS and EOS included.
        image_mean, image_std: of the data that the vision encoder was trained on, for values in [0, 1].

    ``truncated`` counts the captions shortened so far.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        image_size: int = 224,
        max_length: int = 256,
        image_mean: Sequence[float] = IMAGENET_MEAN,
        image_std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        if image_size < 1:
            raise ValueError(f"image_size is {image_size}; it must be positive")
        if max_length < 3:
            raise ValueError(f"max_length is {max_length}; BOS, one token and EOS need at least 3")
        for role in ("bos", "eos", "pad") if tokenizer is not None else ():
            if getattr(tokenizer, f"{role}_token_id") is None:
                raise ValueError(f"the tokenizer has no {role} token; set tokenizer.{role}_token")
        self.tokenizer = tokenizer
        self.image_size, self.max_length = image_size, max_length
        self.image_mean, self.image_std = tuple(image_mean), tuple(image_std)
        self.truncated = 0

    def __call__(
        self,
        images: ImageSource | Sequence[ImageSource] | None = None,
        text: str | Sequence[str] | None = None,
        max_length: int | None = None,
    ) -> dict[str, torch.Tensor]:
        """Model inputs for images, text or both (one or many): the tensors of :meth:`images` and :meth:`texts`."""
        if images is None and text is None:
            raise ValueError("nothing to process: pass images, text or both")
        inputs: dict[str, torch.Tensor] = {}
        if images is not None:
            inputs["pixel_values"] = self.images([images] if isinstance(images, (Image.Image, bytes)) else images)
        if text is not None:
            inputs.update(self.texts([text] if isinstance(text, str) else text, max_length))
        return inputs

    @property
    def image_fingerprint(self) -> str:
        """All that decides how an image becomes a tensor, for stored features: change it with :meth:`image`."""
        return f"upright RGB, whole, bicubic, {self.image_size}, mean {self.image_mean}, std {self.image_std}"

    # ---------------------------------------------------------------- images

    def images(
        self, images: Sequence[ImageSource], names: Sequence[str] | None = None, views: Sequence[View] | None = None
    ) -> torch.Tensor:
        """Images to ``pixel_values``, float32 ``[B, 3, image_size, image_size]``.

        Raises ``ValueError`` naming the image (by ``names`` or its position) that is truncated, no image, or of a kind
        without a defined range.
        """
        if not images:
            raise ValueError("no images to process")
        tensors = []
        for position, image in enumerate(images):
            name = names[position] if names is not None else f"image {position}"
            tensors.append(self.image(image, name, views[position] if views is not None else WHOLE))
        return torch.stack(tensors)

    def image(self, image: ImageSource, name: str = "image", view: View = WHOLE) -> torch.Tensor:
        """One image to float32 ``[3, image_size, image_size]``; errors as in :meth:`images`."""
        rgb = to_rgb(image, name)
        width, height = rgb.size
        left, top, right, bottom = view.box
        size = (self.image_size, self.image_size)
        # Pillow widens its filter by the scale when it shrinks, which is what antialiasing means.
        box = (left * width, top * height, right * width, bottom * height)
        rgb = rgb.resize(size, Image.Resampling.BICUBIC, box=box)
        if view.mirror:
            rgb = ImageOps.mirror(rgb)
        pixels = np.asarray(rgb, dtype=np.float32) / np.float32(255)
        pixels = (pixels - np.float32(self.image_mean)) / np.float32(self.image_std)
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))  # (H, W, 3) -> (3, H, W)

    # ---------------------------------------------------------------- text

    def encode(self, texts: Sequence[str], max_length: int | None = None) -> list[list[int]]:
        """Captions to lists of ids ``BOS ... EOS`` of at most ``max_length``; those cut are counted in ``truncated``.

        Text that spells a special token is text: a caption must not be able to end its own sequence.
        """
        assert self.tokenizer is not None, "this processor was built without a tokenizer"
        longest = self.max_length if max_length is None else max_length
        if longest < 3:
            raise ValueError(f"max_length is {longest}; BOS, one token and EOS need at least 3")
        if not texts:
            return []
        encoded = self.tokenizer(
            list(texts), add_special_tokens=False, split_special_tokens=True, return_attention_mask=False, verbose=False
        )
        sequences = []
        for ids in encoded["input_ids"]:
            self.truncated += len(ids) > longest - 2
            sequences.append([self.tokenizer.bos_token_id, *ids[: longest - 2], self.tokenizer.eos_token_id])
        return sequences

    def texts(self, texts: Sequence[str], max_length: int | None = None) -> dict[str, torch.Tensor]:
        """Captions to ``input_ids`` and ``attention_mask``, int64 ``[B, T]``, padded right to the longest of them."""
        if not texts:
            raise ValueError("no texts to process")
        sequences = [torch.tensor(ids) for ids in self.encode(texts, max_length)]
        return self.pad(sequences)

    def pad(self, sequences: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Token sequences ``[T_i]`` to ``input_ids`` and ``attention_mask``, int64 ``[B, T]``, padded right."""
        assert self.tokenizer is not None, "this processor was built without a tokenizer"
        return pad_tokens(sequences, self.tokenizer.pad_token_id)


def pad_tokens(sequences: Sequence[torch.Tensor], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Token sequences ``[T_i]`` to ``input_ids`` and ``attention_mask``, int64 ``[B, T]``, padded right.

    The mask comes from the lengths: with GPT-2's tokenizer pad and EOS are the same id.
    """
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    longest = int(lengths.max())
    input_ids = torch.full((len(sequences), longest), pad_token_id, dtype=torch.int64)
    for row, sequence in enumerate(sequences):
        input_ids[row, : len(sequence)] = sequence
    attention_mask = (torch.arange(longest) < lengths[:, None]).long()
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def to_rgb(image: ImageSource, name: str = "image") -> Image.Image:
    """Decodes and converts any image to upright 8-bit RGB; transparency is laid on white, 16-bit values scaled to 8.

    Raises ``ValueError`` naming the image when it is truncated, no image, or holds floats (which have no defined
    range).
    """
    try:
        if isinstance(image, bytes):
            image = Image.open(io.BytesIO(image))
        return _convert(ImageOps.exif_transpose(image))
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error ... by format
        raise ValueError(
            f"{name} cannot be read as an image ({type(error).__name__}: {error}): replace it with a whole file, "
            "or leave it out"
        ) from error


def _convert(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # 16-bit grey: Pillow's own conversion clips at 255 and would turn nearly every pixel white.
        values = np.asarray(image).astype(np.float64)
        image = Image.fromarray(np.round(values.clip(0, 65535) / 257).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point pixels have no defined range; save it with 8 or 16 bits")
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")
