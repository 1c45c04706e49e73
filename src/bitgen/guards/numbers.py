"""Numbers from flags, files and texts."""

from __future__ import annotations

import argparse
import math

from bitgen.guards.printable import printable


class BadNumber(argparse.ArgumentTypeError, ValueError):
    """A text that is not such a number. A parser of flags shows the message as it stands."""


def finite_float(text: str) -> float:
    """``float(text)`` for a number that is finite; argparse's own ``float`` takes ``nan`` and ``inf``.

    Raises:
        BadNumber: it is no number, or not finite.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise BadNumber(f"{printable(text, 40)!r} is not a finite number")
    return value
