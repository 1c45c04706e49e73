"""Image files: finding them, checking that they decode, making them smaller.

What an image is says ``bitgen.model.image_decoding``, as for training. Importing it takes seconds, and so it is done
when the first image comes.
"""

from __future__ import annotations

import io
import os
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from _common.problems import Problems, Unusable
from _common.reading import need_folder
from _common.writing import Item
from bitgen.guards.names import BadName, Outside, inside
from bitgen.guards.regular_files import BadFile, read_regular_file

if TYPE_CHECKING:
    import torch

# ``decode`` has a limit of its own and needs no second opinion on the terminal.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def decode(payload: bytes, max_pixels: int, enough: int) -> torch.Tensor:
    """The image as training sees it, uint8 ``[3, H, W]``, at least ``enough`` pixels wide and high if it has them.

    Raises:
        Unusable: it is no image, damaged, or of more than ``max_pixels``.
    """
    from bitgen.model.image_decoding import TOO_LARGE, ImageError, decode_image

    try:
        return decode_image(payload, max_pixels=max_pixels, enough=(enough, enough))
    except ImageError as error:
        reason = "image of too many pixels" if error.reason == TOO_LARGE else "undecodable image"
        raise Unusable(reason, error.detail) from error


def check_image(payload: bytes, max_pixels: int) -> None:
    """Raises :class:`Unusable` unless ``payload`` is a whole image of at most ``max_pixels`` that training decodes."""
    # JPEG's reduced decoding still reads the whole file, so it finds truncation at a fraction of the cost.
    decode(payload, max_pixels, enough=1)


def read_image(path: Path, check: bool, max_pixels: int) -> bytes:
    """Returns the file's bytes; with ``check``, as :func:`check_image`. Raises :class:`Unusable` if it cannot."""
    try:
        payload = read_regular_file(path)
    except (OSError, BadFile) as error:
        raise Unusable("unreadable file", str(getattr(error, "strerror", None) or error)) from error
    if check:
        check_image(payload, max_pixels)
    return payload


def shrink(payload: bytes, size: int, side: str, quality: int, max_pixels: int) -> bytes:
    """Re-encodes an image as an upright RGB JPEG whose ``side`` ("shorter" or "longer") is at most ``size`` pixels.

    A smaller image keeps its size. Raises :class:`Unusable` as :func:`check_image`.
    """
    image = Image.fromarray(decode(payload, max_pixels, enough=size).permute(1, 2, 0).numpy())
    measure = min(image.size) if side == "shorter" else max(image.size)
    if measure > size:
        width, height = (max(1, round(length * size / measure)) for length in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    try:
        image.save(buffer, "JPEG", quality=quality)
    except (OSError, ValueError) as error:  # a side of more than 65,500 pixels
        raise Unusable("image that cannot be stored as JPEG", "{} x {}".format(*image.size)) from error
    return buffer.getvalue()


def image_items(
    folders: list[Path], captions: dict[str, list[str]], check: bool, max_pixels: int, problems: Problems
) -> list[Item]:
    """Items for the files of ``captions``' names, each from the first folder that has it; missing ones are counted."""
    for folder in folders:
        need_folder(folder, "--images")
    items = []
    for name, texts in captions.items():
        try:
            path = next((path for folder in folders if os.path.isfile(path := inside(folder, name))), None)
        except Outside as error:
            problems.add("file name that leaves the image folder", str(error), lost=True)
            continue
        except BadName as error:
            problems.add("file name that cannot be used", str(error), lost=True)
            continue
        if path is None:
            problems.add("missing image", name, lost=True)
        else:
            items.append(Item(name, partial(read_image, path, check, max_pixels), texts))
    return items
