"""What pictures are drawn with: texts and tiles, in pixels from the top left, to uint8 `[3, H, W]` tensors."""

from __future__ import annotations

import textwrap
import warnings
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

DPI = 100
RIGHT, WRONG, QUIET = "#1a8f3c", "#d0342c", "#6b7280"
FONT = "DejaVu Sans"  # comes with matplotlib, so every machine draws the same picture


def to_picture(image: Tensor) -> np.ndarray | None:
    """uint8 `[3, H, W]` to `[H, W, 3]`. Anything else (features) has no picture: None. Who has normalised pixels makes
    a picture of them by `BitGenProcessor.picture`, which knows how they were normalised."""
    if image.ndim != 3 or image.shape[0] != 3 or image.dtype != torch.uint8:
        return None
    return image.permute(1, 2, 0).cpu().numpy()


def canvas(width: int, height: int) -> tuple[Figure, Axes]:
    """A white figure and its axes, whose units are pixels from the top left."""
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.axis("off")
    return figure, axes


def render(figure: Figure) -> Tensor:
    """The figure as uint8 `[3, H, W]`."""
    drawn = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        # Captions hold any script; letters that the font lacks are drawn as boxes and need no warning each.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        drawn.draw()
    pixels = np.asarray(drawn.buffer_rgba())[..., :3]
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).contiguous()


def draw_text(axes: Axes, x: float, y: float, text: str, colour: str = "black", **style: Any) -> None:
    """One text, its base line at `y` unless `style` says otherwise."""
    # parse_math: a caption with two dollar signs is no formula.
    axes.text(x, y, text, color=colour, fontsize=10, fontfamily=FONT, parse_math=False, **style)


def fold(text: str, width: int, lines: int) -> str:
    """A text in at most `lines` lines of `width` characters, cut with " ..."."""
    return textwrap.fill(text, width, max_lines=lines, placeholder=" ...")


def draw_folded(axes: Axes, x: float, y: float, text: str, width: int, lines: int, colour: str = "black") -> None:
    """A folded text whose top is at `y`."""
    draw_text(axes, x, y, fold(text, width, lines), colour, va="top", linespacing=1.4)


def draw_tile(
    axes: Axes, x: float, y: float, size: int, image: np.ndarray | None, name: str, frame: str | None = None
) -> None:
    """An image `[H, W, 3]` fitted into a square; without one, a grey square with its name. `frame`: a colour."""
    if image is None:
        axes.add_patch(Rectangle((x, y), size, size, facecolor="#d1d5db", edgecolor="none"))
        draw_text(axes, x + size / 2, y + size / 2, fold(name, 15, 5), "#374151", ha="center", va="center")
    else:
        height, width = image.shape[:2]
        scale = size / max(height, width)
        left, top = x + (size - width * scale) / 2, y + (size - height * scale) / 2
        axes.imshow(
            image,
            extent=(left, left + width * scale, top + height * scale, top),
            interpolation="antialiased",
            aspect="auto",
            zorder=1,
        )
    if frame is not None:
        axes.add_patch(Rectangle((x, y), size, size, fill=False, edgecolor=frame, linewidth=4, zorder=2))


def draw_rule(axes: Axes, y: float, width: int) -> None:
    """A thin line from edge to edge."""
    axes.plot((10, width - 10), (y, y), color="#e5e7eb", linewidth=1)


def shorten(text: str, width: int) -> str:
    """A text on one line of at most `width` characters."""
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 4].rstrip() + " ..."


def spread(count: int, wanted: int) -> list[int]:
    """`wanted` positions spread evenly over `range(count)`, or all of them when there are fewer."""
    return sorted({int(i) for i in np.linspace(0, count - 1, min(wanted, count)).round()})
