"""A sheet of images, each with the caption that a model wrote and one of a person: for a look before the figures."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from bitgen.data.dataset import PairDataset
from bitgen.guards.names import BadName, inside
from bitgen.guards.printable import printable
from bitgen.guards.regular_files import BadFile, read_regular_file
from bitgen.machine.files import write_whole
from bitgen.model.image_decoding import decode_image
from bitgen.model.processing_bitgen import MAX_IMAGE_PIXELS
from bitgen.show.drawing import (
    QUIET,
    canvas,
    draw_folded,
    draw_text,
    draw_tile,
    render,
    shorten,
    spread,
    to_picture,
)

logger = logging.getLogger(__name__)

PICTURES = 24
_COLUMNS, _TILE, _GAP, _TEXT, _HEAD = 4, 260, 22, 152, 44
_LETTERS = 34  # of a line as wide as a tile


class SheetPicture(NamedTuple):
    """An image of the sheet: its row in the dataset, its id, and its pixels `[H, W, 3]` (None: there are none)."""

    row: int
    image_id: str
    pixels: np.ndarray | None


def choose_pictures(
    dataset: PairDataset, images: str | Path | None = None, wanted: int = PICTURES
) -> list[SheetPicture]:
    """At most `wanted` images spread evenly over the dataset, as the model sees them; of features none are at hand.

    Args:
        images: a folder of the original image files, named by image id; then only images found there are chosen. An id
            that leads out of the folder is left out, and said.

    Raises:
        ValueError: the folder does not exist or holds none of the images, or an image cannot be read.
    """
    image_id = dataset.reader.image_id
    if images is None:
        rows = spread(dataset.image_count, wanted)
        seen = [(row, dataset.picture(row)) for row in rows]
        return [SheetPicture(row, image_id(row), None if one is None else to_picture(one)) for row, one in seen]
    folder = Path(images)
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no such folder")
    at_hand = _found(folder, dataset)
    if not at_hand:
        first = printable(folder / image_id(0))
        raise ValueError(f"{folder} holds none of the images: the first one would be {first}")
    chosen = []
    for position in spread(len(at_hand), wanted):
        row, path = at_hand[position]
        name = printable(folder / image_id(row))
        try:
            content = read_regular_file(path)
        except (OSError, BadFile) as error:
            raise ValueError(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}") from error
        decoded = decode_image(content, name, MAX_IMAGE_PIXELS, enough=(_TILE, _TILE))
        chosen.append(SheetPicture(row, Path(name).name, to_picture(decoded)))
    return chosen


def _found(folder: Path, dataset: PairDataset) -> list[tuple[int, Path]]:
    """Row and file of each image that the folder holds."""
    found, refused = [], []
    for row in range(dataset.image_count):
        try:
            path = inside(folder, dataset.reader.image_id(row))
        except BadName as error:
            refused.append(str(error))
            continue
        if path.is_file():
            found.append((row, path))
    if refused:
        logger.warning("%s: %d images are left out of the sheet, the first: %s", folder, len(refused), refused[0])
    return found


def draw_contact_sheet(
    pictures: Sequence[SheetPicture], captions: Sequence[str], references: Sequence[str], title: str
) -> Tensor:
    """uint8 `[3, H, W]`: four images a row, below each the caption, and in grey the reference.

    Args:
        captions, references: one for each picture.
    """
    rows = -(-len(pictures) // _COLUMNS)
    width = _COLUMNS * (_TILE + _GAP) + _GAP
    figure, axes = canvas(width, _HEAD + rows * (_TILE + _TEXT) + _GAP // 2)
    draw_text(axes, _GAP, 27, shorten(title, 150), QUIET)
    for number, (picture, caption, reference) in enumerate(zip(pictures, captions, references, strict=True)):
        x = _GAP + number % _COLUMNS * (_TILE + _GAP)
        y = _HEAD + number // _COLUMNS * (_TILE + _TEXT)
        draw_tile(axes, x, y, _TILE, picture.pixels, picture.image_id)
        draw_folded(axes, x, y + _TILE + 8, printable(caption) or "(nothing)", _LETTERS, lines=3)
        draw_folded(axes, x, y + _TILE + 74, printable(reference), _LETTERS, lines=3, colour=QUIET)
    return render(figure)


def write_contact_sheet(
    path: str | Path, pictures: Sequence[SheetPicture], captions: Sequence[str], references: Sequence[str], title: str
) -> None:
    """Write the sheet of :func:`draw_contact_sheet` as a PNG. Atomic.

    Raises:
        ValueError: it cannot be written.
    """
    sheet = draw_contact_sheet(pictures, captions, references, title)
    content = io.BytesIO()
    Image.fromarray(sheet.permute(1, 2, 0).numpy()).save(content, "PNG", optimize=True)
    write_whole(path, content.getvalue())
