"""Random views of images for training."""

from __future__ import annotations

import re

import numpy as np

from bitgen.model.processing_bitgen import View

_SIDES = re.compile(r"\b(left|right)", re.IGNORECASE)


def random_view(random: np.random.Generator, caption: str) -> View:
    """A crop of 60 to 100% of the area, mirrored half of the time unless ``caption`` speaks of left or right."""
    area, ratio = random.uniform(0.6, 1.0), np.exp(random.uniform(-np.log(4 / 3), np.log(4 / 3)))
    width, height = min(np.sqrt(area * ratio), 1.0), min(np.sqrt(area / ratio), 1.0)
    left, top = random.uniform(0, 1 - width), random.uniform(0, 1 - height)
    mirror = bool(random.random() < 0.5) and not _SIDES.search(caption)
    return View((left, top, left + width, top + height), mirror)
