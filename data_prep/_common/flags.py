"""The flags that every preparation script has, and how a script starts and ends."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path

from bitgen.data.records import SIDECAR, read_info
from bitgen.data.whole_folder import check_output
from bitgen.guards.arguments import Parser
from bitgen.guards.failures import explained
from bitgen.guards.flags import boolean
from bitgen.guards.numbers import finite_float
from bitgen.guards.printable import printable, printable_lines

logger = logging.getLogger("data_prep")

MAX_IMAGE_PIXELS = 50_000_000
_MOST_DIGITS = 15


def positive(text: str) -> int:
    """Parses a positive whole number."""
    value = count(text)
    if value > 0:
        return value
    raise argparse.ArgumentTypeError(f"{printable(text, 40)!r} is not a positive whole number")


def count(text: str) -> int:
    """Parses a whole number from 0 on."""
    if text.isdecimal() and len(text) <= _MOST_DIGITS:
        return int(text)
    raise argparse.ArgumentTypeError(
        f"{printable(text, 40)!r} is not a positive whole number of at most {_MOST_DIGITS} digits"
    )


def seconds(text: str) -> float:
    """Parses a positive number of seconds."""
    value = finite_float(text)
    if value > 0:
        return value
    raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")


def fraction(text: str) -> float:
    """Parses a number from 0 to 1."""
    value = finite_float(text)
    if 0 <= value <= 1:
        return value
    raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")


def plain_parser(description: str, example: str, output: str, replaced: str) -> argparse.ArgumentParser:
    """A parser with what every script has: ``--output``, an ``output``, and ``--overwrite``, of what is ``replaced``.

    ``example``: command lines, indented, to show at the end of ``--help``.
    """
    parser = Parser(
        description=description,
        epilog=f"example:\n{example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, required=True, help=f"{output} to write (complete or not at all)")
    parser.add_argument("--overwrite", type=boolean, default=False, help=f"True: replace {replaced} in --output")
    return parser


def make_parser(
    description: str, example: str, max_failed_fraction: float = 0.01, why: str = ""
) -> argparse.ArgumentParser:
    """A parser with the flags that every script that writes images has.

    Args:
        description: what the script does.
        example: command lines, indented, to show at the end of ``--help``.
        max_failed_fraction: default share of images that may be lost.
        why: what ``--help`` adds to that flag where the default needs a reason.
    """
    parser = plain_parser(description, example, "dataset folder", "the dataset")
    rows = ", which are rows of a hub's dataset and of BabyLM's files"
    add_limit_flags(parser, "images", max_failed_fraction, why, rows)
    parser.add_argument(
        "--exclude",
        type=Path,
        nargs="+",
        default=[],
        metavar="DATASET",
        help="datasets prepared earlier whose images must not come again, such as the validation set; images are "
        "compared by name, those of COCO by the numbers in their names",
    )
    return parser


def add_limit_flags(
    parser: argparse.ArgumentParser, unit: str, max_failed_fraction: float = 0.01, why: str = "", counted: str = ""
) -> None:
    """Adds ``--limit`` and ``--max_failed_fraction``, of what a source has as ``unit``; ``counted``: how it is."""
    about = f"take only the first N {unit}{counted}: a quick look at the pipeline"
    parser.add_argument("--limit", type=positive, help=about)
    parser.add_argument(
        "--max_failed_fraction",
        type=fraction,
        default=max_failed_fraction,
        help=f"stop, writing nothing, when a larger share of the {unit} than this cannot be used "
        f"({why}default %(default)s)",
    )


def add_image_flags(parser: argparse.ArgumentParser) -> None:
    """Adds ``--check_images`` and ``--max_image_pixels``."""
    parser.add_argument(
        "--check_images",
        type=boolean,
        default=True,
        help="True: decode every image once, so that a damaged file is found now and not in training",
    )
    add_pixel_flag(parser)


def add_pixel_flag(parser: argparse.ArgumentParser) -> None:
    """Adds ``--max_image_pixels``."""
    parser.add_argument(
        "--max_image_pixels",
        type=positive,
        default=MAX_IMAGE_PIXELS,
        help="images with more pixels than this are refused before they are decoded (default %(default)s)",
    )


def parse(parser: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """Parses the flags and makes sure, before any work, that --output may be written and --exclude be read."""
    args = parser.parse_args(argv)
    check_output(args.output, args.overwrite, SIDECAR)
    for folder in args.exclude:
        read_info(folder)
    return args


def run(main: Callable[[list[str] | None], None], interrupted: str = "") -> None:
    """Runs a script's ``main``: a user's mistake ends in one line on stderr and exit status 2, not in a traceback.

    ``interrupted`` is what to say, after "no dataset was written", to a user who pressed Ctrl-C.
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    for library in ("httpx2", "httpcore2"):  # they log every request
        logging.getLogger(library).setLevel(logging.WARNING)
    try:
        main(None)
    except (ValueError, OSError) as error:
        logger.error("%s", printable_lines(error))
        sys.exit(2)  # as argparse does for a flag
    except Exception as error:
        said = explained(error)
        if said is None:  # a mistake in the code
            raise
        logger.error("%s", said)
        sys.exit(1)
    except KeyboardInterrupt:
        logger.error("interrupted: no dataset was written%s", f"; {interrupted}" if interrupted else "")
        sys.exit(130)
