"""Pictures of singular values: how fast they fall, and how much of a matrix a rank keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from bitgen.show.drawing import DPI, FONT, QUIET, render, shorten

_COLOURS = (
    "#2563eb",
    "#d97706",
    "#1a8f3c",
    "#9333ea",
    "#d0342c",
    "#0891b2",
    "#be185d",
    "#65a30d",
    "#4b5563",
    "#a16207",
)


def spectra_picture(
    groups: Mapping[str, Sequence[Tensor]], title: str, reference: Mapping[str, Tensor] | None = None
) -> Tensor:
    """Singular values and energy kept by rank, uint8 `[3, H, W]`.

    Args:
        groups: name -> singular values `[n]` of its matrices, falling. A line is their mean, a band from least to most.
        reference: name -> singular values of a matrix of the same shape without structure, drawn dashed in the
            colour of its name.
    """
    figure = Figure(figsize=(12.0, 5.2), dpi=DPI, layout="constrained", facecolor="white")
    decay, energy = figure.subplots(1, 2)
    for number, (name, values) in enumerate(groups.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        rows = np.stack([value.double().cpu().numpy() for value in values])
        _curves(decay, energy, rows, colour, shorten(name, 40))
        if reference is not None and name in reference:
            _curves(decay, energy, reference[name].double().cpu().numpy()[None], colour, None)
    decay.set_yscale("log")
    decay.set_ylabel("singular value / largest")
    decay.set_xlabel("number of the singular value / how many there are")
    energy.set_xscale("log", base=2)
    energy.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    energy.set_ylim(0, 1.02)
    energy.set_ylabel("share of the squared norm that rank r keeps")
    energy.set_xlabel("rank r")
    for axes in (decay, energy):
        axes.grid(color="#e5e7eb", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = decay.get_legend_handles_labels()
    if reference:
        handles.append(decay.plot([], [], color=QUIET, linestyle="--", linewidth=1.2)[0])
        labels.append("Gaussian entries, same shape")
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    figure.suptitle(title, fontfamily=FONT, fontsize=11, parse_math=False)
    return render(figure)


def _curves(decay: Axes, energy: Axes, rows: np.ndarray, colour: str, label: str | None) -> None:
    """One group in both panels; without a label it is a reference, and dashed."""
    largest = np.maximum(rows[:, :1], np.finfo(float).tiny)
    relative = np.maximum(rows / largest, 1e-7)  # below lies the rounding of float32
    squares = np.cumsum(rows**2, axis=1)
    kept = squares / np.maximum(squares[:, -1:], np.finfo(float).tiny)
    count = rows.shape[1]
    for axes, x, y in (
        (decay, (np.arange(count) + 1) / count, relative),
        (energy, np.arange(count) + 1, kept),
    ):
        if label is None:
            axes.plot(x, y[0], color=colour, linestyle="--", linewidth=1.0, alpha=0.7)
            continue
        axes.plot(x, y.mean(axis=0), color=colour, linewidth=1.6, label=label)
        if len(rows) > 1:
            axes.fill_between(x, y.min(axis=0), y.max(axis=0), color=colour, alpha=0.08, linewidth=0)
