"""`src/evaluate.py` for models with an evaluation of their own, and how every evaluation is printed and written."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from bitgen.config import ConfigError
from bitgen.evaluation.flags import GROUNDING, REASONING, VQA
from bitgen.evaluation.results import write_results
from bitgen.trained import Trained

logger = logging.getLogger("evaluate")

Files = dict[str, str | None]


@contextmanager
def naming_bad_records() -> Iterator[None]:
    """A record that cannot be read ends the evaluation with its message."""
    try:
        yield
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error


def say_and_write(text: str, files: Files, writers: dict[str, Callable[[str], None]]) -> None:
    """Print first: a disk that is full must not lose the results.

    Args:
        files: by flag; None: it is not written.
        writers: by flag, what writes such a file.

    Raises:
        ConfigError: a file cannot be written; the message begins with its flag.
    """
    print(text)
    for name, path in files.items():
        try:
            if path is not None:
                writers[name](path)
        except ValueError as error:
            raise ConfigError(f"--{name} {error}; the results are in the table above") from error
    logger.info("results in %s", ", ".join(path for path in files.values() if path is not None))


def main_of_parts(flags: argparse.Namespace, device: torch.device, files: Files) -> None:
    """All that is asked of a vision-language model of parts."""
    from bitgen.commands.evaluate_vlm import evaluate_vlm

    with naming_bad_records():
        results, answers, text, draw = evaluate_vlm(flags, device)
    writers = {
        "output": lambda path: write_results(results, path),
        "predictions": lambda path: write_results(answers, path),
        "contact_sheet": draw,
    }
    say_and_write(text, files, writers)


def main_of_reasoning(
    flags: argparse.Namespace, device: torch.device, files: Files, opened: Callable[[str, str], Trained]
) -> None:
    """Answers and boxes of a model of stage 2, which ``opened`` opens by flag and path."""
    from bitgen.commands.evaluate_reasoning import evaluate_reasoning

    if others := [task for task in flags.task if task not in (REASONING, GROUNDING)]:
        raise ConfigError(f"--task {others[0]} is not evaluated beside {REASONING} and {GROUNDING}. Run it by itself.")
    refuse_flags_of_parts(flags)
    with naming_bad_records():
        results, answers, text = evaluate_reasoning(opened("checkpoint", flags.checkpoint), flags, device)
    writers = {
        "output": lambda path: write_results(results, path),
        "predictions": lambda path: write_results(answers, path),
    }
    say_and_write(text, files, writers)


def refuse_flags_of_parts(flags: argparse.Namespace) -> None:
    """Raises ConfigError where the flags ask another model for what a model of parts alone has."""
    asked = {f"--task {VQA}": VQA in flags.task, "--shuffle_images": flags.shuffle_images}
    asked["--length_penalty"] = flags.length_penalty is not None
    if named := [flag for flag, is_asked in asked.items() if is_asked]:
        raise ConfigError(f"{named[0]} is for vision-language models of parts, and --checkpoint names none.")
