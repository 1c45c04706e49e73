"""Numbers from flags, files and texts."""

from __future__ import annotations

import math

from bitgen.guards.printable import printable


def finite_float(text: str) -> float:
    """``float(text)`` for a number that is finite; argparse's own ``float`` takes ``nan`` and ``inf``.

    Raises:
        ValueError: it is no number, or not finite.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{printable(text, 40)!r} is not a finite number")
    return value
