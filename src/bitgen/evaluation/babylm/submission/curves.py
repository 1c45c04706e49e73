"""The learning curves of a submission as one picture: scores against words seen."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from bitgen.evaluation.babylm.submission.published import COMPONENTS
from bitgen.evaluation.babylm.submission.scores import CHANCE, CORRELATIONS, READING_FIGURES
from bitgen.machine.files import write_whole
from bitgen.show.drawing import DPI, FONT, QUIET, shorten
from bitgen.training.budget import MILLION

Points = Sequence[tuple[float, float]]

# Told apart in grey and by most colour-blind people; the line of a set has its colour in every picture.
_COLOURS = {
    "blimp": "#1d4ed8",
    "supplement": "#d97706",
    "ewok": "#059669",
    "entity_tracking": "#db2777",
    "comps": "#7c3aed",
    "global_piqa_parallel": "#0891b2",
    "global_piqa_nonparallel": "#65a30d",
    "eye_tracking": "#111827",
    "self_paced_reading": "#9ca3af",
    "wug_adj": "#b91c1c",
    "wug_past": "#f59e0b",
}
_OTHER = "#6b7280"
_NAMES = COMPONENTS | {
    "supplement": "supplement",
    "entity_tracking": "entity tracking",
    "global_piqa_parallel": "PIQA parallel",
    "global_piqa_nonparallel": "PIQA non-parallel",
    "eye_tracking": "eye tracking",
    "self_paced_reading": "self-paced reading",
    "wug_adj": "WUG adjectives",
    "wug_past": "WUG past tense",
}
_LABEL_GAP = 15.0  # points between the labels of lines that end close together


def draw_curves(curves: Mapping[str, Points], title: str) -> Figure:
    """A line for each component, over words seen (logarithmic), labelled at its end; accuracies, correlations and
    reading have panels of their own, since their scales differ.

    Args:
        curves: by component, ``(words seen, score)`` with the fewest words first; those without points are left out.

    Raises:
        ValueError: there is no point at all.
    """
    curves = {name: points for name, points in curves.items() if points}
    if not curves:
        raise ValueError("there is no score to draw: the export says of no model how many words it has seen")
    panels = {
        "right, %": {n: p for n, p in curves.items() if n not in (*CORRELATIONS, *READING_FIGURES)},
        "Spearman's rho": {n: p for n, p in curves.items() if n in CORRELATIONS},
        "variance explained, %": {n: p for n, p in curves.items() if n in READING_FIGURES},
    }
    panels = {label: lines for label, lines in panels.items() if lines}
    heights = [3.0 if label == "right, %" else 1.25 for label in panels]
    figure = Figure(figsize=(9.0, 1.1 + 1.45 * sum(heights)), dpi=DPI, layout="constrained", facecolor="white")
    rows = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    every_x = [x for points in curves.values() for x, _ in points]
    for axes, (label, lines) in zip(rows, panels.items(), strict=True):
        _panel(axes, label, lines)
    _words_axis(rows[-1], min(every_x), max(every_x))
    for axes, lines in zip(rows, panels.values(), strict=True):
        _end_labels(axes, lines)
    figure.align_ylabels(rows)
    figure.suptitle(shorten(title, 90), fontfamily=FONT, fontsize=12, x=0.01, ha="left", parse_math=False)
    return figure


def write_curves(curves: Mapping[str, Points], title: str, path: str | Path) -> None:
    """:func:`draw_curves` as a PNG file, atomically.

    Raises:
        ValueError: nothing to draw, or it cannot be written.
    """
    content = io.BytesIO()
    draw_curves(curves, title).savefig(content, format="png", dpi=1.6 * DPI)
    write_whole(path, content.getvalue())


def _panel(axes: Axes, label: str, lines: Mapping[str, Points]) -> None:
    for name, points in lines.items():
        axes.plot(
            [x for x, _ in points],
            [y for _, y in points],
            color=_COLOURS.get(name, _OTHER),
            linewidth=2,
            marker="o",
            markersize=4,
            markeredgecolor="white",
            markeredgewidth=0.6,
            gid=name,
            zorder=3,
        )
    if label == "right, %":
        for chance in sorted({CHANCE.get(name, 50.0) for name in lines}):
            axes.axhline(chance, color="#9ca3af", linewidth=1, linestyle=(0, (2, 3)), zorder=1, gid="chance")
            axes.annotate(
                f"chance, {chance:.0f}",
                (0, chance),
                xycoords=("axes fraction", "data"),
                xytext=(3, 3),
                textcoords="offset points",
                fontsize=8,
                fontfamily=FONT,
                color=QUIET,
            )
    axes.set_ylabel(label, fontfamily=FONT, fontsize=10)
    axes.grid(color="#e5e7eb", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#9ca3af")
    axes.tick_params(colors="#374151", labelsize=9, length=3)
    axes.margins(y=0.1)


def _words_axis(axes: Axes, least: float, most: float) -> None:
    axes.set_xscale("log")
    axes.set_xlim(least / 1.12, most * 1.12)
    steps = [mantissa * 10.0**power for power in range(4, 11) for mantissa in (1, 2, 5)]
    axes.xaxis.set_major_locator(FixedLocator([step for step in steps if least / 1.12 <= step <= most * 1.12]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / MILLION:g}M"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("words seen, all passes counted", fontfamily=FONT, fontsize=10)


def _end_labels(axes: Axes, lines: Mapping[str, Points]) -> None:
    """Names at the ends of lines, moved apart where they would lie on one another."""
    axes.autoscale_view()
    low, high = axes.get_ylim()
    height = axes.get_window_extent().height * 72 / axes.figure.dpi or 200.0  # points
    ends = sorted((points[-1][1], name) for name, points in lines.items())
    wanted = [(y - low) / (high - low) * height for y, _ in ends]
    for place, (moved, (y, name)) in enumerate(zip(_apart(wanted), ends, strict=True)):
        axes.annotate(
            f"{_NAMES.get(name, shorten(name, 24))}  {_number(name, y)}",
            (lines[name][-1][0], y),
            xytext=(12, moved - wanted[place]),
            textcoords="offset points",
            fontsize=9,
            fontfamily=FONT,
            color=_COLOURS.get(name, _OTHER),
            va="center",
            annotation_clip=False,
            parse_math=False,
        )


def _number(name: str, value: float) -> str:
    return f"{value:.2f}" if name in (*CORRELATIONS, *READING_FIGURES) else f"{value:.1f}"


def _apart(places: Sequence[float]) -> list[float]:
    """Rising positions, moved as little as needed so that neighbours are :data:`_LABEL_GAP` apart: groups that touch
    are spread around their own middle."""
    groups: list[tuple[float, int]] = []  # the middle, and how many
    for place in places:
        middle, count = place, 1
        while groups and middle - (count - 1) / 2 * _LABEL_GAP < (
            groups[-1][0] + (groups[-1][1] - 1) / 2 * _LABEL_GAP + _LABEL_GAP
        ):
            before, others = groups.pop()
            middle, count = (before * others + middle * count) / (others + count), others + count
        groups.append((middle, count))
    return [middle + (number - (count - 1) / 2) * _LABEL_GAP for middle, count in groups for number in range(count)]
