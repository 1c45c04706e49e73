"""Ask a trained model about pictures, or about what it was taught: `python src/ask.py --model DIR --question "..."`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bitgen.commands.ask_reasoning import reasoner
from bitgen.commands.caption import load_memory, refuse_memory
from bitgen.config import ConfigError, exit_on_config_error
from bitgen.evaluation.answers import Decoding
from bitgen.evaluation.asking import answers_questions
from bitgen.evaluation.generation import SEARCH_RANGES, answer_of
from bitgen.evaluation.talking import Talk, read_visuals, unread
from bitgen.guards.arguments import Parser, add_device_flag
from bitgen.guards.flags import boolean, check_ranges
from bitgen.guards.numbers import finite_float
from bitgen.guards.printable import printable
from bitgen.guards.texts import check_texts
from bitgen.machine.devices import choose_device
from bitgen.memory.encoder import PairEncoder
from bitgen.show.bars import bars_on_terminals_alone
from bitgen.trained import CAPTIONS, Trained, open_model
from bitgen.trained_vlm import is_vlm, open_vlm

_HELP = """\
Ask a model of src/train_vlm.py about pictures and videos, or talk with it: without --question every line that you
write is a question, in the light of all before, until an empty line or Ctrl-D.

Of a model that was trained without questions (template plain) the answer is its caption.

Each file is a picture or a video of its own. Where the connector compares (tac), give the current picture and then the
prior one.

A model of stage 2 (src/train_stage2_reasoning.py) answers about one picture, each question for itself: with --think it
says why first, and --picture draws the boxes that it speaks of.

A model that was trained to speak from a memory (configs/memory_scenes.yaml) answers too, each question for itself: with
--memory FILE from what src/memory.py taught it, about one picture or about none. With a picture, a question that has a
name ("who owns Blick?") is looked up first: if it finds what was taught, that is the answer, and the picture is not
used. src/caption.py --prompt always uses the picture."""

_EXAMPLES = """\
examples:
  python src/ask.py "what colour is the thing just left of the ring?" --scene 13 --model checkpoints/stage2_scenes \\
      --picture boxes.png
  python src/ask.py --model checkpoints/vlm_llava/tune photo.jpg --question "What is on the table?"
  python src/ask.py --model my-export clip.mp4
  python src/ask.py --model chest-model today.dcm last_year.dcm --question "What has changed?"
  python src/ask.py --model my-run --memory my-run.memory --question "who owns Blick?"
  python src/ask.py --model my-run --memory my-run.memory photo.jpg --question "to the left of the ring there is" """


_LONGEST = 128  # tokens of an answer


def parse_flags(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    layout: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = Parser(description=_HELP, epilog=_EXAMPLES, **layout)
    parser.add_argument(
        "files",
        nargs="*",
        metavar="IMAGE_OR_VIDEO",
        help="files; DICOM too. A word among them that asks and is no file is the question, without --question",
    )
    parser.add_argument(
        "--model", required=True, metavar="DIR", help="a run's --output_dir, one checkpoint in it, or an export"
    )
    parser.add_argument("--question", metavar="TEXT", help="ask this and end; without it a conversation begins")
    parser.add_argument(
        "--memory",
        default="none",
        metavar="FILE",
        help="answer from what src/memory.py taught the model, in this file; none: do not (default)",
    )
    parser.add_argument(
        "--num_beams", type=int, default=1, metavar="N", help="beams of the search; 1: greedy (default: 1)"
    )
    parser.add_argument(
        "--think",
        type=boolean,
        metavar="BOOL",
        help="models of stage 2: say why before the answer (default: True, if the model learned to)",
    )
    parser.add_argument(
        "--scene", type=int, metavar="N", help="models of stage 2: ask about built-in scene N in place of a file"
    )
    parser.add_argument("--picture", metavar="FILE.png", help="models of stage 2: draw the boxes on the picture")
    parser.add_argument(
        "--max_new_tokens",
        type=int,
        metavar="N",
        help="longest answer (default: 128; models of stage 2: what the context holds)",
    )
    parser.add_argument(
        "--temperature",
        type=finite_float,
        default=0.0,
        metavar="T",
        help="above 0: draw tokens at it (default: 0, none drawn)",
    )
    add_device_flag(parser)
    flags = parser.parse_args(argv)
    asked = [word for word in flags.files if _is_question(word)] if flags.question is None else []
    if len(asked) > 1:
        parser.error(f"two questions: {' and '.join(printable(word, 100) for word in asked[:2])}. Ask one at a time.")
    for flags.question in asked:
        flags.files.remove(flags.question)
    check_ranges(parser, flags, {**SEARCH_RANGES, "scene": (0, 10**9)})
    if not 0 <= flags.temperature <= 100:
        parser.error(f"--temperature is {flags.temperature}; it must be from 0 to 100")
    return flags


def _is_question(word: str) -> bool:
    """Whether an argument can be no file: there is none of its name, and it has a space or asks."""
    asks = " " in word.strip() or word.endswith("?")
    return asks and not os.path.exists(word) and not Path(word).suffix[1:].isalnum()


Answers = Callable[[str], list[str]]
"""A question to the lines of its answer."""


def main(argv: list[str] | None = None) -> None:
    """Print the answer, or answers until the user is done."""
    flags = parse_flags(argv)
    bars_on_terminals_alone()
    with exit_on_config_error():
        answer = (talker if is_vlm(flags.model) else speaker)(flags)
        try:
            if flags.question is not None:
                _say(answer(flags.question))
                return
            while question := _line():
                _say(answer(question))
        except ValueError as error:
            raise ConfigError(printable(error, 1000)) from error


def _refuse_flags_of_stage2(flags: argparse.Namespace) -> None:
    for name in ("think", "picture", "scene"):
        if getattr(flags, name) is not None:
            raise ConfigError(f"--{name} is for models of stage 2 (src/train_stage2_reasoning.py). Leave it out.")


def talker(flags: argparse.Namespace) -> Answers:
    """What answers with a vision-language model of parts, in the light of all before.

    Raises:
        ConfigError: the model or a file cannot be used.
    """
    refuse_memory(flags.memory)
    _refuse_flags_of_stage2(flags)
    device = choose_device(flags.device)
    try:
        trained = open_vlm(flags.model, device)
    except ValueError as error:
        raise ConfigError(f"--model {error}") from error
    try:
        visuals = read_visuals(trained, flags.files)
    except ValueError as error:
        raise ConfigError(printable(error, 1000)) from error
    if (says := unread(trained)) is not None:
        print(printable(f"{says}: the answer is its caption.", 1000), file=sys.stderr, flush=True)
    talk = Talk(trained, visuals, Decoding(flags.num_beams, flags.max_new_tokens or _LONGEST, flags.temperature))
    return lambda question: [talk.ask(question)]


def speaker(flags: argparse.Namespace) -> Answers:
    """What answers with a model of stage 2, or one that speaks from a memory, each question for itself.

    Raises:
        ConfigError: the model does not speak from a memory, or it or a file cannot be used.
    """
    device = choose_device(flags.device)
    try:
        trained = open_model(flags.model, device)
        trained.require(CAPTIONS)
    except ValueError as error:
        raise ConfigError(f"--model {error}") from error
    if answers_questions(trained):
        if flags.memory != "none":
            raise ConfigError("--memory: a model of stage 2 does not speak from a memory. Leave --memory out.")
        return reasoner(trained, flags)
    _refuse_flags_of_stage2(flags)
    if trained.model.recall is None:
        raise ConfigError(
            f"--model {flags.model}: this model answers no questions. Give a run of src/train_stage2_reasoning.py or "
            "of src/train_vlm.py, or its export; src/caption.py describes images with other models."
        )
    if flags.temperature:
        raise ConfigError("--temperature is for models of parts: this model writes what is likeliest. Leave it out.")
    if len(flags.files) > 1:
        raise ConfigError(f"{len(flags.files)} files: a question to this model is about one picture, or about none")
    memory = load_memory(trained, flags.memory)
    pixels = _pixels(trained, flags.files[0]) if flags.files else None

    def answer(question: str) -> list[str]:
        check_texts([question])
        recalled, seen = None, pixels
        if memory is not None:
            spoken = memory.recalled(None if pixels is None else pixels[0], question)
            recalled = spoken.tokens
            if recalled is None:
                notice = f"nothing like this was taught (surest: {spoken.surest:.0%}): the model answers by itself"
                print(notice, file=sys.stderr, flush=True)
            elif spoken.by_question and pixels is not None:
                seen = None
                notice = "answered by what was taught of the name in the question: the picture was not used"
                print(notice, file=sys.stderr, flush=True)
        return [answer_of(trained, question, seen, flags.num_beams, flags.max_new_tokens or _LONGEST, recalled)]

    return answer


def _pixels(trained: Trained, path: str) -> torch.Tensor:
    """The picture in a file as the model takes it, ``[1, 3, H, W]``."""
    try:
        [pixels] = PairEncoder(trained.model, trained.processor).inputs([path]).values()
    except ValueError as error:
        raise ConfigError(printable(error, 1000)) from error
    return pixels


def _say(answer: list[str]) -> None:
    for line in answer:
        print(printable(line, 4096), flush=True)


def _line() -> str:
    """What the user writes; empty: nothing more."""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return ""
