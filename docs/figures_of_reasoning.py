"""Draw the figures of docs/reasoning.md: `python docs/figures_of_reasoning.py --run DIR --results FILE`.

``reasoning.png``: what a model of configs/stage2_scenes.yaml answers to one question of each of six new scenes, with
its rationale and the boxes that it speaks of. ``hops.png``: accuracy against hops, from the JSON lines that
benchmarks/reasoning.py prints.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from bitgen.data.scenes.tables import render_table
from bitgen.evaluation.asking import readable
from bitgen.evaluation.reasoning import SPLITS, Answerer, problems
from bitgen.show.boxes import draw_boxes
from bitgen.show.drawing import RIGHT, WRONG, canvas, draw_folded, draw_rule, draw_tile, render
from bitgen.trained import open_model

FIGURES = Path(__file__).resolve().parent / "figures"
SEED, SCENES, TILE, GAP, WIDTH = 5, 6, 190, 14, 1000
LONGEST_CHAIN = 4
_SPLIT_OF = {0: "in distribution", 1: "in distribution", 2: "2 and 3 hops", 3: "2 and 3 hops", LONGEST_CHAIN: "4 hops"}


def draw_answers(run: Path, path: Path) -> None:
    """The first question with a hop of each of the first scenes, whatever the model answers."""
    trained = open_model(run)
    answerer = Answerer(trained.model, trained.processor)
    asked = [one for one in problems(SPLITS[0], 60, SEED) if one.question.hops > 0]
    shown = list({one.key: one for one in reversed(asked)}.values())[::-1][:SCENES]
    figure, axes = canvas(WIDTH, GAP + len(shown) * (TILE + GAP))
    for number, judged in enumerate(answerer.answer(shown, thinks=True)):
        y, said = GAP + number * (TILE + GAP), readable(judged.reply)
        picture = render_table(judged.problem.scene, 480, judged.problem.key)
        draw_rule(axes, y - GAP / 2, WIDTH)
        draw_tile(axes, GAP, y, TILE, np.asarray(draw_boxes(picture, said.boxes)), "")
        left = 2 * GAP + TILE
        draw_folded(axes, left, y + 6, judged.problem.question.text, 92, 2)
        draw_folded(axes, left, y + 52, said.why or "", 92, 4, "#374151")
        draw_folded(axes, left, y + 140, said.answer or "(no answer)", 92, 1, RIGHT if judged.right else WRONG)
    pixels = render(figure).permute(1, 2, 0).numpy()
    Image.fromarray(pixels).quantize(192, dither=Image.Dither.NONE).save(path, optimize=True)


def draw_hops(results: Sequence[Path], path: Path) -> None:
    """A line an arm and way, from files of as many models: chains of two and three hops are a split of their own, fewer
    are in distribution, and four were never in training. A bar reaches from the lowest model to the highest; of one
    model it is the interval of its questions."""
    lines = [json.loads(line) for file in results for line in file.read_text().splitlines()]
    figure = Figure(figsize=(6.4, 3.6), dpi=110, facecolor="white")
    axes = figure.add_subplot()
    ways = dict.fromkeys((one["arm"], one["way"]) for one in lines if one["name"].startswith("accuracy_"))
    for arm, way in ways:
        found: dict[int, list[dict]] = {}
        for one in lines:
            name = one["name"]
            if (one["arm"], one["way"]) == (arm, way) and name.endswith("_hops"):
                hops = int(name.split("_")[1])
                if one["split"] == _SPLIT_OF[hops]:
                    found.setdefault(hops, []).append(one)
        measured = sorted(found)
        values = [statistics.fmean(one["value"] for one in found[hops]) for hops in measured]
        ends = [_ends(found[hops]) for hops in measured]
        below = [value - low for value, (low, _) in zip(values, ends, strict=True)]
        above = [high - value for value, (_, high) in zip(values, ends, strict=True)]
        axes.errorbar(measured, values, yerr=[below, above], marker="o", capsize=3, label=f"{arm}, {way}")
    axes.set_xlabel("hops (4: never in training)")
    axes.set_ylabel("answered right, %")
    axes.set_xticks(range(LONGEST_CHAIN + 1))
    axes.set_ylim(0, 100)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    drawn = FigureCanvasAgg(figure)
    drawn.draw()
    Image.fromarray(np.asarray(drawn.buffer_rgba())[..., :3].copy()).quantize(128).save(path, optimize=True)


def _ends(models: list[dict]) -> tuple[float, float]:
    if len(models) == 1:
        return models[0]["low"], models[0]["high"]
    return min(one["value"] for one in models), max(one["value"] for one in models)


def main() -> None:
    """Draw both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("checkpoints/stage2_scenes"), help="a trained model")
    parser.add_argument(
        "--results", type=Path, nargs="+", help="what benchmarks/reasoning.py printed, a file a seed; none: no hops.png"
    )
    flags = parser.parse_args()
    draw_answers(flags.run, FIGURES / "reasoning.png")
    if flags.results is not None:
        draw_hops(flags.results, FIGURES / "hops.png")


if __name__ == "__main__":
    main()
