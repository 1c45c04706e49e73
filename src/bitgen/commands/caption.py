"""Describe images with a trained model: `python src/caption.py IMAGE... --model DIR` prints a caption for each."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import torch

from bitgen.config import ConfigError, exit_on_config_error
from bitgen.evaluation.answers import Decoding
from bitgen.evaluation.generation import LONGEST, SEARCH_RANGES, caption_of
from bitgen.evaluation.talking import Talk, eyes, read_picture, unread
from bitgen.guards.arguments import Parser, add_device_flag
from bitgen.guards.flags import check_ranges
from bitgen.guards.printable import printable
from bitgen.guards.regular_files import read_regular_file
from bitgen.machine.devices import choose_device
from bitgen.memory import EpisodicMemory
from bitgen.memory.spoken import MUTE
from bitgen.show.bars import bars_on_terminals_alone
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
        "--memory",
        default="none",
        metavar="FILE",
        help="say what src/memory.py taught the model, from this file; none: do not (default)",
    )
    parser.add_argument(
        "--num_beams", type=int, default=3, metavar="N", help="beams of the search; 1: greedy (default: 3)"
    )
    parser.add_argument(
        "--max_new_tokens", type=int, default=LONGEST, metavar="N", help=f"longest caption (default: {LONGEST})"
    )
    add_device_flag(parser)
    flags = parser.parse_args(argv)
    check_ranges(parser, flags, SEARCH_RANGES)
    return flags


def load_captioner(folder: str, device: torch.device | str = "cpu") -> Trained:
    """The model of a run, a checkpoint or an export, on ``device``.

    Raises:
        ConfigError: there is none, it is damaged, never learned to write, or takes features instead of images.
    """
    try:
        trained = open_model(folder, device)
        trained.require(CAPTIONS)
    except ValueError as error:
        raise ConfigError(f"--model {error}") from error
    if trained.model.config.takes_features:
        raise ConfigError(
            f"--model {folder} was trained on features computed earlier and has no vision tower: it cannot look at "
            "image files. Give its generate() vision_features, or train on images."
        )
    return trained


def refuse_memory(file: str) -> None:
    """Raise ConfigError where ``--memory`` names a file for a model that has no use for it."""
    if file != "none":
        raise ConfigError(
            f"--memory {printable(file)}: a vision-language model of parts does not speak from a memory. Leave "
            "--memory out, or give a model of src/train_stage1_vision_language.py that does."
        )


def load_memory(trained: Trained, file: str) -> EpisodicMemory | None:
    """The memory of ``--memory``, for the model to speak from; None where it is ``none``.

    Raises:
        ConfigError: the model does not speak from a memory, or the file is missing, damaged or of another model.
    """
    if file == "none":
        return None
    if trained.model.recall is None:
        raise ConfigError(f"--memory {printable(file)}: {MUTE}. Or leave --memory out.")
    memory = EpisodicMemory(trained.model, trained.processor)
    try:
        memory.load(file)
    except ValueError as error:
        raise ConfigError(f"--memory {error}") from error
    return memory


def describer(flags: argparse.Namespace) -> Callable[[str], str]:
    """What writes the caption of a file; it raises ``ValueError`` naming one that cannot be read.

    Raises:
        ConfigError: there is no model, it cannot describe images, or what --memory names cannot be used.
    """
    device = choose_device(flags.device)
    if is_vlm(flags.model):
        refuse_memory(flags.memory)
        try:
            parts = open_vlm(flags.model, device)
            eyes(parts)
        except ValueError as error:
            raise ConfigError(f"--model {error}") from error
        if flags.prompt and (says := unread(parts)) is not None:
            print(printable(f"{says}: --prompt changes nothing.", 1000), file=sys.stderr, flush=True)
        decoding, prompt = Decoding(flags.num_beams, flags.max_new_tokens), parts.description.speech.prompt
        return lambda path: Talk(parts, [read_picture(parts, path)], decoding).ask(flags.prompt or prompt)
    trained = load_captioner(flags.model, device)
    memory = load_memory(trained, flags.memory)

    def describe(path: str) -> str:
        try:
            pixels = trained.processor.images([read_regular_file(path)])
            recalled = None if memory is None else memory.recalled(image=pixels[0]).tokens
            return caption_of(trained, pixels, flags.prompt, flags.num_beams, flags.max_new_tokens, recalled)
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error

    return describe


def main(argv: list[str] | None = None) -> None:
    """Print ``file<TAB>caption`` for each image; those that cannot be read are named at the end."""
    flags = parse_flags(argv)
    problems = []
    bars_on_terminals_alone()
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
