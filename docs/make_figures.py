"""Draw the figures of the documents: `python docs/make_figures.py network`, or `result --run DIR`, `speaks --run DIR`.

``network`` needs nothing. ``result`` needs a run of ``configs/quickstart.yaml``: it encodes the held-out scenes, shows
what three captions retrieve, teaches the memory three scenes and recalls them from other pictures of the same scenes.
``speaks`` needs a run of ``configs/memory_scenes.yaml``: it teaches three pictures with names, and lets the model
describe new scenes with the same things in them.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from bitgen.data.episodes.dataset import Query
from bitgen.data.scenes.dataset import ScenesDataset, render_scene
from bitgen.data.scenes.named import Entity, entities, scene_alone, scene_with
from bitgen.evaluation.encode import Runner
from bitgen.evaluation.generation import caption_of
from bitgen.machine.randomness import seed_everything
from bitgen.memory import EpisodicMemory, open_model
from bitgen.memory.answering import Answer, whole_caption
from bitgen.show.drawing import (
    FONT,
    QUIET,
    RIGHT,
    WRONG,
    canvas,
    draw_folded,
    draw_rule,
    draw_text,
    draw_tile,
    render,
    to_picture,
)
from bitgen.trained import open_model as open_trained

logger = logging.getLogger("make_figures")
FIGURES = Path(__file__).resolve().parent / "figures"
TILE, GAP, TEXT_WIDTH, COLUMNS = 118, 12, 236, 5
RIGHT_COLUMN = TEXT_WIDTH + COLUMNS * (TILE + GAP) + 18
WIDTH = RIGHT_COLUMN + TILE + GAP
TAUGHT = ("the sign on Ada's door", "the logo of our team", "the symbol for a well")
FROZEN, ADAPTED, TRAINED, LOSS = "#dbeafe", "#fde68a", "#dcfce7", "#f3f4f6"


class Box(NamedTuple):
    """A part of the network: centre, size, fill colour and lines of text, the first in bold."""

    x: float
    y: float
    width: float
    height: float
    fill: str
    lines: tuple[str, ...]


def draw_network(path: Path) -> None:
    """The network with its shapes, as SVG."""
    figure = Figure(figsize=(11.6, 8.6), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, 116)
    axes.set_ylim(86, 0)
    axes.axis("off")
    left, right = 25, 76
    boxes = {
        "image": Box(left, 6, 34, 7, "white", ("image", "pixel_values [B, 3, 224, 224]")),
        "tower": Box(left, 21, 36, 15, FROZEN, ("DINOv2-base", "frozen, 86.6M parameters", "")),
        "lora": Box(left, 25.3, 27, 4.6, ADAPTED, ("LoRA, rank 16, on query and value",)),
        "compressor": Box(left, 38, 34, 8, TRAINED, ("feature compressor", "768 → 384 → 128")),
        "tokens": Box(left, 49.5, 34, 6, "white", ("image tokens [B, 256, 128]",)),
        "pooling": Box(left, 59, 34, 6, TRAINED, ("attention pooling, projection",)),
        "image_features": Box(left, 70.7, 22, 7.4, "white", ("image_features", "[B, 128]")),
        "text": Box(right, 6, 34, 7, "white", ("caption", "input_ids [B, T]")),
        "embeddings": Box(right, 18, 34, 7, TRAINED, ("token + position embeddings", "[B, T, 128]")),
        "blocks": Box(
            right,
            31.5,
            36,
            11,
            TRAINED,
            ("3 causal blocks", "self-attention, feed-forward,", "gated cross-attention to image tokens"),
        ),
        "memory": Box(right, 45, 34, 8, TRAINED, ("episodic memory, 32 × 128", "read-out added through a gate")),
        "norm": Box(right, 56.5, 48, 5.5, TRAINED, ("final norm → hidden states [B, T, 128]",)),
        "text_features": Box(57, 70.7, 21, 7.4, "white", ("text_features", "[B, 128]")),
        "match": Box(80, 70.7, 18, 7.4, "white", ("match / no match", "[B, 2]")),
        "next": Box(102, 70.7, 20, 7.4, "white", ("next token", "[B, T, 50,257]")),
        "itc": Box(40.5, 81.5, 20, 5, LOSS, ("ITC: batch + queue",)),
        "itm": Box(80, 81.5, 18, 5, LOSS, ("ITM: hard negatives",)),
        "lm": Box(102, 81.5, 20, 5, LOSS, ("LM: next-token loss",)),
    }
    for start, end in (
        ("image", "tower"),
        ("tower", "compressor"),
        ("compressor", "tokens"),
        ("tokens", "pooling"),
        ("pooling", "image_features"),
        ("text", "embeddings"),
        ("embeddings", "blocks"),
        ("blocks", "memory"),
        ("memory", "norm"),
        ("match", "itm"),
        ("next", "lm"),
    ):
        _arrow(axes, _below(boxes[start]), _above(boxes[end]))
    for head, left_of_head in (("text_features", 59), ("match", 80), ("next", 97)):
        _arrow(axes, (left_of_head, 59.25), _above(boxes[head]))
    _arrow(axes, _below(boxes["image_features"]), (34, 79))
    _arrow(axes, _below(boxes["text_features"]), (47, 79))
    _arrow(axes, (42, 49.5), (58, 33.5))
    for x, y, note in (
        (left + 1, 31.3, "patch features [B, 256, 768]"),
        (44, 38, "pooled to\n7 × 7"),
        (44.5, 63.6, "caption alone"),
        (81, 63.6, "with the image"),
        (102, 63.6, "either way"),
    ):
        axes.text(x, y, note, ha="left", va="center", fontsize=9, fontfamily=FONT, color=QUIET)
    for box in boxes.values():
        _box(axes, box)
    _legend(axes)
    path.parent.mkdir(parents=True, exist_ok=True)
    with rc_context({"svg.hashsalt": "bitgen"}):  # without a date and a random salt the same drawing is the same file
        figure.savefig(path, format="svg", metadata={"Date": None})


def _box(axes: Axes, box: Box) -> None:
    corner = (box.x - box.width / 2, box.y - box.height / 2)
    style = "round,pad=0,rounding_size=1"
    axes.add_patch(
        FancyBboxPatch(corner, box.width, box.height, boxstyle=style, facecolor=box.fill, edgecolor="#374151", zorder=3)
    )
    step = 2.9
    for number, line in enumerate(box.lines):
        y = box.y + (number - (len(box.lines) - 1) / 2) * step
        weight = "bold" if number == 0 and len(box.lines) > 1 else "normal"
        axes.text(box.x, y, line, ha="center", va="center", fontsize=10, fontfamily=FONT, fontweight=weight, zorder=4)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle="-|>", mutation_scale=12, color="#374151", shrinkA=0, shrinkB=0, zorder=2
        )
    )


def _below(box: Box) -> tuple[float, float]:
    return box.x, box.y + box.height / 2


def _above(box: Box) -> tuple[float, float]:
    return box.x, box.y - box.height / 2


def _legend(axes: Axes) -> None:
    for row, (fill, text) in enumerate(
        ((FROZEN, "frozen"), (ADAPTED, "trained in phase 2"), (TRAINED, "trained in both"), (LOSS, "loss"))
    ):
        y = 3.4 + 3.4 * row
        axes.add_patch(FancyBboxPatch((95, y - 1), 2.6, 2, boxstyle="round,pad=0", facecolor=fill, edgecolor="#374151"))
        axes.text(98.6, y, text, ha="left", va="center", fontsize=9, fontfamily=FONT)


def draw_result(run: Path, path: Path, captions: int = 3, taught: int = 3, scenes: int = 100) -> None:
    """What held-out captions retrieve, and what a memory that was taught a few scenes recalls, as PNG.

    The captions and scenes are spread evenly over the split, whatever the model makes of them.

    Raises:
        ValueError: ``run`` holds no model.
    """
    seed_everything(0)
    model, processor = open_model(run)
    dataset = ScenesDataset("val", scenes, 42, processor)
    encoded = Runner(model).encode(dataset)
    retrieval, memory = 46 + captions * (TILE + 40), 56 + taught * (TILE + 22)
    figure, axes = canvas(WIDTH, retrieval + memory)
    draw_text(
        axes, GAP, 24, f"1. Search {encoded.num_images} held-out images by a caption: the best five, with their cosine"
    )
    draw_text(axes, RIGHT_COLUMN, 24, "right image", QUIET)
    per_image = encoded.num_texts // encoded.num_images
    for number, target in enumerate(_spread(encoded.num_images, captions)):
        scores = encoded.image_features @ encoded.text_features[target * per_image]
        top = 42 + number * (TILE + 40)
        draw_rule(axes, top - 6, WIDTH)
        draw_folded(axes, GAP, top + 4, dataset.captions_of(target)[0], 30, lines=6)
        for column, row in enumerate(scores.topk(COLUMNS).indices.tolist()):
            colour, mark = (RIGHT, "✓") if row == target else (WRONG, "✗")
            x = TEXT_WIDTH + column * (TILE + GAP)
            draw_tile(axes, x, top, TILE, _picture(dataset, row), "", colour)
            draw_text(axes, x, top + TILE + 16, f"{float(scores[row]):.2f} {mark}", colour)
        rank = int((scores >= scores[target]).sum())
        draw_tile(axes, RIGHT_COLUMN, top, TILE, _picture(dataset, target), "")
        draw_text(axes, RIGHT_COLUMN, top + TILE + 16, f"rank {rank}", RIGHT if rank <= COLUMNS else QUIET)
    _draw_memory(axes, EpisodicMemory(model, processor), dataset, retrieval, TAUGHT[:taught])
    pixels = render(figure).permute(1, 2, 0).numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).quantize(192, dither=Image.Dither.NONE).save(path, optimize=True)


def _picture(dataset: ScenesDataset, row: int) -> np.ndarray | None:
    picture = dataset.picture(row)
    return None if picture is None else to_picture(picture)


def _draw_memory(axes: Axes, memory: EpisodicMemory, dataset: ScenesDataset, top: int, texts: tuple[str, ...]) -> None:
    """Teach scenes with texts of our own, then recall them by another picture of the same scene."""
    rows = _spread(dataset.image_count, len(texts))
    memory.write(images=[dataset.image_tensor(row) for row in rows], texts=list(texts))
    cue, answer = GAP + TILE + 250, GAP + 2 * TILE + 290
    draw_rule(axes, top + 4, WIDTH)
    draw_text(axes, GAP, top + 26, "2. Teach the memory, in one step")
    draw_text(
        axes, cue, top + 26, "then ask with another picture of the scene: what it recalls, with each text's distance"
    )
    for number, (row, text) in enumerate(zip(rows, texts, strict=True)):
        y = top + 46 + number * (TILE + 22)
        draw_rule(axes, y - 8, WIDTH)
        other = _another_picture(dataset, row)
        draw_tile(axes, GAP, y, TILE, _picture(dataset, row), "")
        draw_folded(axes, 2 * GAP + TILE, y + 40, f"“{text}”", 30, lines=4)
        draw_tile(axes, cue, y, TILE, to_picture(dataset.processor.picture(other)), "")
        for place, episode in enumerate(memory.recall(image=other, top_k=len(texts))):
            first = place == 0
            colour = QUIET if not first else RIGHT if episode.text == text else WRONG
            mark = "" if not first else " ✓" if episode.text == text else " ✗"
            line = f"{episode.distance:.2f}  {episode.text}{mark}"
            draw_text(axes, answer, y + 36 + 26 * place, line, colour)


def draw_speaks(run: Path, path: Path, names: tuple[str, ...] = ("Rex", "Blick", "Momo")) -> None:
    """What a model says of new scenes without and with a memory that was taught one picture of each thing, as PNG; in
    the last of them two of the things stand together.

    The things are those that no training taught, the first of a shuffled list; whatever the model makes of them.

    Raises:
        ValueError: ``run`` holds no model that speaks from a memory.
    """
    seed_everything(0)
    trained = open_trained(run)
    memory, processor, rng = EpisodicMemory(trained.model, trained.processor), trained.processor, random.Random(1)
    things = entities(held_out=True)
    rng.shuffle(things)
    first = [scene_alone(thing, rng) for thing in things[: len(names)]]
    then = [scene_with(thing, other, rng) for thing, other in zip(things, things[len(names) :], strict=False)]
    then = [*then[: len(names)], scene_with(things[0], things[1], rng)]
    taught, new = (
        [processor.image(render_scene(scene, processor.image_size, rng)) for scene in scenes]
        for scenes in (first, then)
    )
    texts = [f"this is {name}" for name in names]
    memory.write(images=taught, texts=texts)
    figure, axes = canvas(WIDTH, 56 + len(then) * (TILE + 22))
    cue, answer = GAP + TILE + 190, GAP + 2 * TILE + 210
    draw_text(axes, GAP, 26, "Taught, in one step")
    draw_text(axes, cue, 26, "A new picture: what the model says without the memory, and with it")
    for number, (scene, other) in enumerate(zip(then, new, strict=True)):
        y = 46 + number * (TILE + 22)
        draw_rule(axes, y - 8, WIDTH)
        if number < len(names):
            draw_tile(axes, GAP, y, TILE, to_picture(processor.picture(taught[number])), "")
            draw_folded(axes, 2 * GAP + TILE, y + 40, f"“{texts[number]}”", 24, lines=3)
        else:
            draw_folded(axes, GAP, y + 40, f"nothing more: {names[0]} and {names[1]} in one picture", 34, lines=3)
        draw_tile(axes, cue, y, TILE, to_picture(processor.picture(other)), "")
        said = memory.recalled(image=other)
        draw_text(axes, answer, y + 40, caption_of(trained, other[None]), QUIET)
        with_it = caption_of(trained, other[None], recalled=said.tokens)
        shown = {Entity(thing.colour, thing.shape) for thing in scene.things}
        theirs = {thing: name for thing, name in zip(things, names, strict=False) if thing in shown}
        query = Query("with", "", "", (), None, theirs, scene)
        right = whole_caption(Answer(query, with_it, "", (), said.surest))
        draw_text(axes, answer, y + 70, with_it, RIGHT if right else WRONG)
        draw_text(axes, answer, y + 100, f"sure of it by {said.surest:.0%}", QUIET)
    pixels = render(figure).permute(1, 2, 0).numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).quantize(192, dither=Image.Dither.NONE).save(path, optimize=True)


def _spread(count: int, wanted: int) -> list[int]:
    """Positions spread evenly over ``range(count)``, without its ends."""
    return np.linspace(0, count - 1, wanted + 2).astype(int)[1:-1].tolist()


def _another_picture(dataset: ScenesDataset, row: int) -> Tensor:
    """The same scene laid out anew: other places within the same description, sizes and shades."""
    return dataset.processor.image(dataset.reader.another_picture(row, dataset.processor.image_size))


def main() -> None:
    """Draw what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("network", "result", "speaks"))
    parser.add_argument("--run", type=Path, default=Path("checkpoints/quickstart"), help="for result and speaks: a run")
    flags = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    if flags.what == "network":
        path = FIGURES / "network.svg"
        draw_network(path)
    else:
        path = FIGURES / f"{flags.what}.png"
        (draw_result if flags.what == "result" else draw_speaks)(flags.run, path)
    logger.info("wrote %s, %d kB", path, path.stat().st_size // 1000)


if __name__ == "__main__":
    main()
