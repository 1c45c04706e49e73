"""What a memory holds, as one picture: slots, weights of the episodes, and how well what is read tells them apart."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor
from torch.nn import functional as F

from bitgen.guards.printable import printable
from bitgen.machine.files import write_whole
from bitgen.memory.address_space import IMAGE, TEXT
from bitgen.memory.episodes import MemoryState
from bitgen.memory.episodic_memory import EpisodicMemory
from bitgen.show.drawing import DPI, FONT, render, shorten
from bitgen.show.inline import as_image

_MOST_NAMES = 40


def draw_memory(memory: EpisodicMemory) -> Tensor:
    """A picture of a memory, uint8 ``[3, H, W]``.

    Top left the slots (posterior mean, a row a slot), top right the address of each episode (its weight on each slot),
    below the cosines of what each episode's image reads with every stored text: a memory that tells its episodes apart
    shows a bright diagonal; a ring marks each row's best. Sentences without an image read nothing: their rows are dark.

    Raises:
        ValueError: the memory is empty.
    """
    codes, episodes = memory.codes, memory.episodes
    read = codes.read(codes.halves(IMAGE), IMAGE).halves  # raises for an empty memory
    cosines = (F.normalize(read, dim=1) @ F.normalize(codes.seen(TEXT), dim=1).mT).cpu().numpy()
    names = [f"{_name(episode.id, 16)}: {_name(episode.text, 34)}" for episode in episodes]
    state = memory.state()
    figure = Figure(figsize=(12, 11), dpi=DPI, layout="constrained", facecolor="white")
    axes = figure.subplot_mosaic([["slots", "weights"], ["recall", "recall"]], height_ratios=(1, 1.6))
    mean = codes.precision.solve().mean.cpu().numpy()
    _heat(axes["slots"], mean, "what the slots hold (posterior mean)", "column of the code", "slot")
    _heat(axes["weights"], codes.weights.cpu().numpy(), "address of each episode", "slot", "")
    _names(axes["weights"], [_name(episode.id, 16) for episode in episodes])
    shown = axes["recall"].imshow(cosines, cmap="magma", vmax=1, interpolation="nearest")
    _whole_numbers(axes["recall"].xaxis)
    rows = codes.halves(IMAGE).any(dim=1).nonzero()[:, 0].cpu().numpy()
    best = cosines[rows].argmax(axis=1)
    axes["recall"].scatter(best, rows, s=20, facecolors="none", edgecolors="#38bdf8", linewidths=1.2)
    axes["recall"].set_title("text read from each image (rows) against stored texts; ring: the best")
    figure.suptitle(_summary(state), fontsize=11)
    axes["recall"].set_xlabel("stored text")
    _names(axes["recall"], names)
    figure.colorbar(shown, ax=axes["recall"], label="cosine")
    return render(figure)


def write_picture(memory: EpisodicMemory, path: str | Path) -> None:
    """:func:`draw_memory` as a PNG file, atomically. Raises ValueError for an empty memory or where it cannot write."""
    content = io.BytesIO()
    as_image(draw_memory(memory)).save(content, "PNG", optimize=True)
    write_whole(path, content.getvalue())


def _whole_numbers(axis: Axis) -> None:
    locator = axis.get_major_locator()
    assert isinstance(locator, MaxNLocator)
    locator.set_params(integer=True)


def _heat(axes: Axes, values: np.ndarray, title: str, across: str, down: str) -> None:
    # The largest entries are few: at their full range all others would look alike.
    limit = max(float(np.quantile(np.abs(values), 0.99)), 1e-12)
    shown = axes.imshow(values, aspect="auto", cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
    axes.set_title(title)
    _whole_numbers(axes.xaxis)
    _whole_numbers(axes.yaxis)
    axes.set_xlabel(across)
    axes.set_ylabel(down)
    axes.figure.colorbar(shown, ax=axes, pad=0.02)


def _name(text: str, width: int) -> str:
    """What a person wrote, as a label of one line: fonts have no control characters."""
    return shorten(printable(" ".join(text[: 4 * width].split())), width)


def _names(axes: Axes, names: Sequence[str]) -> None:
    """Names of the rows, as many as can be read."""
    rows = range(0, len(names), -(-len(names) // _MOST_NAMES))
    axes.set_yticks(rows)
    labels = [names[row] for row in rows]
    axes.set_yticklabels(labels, fontfamily=FONT, fontsize=8, parse_math=False)


def _summary(state: MemoryState) -> str:
    image, text = state.expected_recall
    return (
        f"{state.episodes} episodes, capacity {state.capacity}, slots used {state.utilization:.0%}; recalled first by "
        f"their own image {image:.0%}, by their own text {text:.0%}"
    )
