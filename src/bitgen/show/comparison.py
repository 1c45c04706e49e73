"""A picture of several models: a score against what each cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from torch import Tensor

from bitgen.show.drawing import DPI, FONT, QUIET, render, shorten

_BLUE = "#2563eb"


def comparison_picture(
    names: Sequence[str], scores: Sequence[float], costs: Mapping[str, Sequence[float]], score: str, title: str
) -> Tensor:
    """A panel for each cost, a labelled point for each model; uint8 `[3, H, W]`.

    Args:
        costs: label of an axis -> a cost of each model.
    """
    figure = Figure(figsize=(12.0, 5.4), dpi=DPI, layout="constrained", facecolor="white")
    panels = figure.subplots(1, len(costs), sharey=True, squeeze=False)[0]
    for axes, (label, values) in zip(panels, costs.items(), strict=True):
        axes.scatter(values, scores, s=36, color=_BLUE, zorder=3)
        middle = (min(values) + max(values)) / 2
        for (x, y), named in places(names, values, scores).items():
            left = x > middle
            axes.annotate(
                ", ".join(shorten(name, 28) for name in named),
                (x, y),
                xytext=(-7 if left else 7, 0),
                textcoords="offset points",
                ha="right" if left else "left",
                va="center",
                fontsize=8,
                fontfamily=FONT,
                color=QUIET,
                parse_math=False,
            )
        axes.set_xlabel(label)
        axes.margins(x=0.12, y=0.12)
        axes.locator_params(axis="x", nbins=5)  # numbers of millions need room
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.grid(color="#e5e7eb", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel(score, parse_math=False)
    figure.suptitle(title, fontfamily=FONT, fontsize=11, parse_math=False)
    return render(figure)


def places(names: Sequence[str], values: Sequence[float], scores: Sequence[float]) -> dict[tuple, list[str]]:
    """The names of the models at each place: those that lie nearer than a fiftieth of a panel share a label."""
    found: dict[tuple, list[str]] = {}
    reach = [max((max(own) - min(own)) / 50, 1e-9) for own in (values, scores)]
    for name, *place in zip(names, values, scores, strict=True):
        near = (p for p in found if all(abs(a - b) < r for a, b, r in zip(p, place, reach, strict=True)))
        found.setdefault(next(near, tuple(place)), []).append(name)
    return found
