"""What several command lines ask of their flags."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from bitgen.guards.printable import printable


def boolean(text: str) -> bool:
    """``True`` or ``False``, in any case, for argparse.

    Raises:
        argparse.ArgumentTypeError: it is something else.
    """
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"write True or False, not {printable(text, 40)!r}")
    return text.lower() == "true"


def check_ranges(
    parser: argparse.ArgumentParser, flags: argparse.Namespace, ranges: Mapping[str, tuple[int, int]]
) -> None:
    """End the program where a flag is not None and outside its range ``(least, most)``."""
    for name, (least, most) in ranges.items():
        value = getattr(flags, name)
        if value is not None and not least <= value <= most:
            bound = f"at least {least}" if value < least else f"at most {most:,}"
            parser.error(f"--{name} is {value}; it must be {bound}")
