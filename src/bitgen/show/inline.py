"""Pictures for notebooks and programs, as PIL images: a cell that ends with one shows it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image
from torch import Tensor

from bitgen.show.drawing import RIGHT, canvas, draw_folded, draw_tile, fold, render

_GAP, _LINE, _LETTER = 12, 21, 8.0  # pixels; of a line of text its height, of a letter its width


def as_image(picture: Tensor) -> Image.Image:
    """A picture uint8 ``[3, H, W]``, as this package draws them, as a PIL image."""
    return Image.fromarray(picture.permute(1, 2, 0).cpu().numpy())


def side_by_side(
    images: Sequence[Image.Image],
    names: Sequence[str],
    framed: Sequence[bool] | None = None,
    size: int = 130,
    lines: int = 4,
) -> Image.Image:
    """Images in a row, each with its name below.

    Args:
        framed: which of them get a green frame; None: none does.
        size: pixels of a side of each.
        lines: of a name, at most; it is cut after them.

    Raises:
        ValueError: no images, or another number of names or frames.
    """
    framed = [False] * len(images) if framed is None else framed
    if not len(images) or not len(images) == len(names) == len(framed):
        raise ValueError(
            f"{len(images)} images, {len(names)} names and {len(framed)} frames: pass one of each an image"
        )
    width = int(size / _LETTER)
    deepest = max(len(fold(name, width, lines).splitlines()) for name in names)
    figure, axes = canvas(_GAP + len(images) * (size + _GAP), 3 * _GAP + size + deepest * _LINE)
    for place, (image, name, frame) in enumerate(zip(images, names, framed, strict=True)):
        x = _GAP + place * (size + _GAP)
        draw_tile(axes, x, _GAP, size, np.asarray(image.convert("RGB")), "", RIGHT if frame else None)
        draw_folded(axes, x, 2 * _GAP + size, name, width, lines)
    return as_image(render(figure))
