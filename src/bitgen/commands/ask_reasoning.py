"""Questions about one picture to a model of stage 2, for `src/ask.py`."""

from __future__ import annotations

import argparse
import io
import os
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from torchvision.transforms.v2.functional import to_pil_image

from bitgen.config import ConfigError
from bitgen.data.questions.boxes import Box
from bitgen.data.scenes.tables import render_table, table_scene
from bitgen.evaluation.asking import Answered, ask, whether_to_think
from bitgen.guards.printable import printable
from bitgen.guards.regular_files import BadFile, read_regular_file
from bitgen.guards.texts import check_texts
from bitgen.machine.files import write_whole
from bitgen.memory.encoder import PairEncoder
from bitgen.model.image_decoding import decode_image
from bitgen.show.boxes import draw_boxes
from bitgen.trained import Trained

_SIDE = 480  # pixels of a built-in scene


def reasoner(trained: Trained, flags: argparse.Namespace) -> Callable[[str], list[str]]:
    """What answers with a model of stage 2, each question for itself.

    Raises:
        ConfigError: not one picture, a flag that is not for such models, or a file that cannot be used.
    """
    if flags.temperature or flags.num_beams != 1:
        raise ConfigError(
            "--temperature and --num_beams are not for this model, which writes what is likeliest. Leave them out."
        )
    if len(flags.files) + (flags.scene is not None) != 1:
        raise ConfigError(
            f"{len(flags.files)} files: a question to this model is about one picture. Name one, or --scene 1 for "
            "a built-in scene."
        )
    if flags.picture is not None and not flags.picture.lower().endswith(".png"):
        raise ConfigError(f"--picture {flags.picture}: it is written as a PNG. Give a name that ends in .png.")
    picture = _scene(flags.scene) if flags.scene is not None else _opened(trained, flags)
    [pixels] = PairEncoder(trained.model, trained.processor).inputs([picture]).values()
    try:
        thinks = whether_to_think(trained, flags.think)
    except ValueError as error:
        raise ConfigError(f"--think True: {error}.") from error

    def answer(question: str) -> list[str]:
        check_texts([question])
        found = ask(trained, pixels, question, thinks, flags.max_new_tokens)
        if flags.picture is not None:
            _draw(picture, found.boxes, flags.picture)
        return as_text(found, picture.size)

    return answer


def _opened(trained: Trained, flags: argparse.Namespace) -> Image.Image:
    path = Path(flags.files[0])
    try:
        content = read_regular_file(path)
    except (OSError, BadFile) as error:
        reason = error.strerror or error if isinstance(error, OSError) else error
        raise ConfigError(f"{printable(path)}: {printable(reason, 1000)}") from error
    try:
        upright = decode_image(content, printable(path), trained.processor.max_image_pixels)
    except ValueError as error:
        raise ConfigError(printable(error, 1000)) from error
    if flags.picture is not None and os.path.exists(flags.picture) and os.path.samefile(path, flags.picture):
        raise ConfigError(f"--picture {flags.picture} is the picture itself. Give another name.")
    return to_pil_image(upright)


def _scene(number: int) -> Image.Image:
    """A scene that training never drew."""
    key = ("shown", number)
    return render_table(table_scene(key), _SIDE, key)


def as_text(found: Answered, size: tuple[int, int]) -> list[str]:
    """Why, the answer, and where the boxes are in pixels, a line each."""
    lines = [f"because: {found.why}"] if found.why else []
    lines.append(f"answer: {found.answer or '(none: the model gave no answer)'}")
    lines += [f"  [{number}] {_pixels(box, size)}" for number, box in found.boxes]
    return lines


def _pixels(box: Box, size: tuple[int, int]) -> str:
    width, height = size
    edges = (box.x1 * width, box.y1 * height, box.x2 * width, box.y2 * height)
    left, top, right, bottom = (round(edge) for edge in edges)
    return f"x {left} to {right}, y {top} to {bottom}"


def _draw(picture: Image.Image, boxes: tuple[tuple[str, Box], ...], path: str) -> None:
    buffer = io.BytesIO()
    draw_boxes(picture, boxes).save(buffer, "PNG")
    try:
        write_whole(path, buffer.getvalue())
    except ValueError as error:
        raise ConfigError(f"--picture {error}") from error
