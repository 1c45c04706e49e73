"""Fold a LoRA or DoRA adapter into its base, or take it out: `python src/adapters.py merge --base DIR ...`."""

from __future__ import annotations

import argparse
import logging
import sys
from typing import Any

from bitgen.config import ConfigError, exit_on_config_error
from bitgen.guards.arguments import Parser

logger = logging.getLogger("adapters")

_HELP = """\
Fold the adapter of a language model into its weights (merge), or take it out again (unmerge). LoRA, rsLoRA and DoRA, as
BitGen or peft saved them. The folder that is written loads like the base and needs no peft; its tokenizer and all other
files are the base's."""

_EXAMPLES = """\
examples:
  python src/adapters.py merge --base models/smollm2-135m-instruct --adapter my-export --output merged
  python src/adapters.py unmerge --merged merged --adapter my-export --output models/smollm2-again

A base that is not the one that the adapter was trained on is refused (by its revision, or the hash of its weights that
BitGen keeps beside an adapter), and so is one in 4 or 8 bits: rounding the sum to so few bits loses much of the
adapter. docs/lora.md says more."""


def parse_flags(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    layout: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = Parser(description=_HELP, epilog=_EXAMPLES, **layout)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    merge = commands.add_parser("merge", help="write the base with the adapter folded into it")
    unmerge = commands.add_parser("unmerge", help="write the base again, from what merge wrote")
    merge.add_argument("--base", required=True, metavar="DIR", help="the model that the adapter was trained on")
    unmerge.add_argument("--merged", required=True, metavar="DIR", help="what merge wrote")
    for command in (merge, unmerge):
        command.add_argument(
            "--adapter", required=True, metavar="DIR", help="a folder with adapter_model.safetensors in it"
        )
        command.add_argument("--output", required=True, metavar="DIR", help="a folder that is empty or not there yet")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Read the flags, merge or unmerge, and say where."""
    flags = parse_flags(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    with exit_on_config_error():
        from bitgen.vlm.adapter_merge import merge_folder, unmerge_folder  # after the flags: it loads torch

        try:
            if flags.command == "merge":
                merge_folder(flags.base, flags.adapter, flags.output)
            else:
                unmerge_folder(flags.merged, flags.adapter, flags.output)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        logger.info("written to %s", flags.output)
