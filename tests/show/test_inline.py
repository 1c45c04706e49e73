"""Pictures for notebooks: every image is there, the right one is framed, and mistakes are named."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

from bitgen.show.drawing import RIGHT
from bitgen.show.inline import as_image, side_by_side

COLOURS = ((250, 10, 20), (10, 20, 250), (120, 70, 30))


def share(picture: Image.Image, colour: tuple[int, ...]) -> np.ndarray:
    """Of each column, how many pixels have a colour."""
    return (np.asarray(picture) == colour).all(axis=2).sum(axis=0)


@pytest.fixture
def images() -> list[Image.Image]:
    return [Image.new("RGB", (40, 40), COLOURS[0]), Image.new("RGBA", (30, 30), COLOURS[1]), Image.new("L", (9, 9), 70)]


def test_images_stand_in_their_order_at_one_size(images) -> None:
    picture = side_by_side(images, ["a", "b", "a long name of the third"], size=60)
    columns = [np.flatnonzero(share(picture, colour) > 50) for colour in (*COLOURS[:2], (70, 70, 70))]
    assert all(58 <= len(found) <= 60 for found in columns)
    assert columns[0][-1] < columns[1][0] and columns[1][-1] < columns[2][0]
    assert not share(picture, ImageColor.getrgb(RIGHT)).any()


def test_the_framed_one_alone_has_a_frame(images) -> None:
    framed = side_by_side(images, ["a", "b", "c"], [False, True, False], size=60)
    green = np.flatnonzero(share(framed, ImageColor.getrgb(RIGHT)) > 50)
    blue = np.flatnonzero(share(framed, COLOURS[1]) > 30)
    assert len(green) and green[0] <= blue[0] and green[-1] >= blue[-1] and green[-1] - green[0] < 66


def test_names_are_below(images) -> None:
    with_name, without = (side_by_side(images, [name, "", ""]) for name in ("a name", "b name"))
    changed = np.argwhere((np.asarray(with_name) != np.asarray(without)).any(axis=2))
    assert len(changed) and changed[:, 0].min() > 12 + 130


@pytest.mark.parametrize("wrong", [([], []), ([0], ["a", "b"]), ([0], ["a"], [True, False])])
def test_counts_that_differ_are_named(images, wrong) -> None:
    with pytest.raises(ValueError, match="pass one of each an image"):
        side_by_side([images[0]] * len(wrong[0]), *wrong[1:])


def test_a_picture_becomes_an_image() -> None:
    picture = torch.arange(3 * 4 * 5, dtype=torch.uint8).view(3, 4, 5)
    image = as_image(picture)
    assert image.size == (5, 4) and image.getpixel((2, 1)) == tuple(picture[:, 1, 2].tolist())
