"""Random views of images for training."""

from __future__ import annotations

import re

import numpy as np

from bitgen.model.processing_bitgen import View

# Left and right in languages that captions are often in. A word more costs a mirrored view, one less a wrong caption.
_SIDES = re.compile(
    r"\b(left|right|links?\b|rechts|linke|rechte|gauche|droit|izquierd|derech|esquerd|direit|sinistr|destr|v[aä]nster"
    r"|h[oö]ger|venstre|h[oø]jre|h[oø]yre|lew[aeoy]|praw[aeoy]|sol\b|solda|sağ|лев|слева|прав|справа|kiri|kanan)"
    r"|左|右|왼|오른|يسار|يمين|बाएँ|बाएं|दाएँ|दाएं|ซ้าย|ขวา|\b(trái|phải)\b",
    re.IGNORECASE,
)


def random_view(random: np.random.Generator, caption: str) -> View:
    """A crop of 60 to 100% of the area, mirrored half of the time unless ``caption`` speaks of left or right."""
    area, ratio = random.uniform(0.6, 1.0), np.exp(random.uniform(-np.log(4 / 3), np.log(4 / 3)))
    width, height = min(np.sqrt(area * ratio), 1.0), min(np.sqrt(area / ratio), 1.0)
    left, top = random.uniform(0, 1 - width), random.uniform(0, 1 - height)
    mirror = bool(random.random() < 0.5) and not _SIDES.search(caption)
    return View((left, top, left + width, top + height), mirror)
