"""Describe images with a trained model: `python src/caption.py IMAGE... --model DIR` prints a caption for each."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from bitgen.config import ConfigError, exit_on_config_error
from bitgen.evaluation.answers import Decoding
from bitgen.evaluation.generation import LONGEST, SEARCH_RANGES, caption_of
from bitgen.evaluation.talking import Talk, eyes, read_picture
from bitgen.guards.arguments import Parser
from bitgen.guards.flags import check_ranges
from bitgen.guards.printable import printable
from bitgen.guards.regular_files import read_regular_file
from bitgen.trained import CAPTIONS, Trained, open_model
from bitgen.trained_vlm import is_vlm, open_vlm


def parse_flags(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    parser.add_argument(
        "--model", required=True, metavar="DIR", help="a run's --output_dir, one checkpoint in it, or an export"
    )
    parser.add_argument(
        "--prompt",
        default="",
        metavar="TEXT",
        help="what each caption begins with; of a vision-language model of parts: what it is asked",
    )
    parser.add_argument(
        "--num_beams", type=int, default=3, metavar="N", help="beams of the search; 1: greedy (default: 3)"
    )
    parser.add_argument(
        "--max_new_tokens", type=int, default=LONGEST, metavar="N", help=f"longest caption (default: {LONGEST})"
    )
    flags = parser.parse_args(argv)
    check_ranges(parser, flags, SEARCH_RANGES)
    return flags


def load_captioner(folder: str) -> Trained:
    """The model of a run, a checkpoint or an export.

    Raises:
        ConfigError: there is none, it is damaged, never learned to write, or takes features instead of images.
    """
    try:
        trained = open_model(folder)
        trained.require(CAPTIONS)
    except ValueError as error:
        raise ConfigError(f"--model {error}") from error
    if trained.model.config.takes_features:
        raise ConfigError(
            f"--model {folder} was trained on features computed earlier and has no vision tower: it cannot look at "
            "image files. Give its generate() vision_features, or train on images."
        )
    return trained


def describer(flags: argparse.Namespace) -> Callable[[str], str]:
    """What writes the caption of a file; it raises ``ValueError`` naming one that cannot be read.

    Raises:
        ConfigError: there is no model, or it cannot describe images.
    """
    if is_vlm(flags.model):
        try:
            parts = open_vlm(flags.model)
            eyes(parts)
        except ValueError as error:
            raise ConfigError(f"--model {error}") from error
        decoding, prompt = Decoding(flags.num_beams, flags.max_new_tokens), parts.description.speech.prompt
        return lambda path: Talk(parts, [read_picture(parts, path)], decoding).ask(flags.prompt or prompt)
    trained = load_captioner(flags.model)

    def describe(path: str) -> str:
        try:
            pixels = trained.processor.images([read_regular_file(path)])
            return caption_of(trained, pixels, flags.prompt, flags.num_beams, flags.max_new_tokens)
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error

    return describe


def main(argv: list[str] | None = None) -> None:
    """Print ``file<TAB>caption`` for each image; those that cannot be read are named at the end."""
    flags = parse_flags(argv)
    problems = []
    with exit_on_config_error():
        describe = describer(flags)
        for path in flags.images:
            try:
                text = describe(path)
            except ValueError as error:
                problems.append(printable(error))
                continue
            print(f"{printable(path, 4096)}\t{printable(text, 4096)}", flush=True)
        if problems:
            raise ConfigError("; ".join(problems))
