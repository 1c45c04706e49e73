"""Images of any kind to upright 8-bit RGB tensors, by the fastest path that is correct.

This is the one place that decides what an image is, for preparation, training, captions and memory alike. JPEGs go
through TorchCodec, which decodes straight into a tensor; one that is at least four times larger than needed in both
directions is decoded at a half, quarter or eighth of its size by Pillow instead, still twice as large as needed, so
that the antialiased resize after it has the last word. Everything else is Pillow's. Whoever decodes, the pixels are
turned here, by one reading of the metadata. ``benchmarks/data_loading.py`` measures the paths.
"""

from __future__ import annotations

import io
import math
import struct
import warnings
from collections.abc import Iterator
from typing import cast

import numpy as np
import torch
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

try:
    from torchcodec.decoders import decode_jpeg
except (ImportError, OSError, RuntimeError):  # an exported model's machine may lack it: Pillow is slower, and as good
    decode_jpeg = None  # type: ignore[assignment]  # the name of an optional function

ImageSource = Image.Image | bytes

# Raster formats only: Pillow would hand an EPS file to Ghostscript, a program that runs what the file says.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "TGA", "ICO")
_ORIENTATION, _TILE_WIDTH, _TILE_HEIGHT = 0x0112, 0x0142, 0x0143  # tags of TIFF and EXIF
# Changes with every change of the pixels below: features computed earlier belong to one decoder.
DECODER = "Pillow" if decode_jpeg is None else "TorchCodec, turned as Pillow reads EXIF"

# Damaged metadata: Pillow warns, naming no file, and the picture is there all the same. By messages and for good, for
# filters that are set and reset around each image are those of all threads, and would repeat every other warning.
_OF_METADATA = (
    "(Possibly corrupt|Corrupt) EXIF data|Truncated File Read|Metadata Warning, tag|Tag offset too large"
    "|Tag data larger|Invalid APNG|Image appears to be a malformed MPO"
    "|Image was not the expected size|id_section has been trimmed"
)
warnings.filterwarnings("ignore", message=_OF_METADATA, category=UserWarning, module=r"PIL\.")

# A reduced JPEG stays this many times larger than what it is resized to.
_SPARE = 2

_ICON, _MOST_PICTURES_OF_ICON = b"\0\0\1\0", 100

UNDECODABLE, TOO_LARGE = "image cannot be decoded", "image has too many pixels"


class ImageError(ValueError):
    """An image that cannot be used.

    ``reason`` is the same for all images with the same trouble; ``detail`` says what is wrong with this one, without
    its name and the remedy, which the message has too.
    """

    def __init__(self, message: str, reason: str = UNDECODABLE, detail: str = "") -> None:
        super().__init__(message)
        self.reason, self.detail = reason, detail


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

    Raises ``ImageError`` for a truncated or damaged file, a format that is not read, too many pixels, or floating-point
    pixels (which have no defined range).
    """
    if not isinstance(image, (bytes, Image.Image)):
        kind = type(image).__name__
        raise ImageError(f"{name} is a {kind}, not an image: open it with PIL.Image first", UNDECODABLE, kind)
    try:
        if not isinstance(image, bytes):
            return _by_pillow(image)
        opened = _open(image, name, max_pixels)
        if opened.format in ("JPEG", "MPO") and opened.mode in ("RGB", "L"):
            orientation = _orientation(opened)
            reduced = enough is not None and _reduce(opened, enough, orientation)
            pixels = None if reduced else _by_torchcodec(image)
            if pixels is not None:
                return _turned(pixels, orientation)
        return _by_pillow(opened)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name} is refused: {error}", TOO_LARGE, str(error)) from error
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error ... by format
        what = f"it is none of {', '.join(_FORMATS)}" if isinstance(error, UnidentifiedImageError) else error
        detail = f"{type(error).__name__}: {what}"
        raise ImageError(
            f"{name} cannot be read as an image ({detail}): replace it with a whole file, or leave it out",
            UNDECODABLE,
            detail,
        ) from error


# ---------------------------------------------------------------- before decoding


def _open(image: bytes, name: str, max_pixels: int | None) -> Image.Image:
    """An image of which only the header was read. Raises ``ImageError`` for too many pixels, else as Pillow does."""
    if image.startswith(_ICON):  # Pillow decodes a picture of an icon while it opens it
        for picture in _pictures_of_icon(image):
            _check_size(picture.size, name, max_pixels)
    opened = Image.open(io.BytesIO(image), formats=_FORMATS)
    _check_size(opened.size, name, max_pixels)
    if isinstance(opened, TiffImagePlugin.TiffImageFile) and _TILE_WIDTH in opened.tag_v2:
        # Each tile is decoded whole, however little of it is in the image.
        tile = (int(opened.tag_v2[_TILE_WIDTH]), int(opened.tag_v2[_TILE_HEIGHT]))
        _check_size(tile, f"{name}, a tile of it,", max_pixels)
    return opened


def _pictures_of_icon(icon: bytes) -> Iterator[Image.Image]:
    """The pictures of an ICO file, opened only."""
    (count,) = struct.unpack_from("<H", icon, 4)
    offsets = {struct.unpack_from("<I", icon, 6 + 16 * number + 12)[0] for number in range(count)}
    if len(offsets) > _MOST_PICTURES_OF_ICON:
        raise ValueError(f"it is an icon of {len(offsets)} pictures, more than {_MOST_PICTURES_OF_ICON}")
    for offset in offsets:
        try:
            yield Image.open(io.BytesIO(icon[offset:]), formats=("PNG", "DIB"))
        except UnidentifiedImageError:  # if it is the one that counts, Pillow says so
            continue


def _check_size(size: tuple[int, int], name: str, max_pixels: int | None) -> None:
    width, height = size
    if max_pixels is not None and width * height > max_pixels:
        raise ImageError(
            f"{name} has {width} x {height} = {width * height:,} pixels, more than max_image_pixels {max_pixels:,}: "
            "shrink or remove it (training and data preparation also take a larger --max_image_pixels)",
            TOO_LARGE,
            f"{width} x {height}, over {max_pixels}",
        )


def _reduce(image: Image.Image, enough: tuple[float, float], orientation: int) -> bool:
    """Has a JPEG decoded at a fraction of its size where that is large enough; whether it will be."""
    width, height = enough if orientation < 5 else enough[::-1]
    wanted = (math.ceil(_SPARE * width), math.ceil(_SPARE * height))
    before = image.size
    if before[0] < 2 * wanted[0] or before[1] < 2 * wanted[1]:
        return False
    image.draft(image.mode, wanted)
    return image.size != before


# ---------------------------------------------------------------- upright


def _orientation(image: Image.Image) -> int:
    """How EXIF (or XMP) says that the stored pixels are turned, 1 (upright) to 8; what is no such number says nothing.

    Pillow's reading counts, whoever decodes: TorchCodec looks into the first APP1 segment alone.
    """
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # metadata is as often damaged as pixels are, and the picture is there all the same
        return 1
    return next((number for number in range(1, 9) if found == number), 1)


def _turned(pixels: torch.Tensor, orientation: int) -> torch.Tensor:
    """Stored pixels ``[3, H, W]`` as they are to be seen."""
    axes = {2: (2,), 3: (1, 2), 4: (1,), 6: (1,), 7: (1, 2), 8: (2,)}.get(orientation)
    if axes is not None:
        pixels = pixels.flip(axes)
    return pixels if orientation < 5 else pixels.transpose(1, 2)


# ---------------------------------------------------------------- decoding


def _by_torchcodec(jpeg: bytes) -> torch.Tensor | None:
    """The stored pixels of a JPEG, uint8 ``[3, H, W]``; None where it is Pillow's turn, who says what is damaged."""
    plain = _without_metadata(jpeg)
    if decode_jpeg is None or plain is None:
        return None
    try:
        return cast(torch.Tensor, decode_jpeg(plain))  # a tensor, for it is one image
    except RuntimeError:
        return None


def _without_metadata(jpeg: bytes) -> bytes | None:
    """A JPEG without the APP1 segments (EXIF, XMP) by which a decoder would turn it; None: of an unusual layout."""
    kept: list[bytes] = []
    start, position = 0, 2
    while position + 4 <= len(jpeg):
        marker, length = struct.unpack_from(">HH", jpeg, position)
        if marker == 0xFFDA:  # the pixels begin
            return b"".join([*kept, jpeg[start:]]) if kept else jpeg
        if not 0xFFC0 <= marker <= 0xFFFE or 0xFFD0 <= marker <= 0xFFD9 or length < 2:
            return None
        if marker == 0xFFE1:
            kept.append(jpeg[start:position])
            start = position + 2 + length
        position += 2 + length
    return None


def _by_pillow(image: Image.Image) -> torch.Tensor:
    """The pixels of an opened image as they are to be seen, uint8 ``[3, H, W]``; raises whatever Pillow does."""
    image.load()  # some formats have metadata after the pixels, and TIFF turns itself
    pixels = torch.from_numpy(np.array(_to_rgb(image))).permute(2, 0, 1)  # (H, W, 3) -> (3, H, W)
    return _turned(pixels, _orientation(image))


def _is_16_bit(image: Image.Image) -> bool:
    """Whether an image of whole numbers has 16 bits without a sign. Pillow's mode does not tell of
    all formats, and an image that some program made says nothing."""
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        return tuple(tags.get(258, (1,))) == (16,) and tuple(tags.get(339, (1,))) == (1,)  # bits, and 1: no sign
    return image.mode.startswith("I;16") or image.format in (None, "PNG", "PPM")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # 16-bit grey: Pillow's own conversion clips at 255 and would turn nearly every pixel white.
        if not _is_16_bit(image):
            raise ValueError("whole numbers but of 16 bits without a sign have no defined range; save it with 16 bits")
        values, clear = np.asarray(image).astype(np.float64), image.info.get("transparency")
        if isinstance(clear, int):  # the value that means transparent, on white
            values = np.where(values == clear, 65535, values)
        image = Image.fromarray(np.round(values.clip(0, 65535) / 257).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point pixels have no defined range; save it with 8 or 16 bits")
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")
