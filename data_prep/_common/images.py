"""Image files: finding them, checking that they decode, refusing image bombs, making them smaller."""

from __future__ import annotations

import io
import os
import warnings
from functools import partial
from pathlib import Path

from PIL import Image

from _common.problems import Problems, Unusable
from _common.reading import need_folder
from _common.writing import Item
from bitgen.guards.names import BadName, Outside, inside

# `open_image` has a limit of its own and needs no second opinion on the terminal.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def open_image(payload: bytes, max_pixels: int) -> Image.Image:
    """Opens an image without decoding it; :class:`Unusable` for no image, or one of more than ``max_pixels``."""
    try:
        image = Image.open(io.BytesIO(payload))
    except Image.DecompressionBombError as error:
        raise Unusable("image of too many pixels", str(error)) from error
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error ... by format
        raise Unusable("undecodable image", f"{type(error).__name__}: {error}") from error
    if image.width * image.height > max_pixels:
        raise Unusable("image of too many pixels", f"{image.width} x {image.height}, over {max_pixels}")
    return image


def check_image(payload: bytes, max_pixels: int) -> None:
    """Raises :class:`Unusable` unless ``payload`` is a whole image of at most ``max_pixels``."""
    with open_image(payload, max_pixels) as image:
        try:
            # JPEG's reduced decoding still reads the whole file, so it finds truncation at a fraction of the cost.
            image.draft("RGB", (1, 1))
            image.load()
        except Exception as error:
            raise Unusable("undecodable image", f"{type(error).__name__}: {error}") from error


def read_image(path: Path, check: bool, max_pixels: int) -> bytes:
    """Returns the file's bytes; with ``check``, as :func:`check_image`."""
    payload = path.read_bytes()
    if check:
        check_image(payload, max_pixels)
    return payload


def shrink(payload: bytes, size: int, side: str, quality: int, max_pixels: int) -> bytes:
    """Re-encodes an image as an upright RGB JPEG whose ``side`` ("shorter" or "longer") is at most ``size`` pixels.

    A smaller image keeps its size. Raises :class:`Unusable` as :func:`check_image`.
    """
    from bitgen.model.image_decoding import to_rgb

    with open_image(payload, max_pixels) as image:
        # Twice the size leaves the antialiased resize enough to work on.
        image.draft("RGB", (2 * size, 2 * size))
        try:
            image = to_rgb(image)
        except Exception as error:  # as in open_image
            raise Unusable("undecodable image", f"{type(error).__name__}: {error}") from error
    measure = min(image.size) if side == "shorter" else max(image.size)
    if measure > size:
        width, height = (max(1, round(length * size / measure)) for length in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
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
