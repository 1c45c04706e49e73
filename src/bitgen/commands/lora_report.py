"""What adapters of a language model cost, and the spectra of weights and adapters: `python src/lora_report.py ...`."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

from bitgen.config import ConfigError, exit_on_config_error
from bitgen.guards.arguments import Parser, add_device_flag
from bitgen.guards.flags import boolean

logger = logging.getLogger("lora_report")
_MOST_RANK = 1 << 16

_HELP = """\
Count what LoRA or DoRA adapters of a language model cost at each rank: parameters, and the bytes of their weights,
gradients and optimizer states beside those of the base. Shapes are enough for this: of a folder or a config.json
nothing is downloaded, and no weight is read.

Of a folder with weights (safetensors) the singular values of the adapted layers' weights are shown too, and with
--adapter those of what a trained adapter adds, B A:

  effective rank  exp of the entropy of the singular values' shares (Roy and Vetterli, 2007)
  kept by r       share of the squared Frobenius norm that the best approximation of rank r keeps
  Gaussian        the same of independent Gaussian entries in the same shape: what no structure at all looks like"""

_EXAMPLES = """\
examples:
  python src/lora_report.py --model models/smollm2-135m-instruct
  python src/lora_report.py --model config.json --targets q_proj,v_proj --rank 8 16 --spectra False
  python src/lora_report.py --model models/smollm2-135m-instruct --adapter my-export --output report

docs/lora.md explains what the figures mean."""


def parse_flags(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    layout: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = Parser(description=_HELP, epilog=_EXAMPLES, **layout)
    parser.add_argument(
        "--model", required=True, metavar="MODEL", help="a folder with a config.json, such a file, or a name on the Hub"
    )
    parser.add_argument(
        "--targets",
        default="all-linear",
        metavar="NAMES",
        help="all-linear (all of the decoder, without the head; default), or last names: q_proj,v_proj",
    )
    parser.add_argument("--rank", type=int, nargs="+", default=[4, 8, 16, 64, 128], metavar="R", help="ranks to count")
    parser.add_argument("--kind", choices=("lora", "dora"), default="lora", help="dora adds a magnitude for each row")
    parser.add_argument("--layers", type=int, nargs="+", metavar="N", help="these layers alone, from 0 (default: all)")
    parser.add_argument("--adapter", metavar="DIR", help="a trained adapter, whose B A is looked at")
    parser.add_argument(
        "--spectra",
        type=boolean,
        default=True,
        metavar="BOOL",
        help="look at the weights of a folder that has them; minutes on a CPU for 7B (default: True)",
    )
    add_device_flag(parser)
    parser.add_argument(
        "--output", metavar="DIR", help="write report.json and the pictures there; empty or not there yet"
    )
    flags = parser.parse_args(argv)
    if wrong := [rank for rank in flags.rank if not 1 <= rank <= _MOST_RANK]:
        parser.error(f"--rank {wrong[0]}: it must be 1 to {_MOST_RANK:,}")
    if flags.output is not None:
        try:
            is_free = not Path(flags.output).exists() or _empty(Path(flags.output))
        except OSError as error:
            parser.error(f"--output {flags.output}: cannot write there ({error.strerror or error})")
        if not is_free:
            parser.error(f"--output {flags.output}: it is there already; name a folder that is empty or not there yet")
    return flags


def main(argv: list[str] | None = None) -> None:
    """Read the flags, count, look at the weights, print, and write where asked to."""
    flags = parse_flags(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    with exit_on_config_error():
        from bitgen.commands.lora_report_parts import report  # after the flags: it loads torch

        try:
            found = report(flags)
            print(found.text)
            if flags.output is not None:
                write_report(Path(flags.output), found.figures, found.pictures)
                logger.info("written to %s", flags.output)
        except ValueError as error:
            raise ConfigError(str(error)) from error


def write_report(folder: Path, figures: dict[str, Any], pictures: dict[str, Any]) -> None:
    """Write ``report.json`` and the pictures into a new folder, all of it or nothing.

    Raises:
        ConfigError: the disk says no.
    """
    from bitgen.machine.files import replacing_folder

    try:
        with replacing_folder(folder, replace=False) as new:
            (new / "report.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
            for name, picture in pictures.items():
                picture.save(new / f"{name}.png")
    except OSError as error:
        raise ConfigError(f"--output {folder}: cannot write there ({error.strerror or error})") from error


def _empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())
