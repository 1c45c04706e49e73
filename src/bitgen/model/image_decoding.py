"""Images of any kind to upright 8-bit RGB tensors, by the fastest path that is correct.

JPEGs go through TorchCodec, which decodes straight into a tensor; one that is at least four times larger than needed
in both directions is decoded at a half, quarter or eighth of its size by Pillow instead, still twice as large as
needed, so that the antialiased resize after it has the last word. Everything else is Pillow's.
``benchmarks/data_loading.py`` measures the paths.
"""

from __future__ import annotations

import io
import math
from typing import cast

import numpy as np
import torch
from PIL import Image, ImageOps

try:
    from torchcodec.decoders import decode_jpeg
except (ImportError, OSError, RuntimeError):  # an exported model's machine may lack it: Pillow is slower, and as good
    decode_jpeg = None  # type: ignore[assignment]  # the name of an optional function

ImageSource = Image.Image | bytes

# Raster formats only: Pillow would hand an EPS file to Ghostscript, a program that runs what the file says.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "TGA", "ICO")
_ORIENTATION = 0x0112
# Changes with every change of the pixels below: features computed earlier belong to one decoder.
DECODER = "Pillow" if decode_jpeg is None else "TorchCodec"

# A reduced JPEG stays this many times larger than what it is resized to.
_SPARE = 2

UNDECODABLE, TOO_LARGE = "image cannot be decoded", "image has too many pixels"


class ImageError(ValueError):
    """An image that cannot be used; ``reason`` is the same for all images with the same trouble."""

    def __init__(self, message: str, reason: str = UNDECODABLE) -> None:
        super().__init__(message)
        self.reason = reason


def decode_image(
    image: ImageSource,
    name: str = "image",
    max_pixels: int | None = None,
    enough: tuple[float, float] | None = None,
) -> torch.Tensor:
    """Decodes an image to uint8 ``[3, H, W]``, upright by EXIF; transparency is laid on white, 16 bits scaled to 8.

    Args:
        image: a Pillow image or an encoded file.
        name: what messages call it.
        max_pixels: a file that declares more is refused before a pixel is decoded; None leaves Pillow's own limit.
        enough: (width, height) that the caller needs; a much larger JPEG may come back smaller, but never below twice
            this. None: its full size.

    Raises ``ImageError`` for a truncated or damaged file, no image, too many pixels, or floating-point pixels (which
    have no defined range).
    """
    try:
        if not isinstance(image, bytes):
            return _to_tensor(to_rgb(image))
        opened = Image.open(io.BytesIO(image), formats=_FORMATS)  # reads the header alone
        _check_size(opened, name, max_pixels)
        plain_jpeg = opened.format in ("JPEG", "MPO") and opened.mode in ("RGB", "L")
        reduced = plain_jpeg and enough is not None and _reduce(opened, enough)
        if plain_jpeg and not reduced and decode_jpeg is not None:
            return cast(torch.Tensor, decode_jpeg(image))  # upright by EXIF; a tensor, for it is one image
        return _to_tensor(to_rgb(opened))
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name} is refused: {error}", TOO_LARGE) from error
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error ... by format
        detail = str(error).rsplit(", ", 1)[-1] if isinstance(error, RuntimeError) else error
        raise ImageError(
            f"{name} cannot be read as an image ({type(error).__name__}: {detail}): replace it with a whole file, "
            "or leave it out",
        ) from error


def _check_size(image: Image.Image, name: str, max_pixels: int | None) -> None:
    width, height = image.size
    if max_pixels is not None and width * height > max_pixels:
        raise ImageError(
            f"{name} has {width} x {height} = {width * height:,} pixels, more than max_image_pixels {max_pixels:,}: "
            "shrink or remove it, or raise --max_image_pixels",
            TOO_LARGE,
        )


def _reduce(image: Image.Image, enough: tuple[float, float]) -> bool:
    """Has a JPEG decoded at a fraction of its size where that is large enough; whether it will be."""
    width, height = enough if image.getexif().get(_ORIENTATION, 1) < 5 else enough[::-1]
    wanted = (math.ceil(_SPARE * width), math.ceil(_SPARE * height))
    before = image.size
    if before[0] < 2 * wanted[0] or before[1] < 2 * wanted[1]:
        return False
    image.draft(image.mode, wanted)
    return image.size != before


def _to_tensor(rgb: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1)  # (H, W, 3) -> (3, H, W)


def to_rgb(image: Image.Image) -> Image.Image:
    """A Pillow image upright by EXIF and in 8-bit RGB, transparency laid on white; raises whatever Pillow does."""
    image = ImageOps.exif_transpose(image)
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
