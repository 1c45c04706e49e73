"""Boxes as words: a picture is divided into GRID x GRID cells, and a box is written with its four edges.

An edge is one of GRID + 1 marks, ``<b0>`` to ``<b32>``, which are tokens of their own: left, top, right and bottom of a
box, in this order. Pix2Seq (arXiv 2109.10852) writes boxes so; left and right share their marks with top and bottom.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

GRID = 32
EDGES = tuple(f"<b{edge}>" for edge in range(GRID + 1))
EDGES_OF_A_BOX = 4
_BOX = re.compile(r"\s*".join([r"<b(\d{1,2})>"] * EDGES_OF_A_BOX))


class Box(NamedTuple):
    """Edges as fractions of the picture's width and height; y grows downwards."""

    x1: float
    y1: float
    x2: float
    y2: float

    @property
    def area(self) -> float:
        """Fraction of the picture; 0 for a box that is none."""
        return max(self.x2 - self.x1, 0.0) * max(self.y2 - self.y1, 0.0)

    @property
    def centre(self) -> tuple[float, float]:
        """Its middle, ``(x, y)``."""
        return (self.x1 + self.x2) / 2, (self.y1 + self.y2) / 2

    def holds(self, x: float, y: float) -> bool:
        """Whether a point lies inside, or on an edge."""
        return self.x1 <= x <= self.x2 and self.y1 <= y <= self.y2


def checked_box(edges: Sequence[float]) -> Box:
    """Four fractions as a box that lies inside the picture.

    Raises:
        ValueError: not four numbers, edges outside the picture, or an edge that is not before its opposite.
    """
    if len(edges) != EDGES_OF_A_BOX or not all(isinstance(edge, (int, float)) for edge in edges):
        raise ValueError(f"a box has four numbers (left, top, right, bottom), not {list(edges)!r:.80}")
    box = Box(*(float(edge) for edge in edges))
    if not all(0 <= edge <= 1 for edge in box):  # NaN too
        raise ValueError(f"box {_shown(box)} reaches outside its picture")
    if box.x1 >= box.x2 or box.y1 >= box.y2:
        raise ValueError(f"box {_shown(box)} is empty: left must be less than right, and top less than bottom")
    return box


def _shown(box: Box) -> str:
    return "(" + ", ".join(f"{edge:g}" for edge in box) + ")"


def box_text(box: Box) -> str:
    """The marks of a box, each edge at the nearest line of the grid; at least one cell each way."""
    x1, x2 = _edges(box.x1, box.x2)
    y1, y2 = _edges(box.y1, box.y2)
    return "".join(EDGES[edge] for edge in (x1, y1, x2, y2))


def _edges(low: float, high: float) -> tuple[int, int]:
    first, last = round(low * GRID), round(high * GRID)
    if first >= last:  # thinner than a cell: the cell that its middle is in
        first = min(int((low + high) / 2 * GRID), GRID - 1)
        last = first + 1
    return first, last


def read_boxes(text: str) -> list[Box | None]:
    """The boxes that a text writes, in order; None for four marks that are no box."""
    found: list[Box | None] = []
    for match in _BOX.finditer(text):
        edges = [int(edge) for edge in match.groups()]
        is_box = max(edges) <= GRID and edges[0] < edges[2] and edges[1] < edges[3]
        found.append(Box(*(edge / GRID for edge in edges)) if is_box else None)
    return found


def without_boxes(text: str) -> str:
    """A text without its marks, one space between words."""
    return " ".join(re.sub(r"<b\d{1,2}>", " ", text).split())


def intersection_over_union(one: Box, other: Box) -> float:
    """How far two boxes are the same, in [0, 1]."""
    shared = Box(max(one.x1, other.x1), max(one.y1, other.y1), min(one.x2, other.x2), min(one.y2, other.y2)).area
    whole = one.area + other.area - shared
    return shared / whole if whole else 0.0
