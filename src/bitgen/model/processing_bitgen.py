"""BitGenProcessor: the one place where images and text become tensors, in training, evaluation and inference alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from PIL import Image
from torchvision.transforms import v2
from transformers import PreTrainedTokenizerBase

from .image_decoding import DECODER, ImageSource, decode_image
from .image_settings import CROP, IMAGENET_MEAN, IMAGENET_STD, PAD, SQUASH, check_image_settings
from .token_ids import pad_tokens, text_ids

# 150 MB as RGB. A camera's 24 million pass; a file that unpacks to gigabytes does not.
MAX_IMAGE_PIXELS = 50_000_000
_MARGIN = 8  # pixels on which a resized image's edge may depend


class View(NamedTuple):
    """How to look at an image: through ``box``, fractions (left, top, right, bottom) of it, mirrored or not."""

    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    mirror: bool = False


WHOLE = View()


class BitGenProcessor:
    """Turns PIL images or encoded bytes, and captions, into model inputs.

    Images: upright by EXIF, RGB, resized with antialiasing to ``image_size`` x ``image_size`` (the whole image, unless
    ``image_fit`` says otherwise), scaled to [0, 1] and normalised once. Text: ``BOS tokens EOS``,
    right-padded; a longer caption loses its last tokens but never the EOS, at which ``encode_text`` reads.

    Args:
        tokenizer: with BOS, EOS and pad tokens; None where only images are needed.
        image_size: side of the square in pixels, as the vision encoder declares it.
        max_length: longest token sequence, BOS and EOS included.
        image_mean, image_std: of the data that the vision encoder was trained on, for values in [0, 1].
        image_resample, image_fit, image_shortest: see :class:`~.image_settings.ImageSettings`.
        max_image_pixels: an encoded image that declares more is refused before it is decoded.

    ``truncated`` counts the captions shortened so far.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        image_size: int = 224,
        max_length: int = 256,
        image_mean: Sequence[float] = IMAGENET_MEAN,
        image_std: Sequence[float] = IMAGENET_STD,
        max_image_pixels: int = MAX_IMAGE_PIXELS,
        image_resample: str = "bicubic",
        image_fit: str = SQUASH,
        image_shortest: int | None = None,
    ) -> None:
        if image_size < 1:
            raise ValueError(f"image_size is {image_size}; it must be positive")
        if max_length < 3:
            raise ValueError(f"max_length is {max_length}; BOS, one token and EOS need at least 3")
        check_image_settings(image_mean, image_std, image_resample, image_fit, image_shortest)
        for role in ("bos", "eos", "pad") if tokenizer is not None else ():
            if getattr(tokenizer, f"{role}_token_id") is None:
                raise ValueError(f"the tokenizer has no {role} token; set tokenizer.{role}_token")
        self.tokenizer = tokenizer
        self.image_size, self.max_length = image_size, max_length
        self.image_mean, self.image_std = tuple(image_mean), tuple(image_std)
        self.image_resample, self.image_fit = image_resample, image_fit
        self.image_shortest = image_shortest or image_size
        self.max_image_pixels = max_image_pixels
        self.truncated = 0
        # (x / 255 - mean) / std as x * scale + offset, each [3, 1, 1].
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.image_mean, self.image_std))
        self._normalisation = (1 / (255 * std), -mean / std)

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
        """All that decides how an image becomes a tensor, for stored features: change it with :meth:`image`.

        Which images are refused belongs to it, for their features are missing.
        """
        most = "" if self.max_image_pixels == MAX_IMAGE_PIXELS else f", at most {self.max_image_pixels} pixels"
        shape = {SQUASH: "whole", CROP: f"middle of {self.image_shortest}", PAD: "padded"}[self.image_fit]
        return (
            f"upright RGB by {DECODER}, {shape}, {self.image_resample}, {self.image_size}, mean {self.image_mean}, "
            f"std {self.image_std}{most}"
        )

    # ---------------------------------------------------------------- images

    def images(
        self, images: Sequence[ImageSource], names: Sequence[str] | None = None, views: Sequence[View] | None = None
    ) -> torch.Tensor:
        """Images to ``pixel_values``, float32 ``[B, 3, image_size, image_size]``.

        Raises ``ImageError`` (a ``ValueError``) naming the image (by ``names`` or its position) that is truncated, no
        image, too large, or of a kind without a defined range.
        """
        if not images:
            raise ValueError("no images to process")
        tensors = []
        for position, image in enumerate(images):
            name = names[position] if names is not None else f"image {position}"
            tensors.append(self.image(image, name, views[position] if views is not None else WHOLE))
        return torch.stack(tensors)

    def picture(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """``pixel_values [3, H, W]`` as a picture again, uint8: what the model sees, for a person."""
        return as_picture(pixel_values, self.image_mean, self.image_std)

    def image(self, image: ImageSource, name: str = "image", view: View = WHOLE) -> torch.Tensor:
        """One image to float32 ``[3, image_size, image_size]``; errors as in :meth:`images`."""
        left, top, right, bottom = view.box
        side = self.image_shortest if self.image_fit == CROP else self.image_size
        enough = (side / (right - left), side / (bottom - top))
        pixels = decode_image(image, name, self.max_image_pixels, enough)
        if view.box != WHOLE.box:
            height, width = pixels.shape[1:]
            first, last = round(left * width), max(round(right * width), round(left * width) + 1)
            upper, lower = round(top * height), max(round(bottom * height), round(top * height) + 1)
            pixels = pixels[:, upper:lower, first:last]
        pixels = self._square(pixels)
        if view.mirror:
            pixels = v2.functional.horizontal_flip(pixels)
        # In place: normalising costs a tenth of an image's time as it is.
        scale, offset = self._normalisation
        return pixels.to(torch.float32, memory_format=torch.contiguous_format).mul_(scale).add_(offset)

    def _square(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 ``[3, H, W]`` to ``[3, image_size, image_size]``, as ``image_fit`` says."""
        size = [self.image_size, self.image_size]
        pixels = self._without_excess(pixels)
        if self.image_fit == CROP:
            size = [self.image_shortest]
        elif self.image_fit == PAD:
            height, width = pixels.shape[1:]
            spare = max(height, width)
            across, down = (spare - width) // 2, (spare - height) // 2
            square = torch.tensor(self.image_mean).mul(255).to(torch.uint8)[:, None, None].repeat(1, spare, spare)
            square[:, down : down + height, across : across + width] = pixels
            pixels = square
        interpolation = v2.InterpolationMode(self.image_resample)
        pixels = v2.functional.resize(pixels, size, interpolation, antialias=True)
        if self.image_fit == CROP:
            # What is smaller than the square is laid on black. An odd pixel is left at the far side.
            top, left = ((side - self.image_size) // 2 for side in pixels.shape[1:])
            pixels = v2.functional.crop(pixels, top, left, self.image_size, self.image_size)
        return pixels

    def _without_excess(self, pixels: torch.Tensor) -> torch.Tensor:
        """Of an image so thin that it would be filled up to more than ``max_image_pixels``, what will be seen of it."""
        shorter, longer = sorted(pixels.shape[1:])
        if self.image_fit == CROP and longer / shorter * self.image_shortest**2 > self.max_image_pixels:
            seen = min(longer, -(-shorter * self.image_size // self.image_shortest) + _MARGIN)
            return v2.functional.center_crop(pixels, [min(side, max(seen, shorter)) for side in pixels.shape[1:]])
        if self.image_fit == PAD and longer > 4 * shorter and longer**2 > self.max_image_pixels:
            size = [max(1, round(side * self.image_size / longer)) for side in pixels.shape[1:]]
            return v2.functional.resize(pixels, size, v2.InterpolationMode(self.image_resample), antialias=True)
        return pixels

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
        sequences = []
        for ids in text_ids(self.tokenizer, texts):
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


def as_picture(pixel_values: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Normalised pixels ``[3, H, W]`` as uint8."""
    offset, scale = (torch.tensor(values)[:, None, None] for values in (mean, std))
    return ((pixel_values.detach().float().cpu() * scale + offset).clamp(0, 1) * 255).round().to(torch.uint8)
