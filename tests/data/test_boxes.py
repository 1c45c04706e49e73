"""Boxes as words: what is written is read again, against counted pixels; what is no box is refused or read as none."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitgen.data.questions.boxes import (
    EDGES,
    GRID,
    Box,
    box_text,
    checked_box,
    intersection_over_union,
    read_boxes,
    without_boxes,
)

CELL = 1 / GRID
SIDE = 40  # of a picture whose pixels are counted
_edges = st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted)
_lines = st.tuples(st.integers(0, GRID), st.integers(0, GRID)).filter(lambda pair: pair[0] != pair[1]).map(sorted)
_pixels = st.tuples(st.integers(0, SIDE), st.integers(0, SIDE)).map(sorted)


def pixels(box: tuple[int, ...]) -> np.ndarray:
    """A picture that is True inside the box, whose edges are pixels."""
    x1, y1, x2, y2 = box
    picture = np.zeros((SIDE, SIDE), dtype=bool)
    picture[y1:y2, x1:x2] = True
    return picture


@given(_lines, _lines)
def test_a_box_on_the_grid_is_read_as_it_was(across, along) -> None:
    marks = f"<b{across[0]}><b{along[0]}><b{across[1]}><b{along[1]}>"
    box = Box(across[0] / GRID, along[0] / GRID, across[1] / GRID, along[1] / GRID)
    assert box_text(box) == marks
    assert read_boxes(marks) == [box]


@given(_edges, _edges)
def test_an_edge_moves_by_half_a_cell_at_most_and_a_thin_box_becomes_the_cell_of_its_middle(across, along) -> None:
    (read,) = read_boxes(box_text(Box(across[0], along[0], across[1], along[1])))
    assert read is not None, "what is written is a box, however thin"
    for (low, high), first, last in ((across, read.x1, read.x2), (along, read.y1, read.y2)):
        assert 0 <= first < last <= 1
        near = CELL / 2 + 1e-9
        if abs(first - low) > near or abs(last - high) > near:
            assert high - low <= CELL + 1e-9 and last - first == CELL
            assert first <= (low + high) / 2 <= last


@pytest.mark.parametrize(
    ("box", "marks"),
    [
        ((0, 0, 1, 1), "<b0><b0><b32><b32>"),
        ((0.5, 0.25, 0.5001, 0.75), "<b16><b8><b17><b24>"),
        ((0.999, 0.0, 1.0, 0.001), "<b31><b0><b32><b1>"),
        ((1 / 64 + 0.001, 0.1, 3 / 64 - 0.001, 0.9), "<b1><b3><b2><b29>"),  # under a cell, astride of two
    ],
)
def test_boxes_at_the_edge_and_thinner_than_a_cell(box, marks: str) -> None:
    assert box_text(Box(*box)) == marks


@given(_pixels, _pixels, _pixels, _pixels)
def test_iou_is_that_of_counted_pixels(x, y, u, v) -> None:
    one, other = (x[0], y[0], x[1], y[1]), (u[0], v[0], u[1], v[1])
    shown, hidden = pixels(one), pixels(other)
    whole = (shown | hidden).sum()
    expected = (shown & hidden).sum() / whole if whole else 0.0
    boxes = [Box(*(edge / SIDE for edge in edges)) for edges in (one, other)]
    assert intersection_over_union(*boxes) == pytest.approx(expected)
    assert intersection_over_union(*reversed(boxes)) == pytest.approx(expected)
    assert boxes[0].area == pytest.approx(shown.mean())


def test_a_box_turned_over_fills_nothing() -> None:
    assert Box(0.6, 0.1, 0.2, 0.9).area == 0
    assert intersection_over_union(Box(0.6, 0.1, 0.2, 0.9), Box(0, 0, 1, 1)) == 0


@given(_pixels, _pixels)
def test_a_box_holds_its_pixels_and_its_centre(x, y) -> None:
    box = Box(*(edge / SIDE for edge in (x[0], y[0], x[1], y[1])))
    inside = pixels((x[0], y[0], x[1], y[1]))
    middles = [[box.holds((column + 0.5) / SIDE, (row + 0.5) / SIDE) for column in range(SIDE)] for row in range(SIDE)]
    assert np.array_equal(np.array(middles), inside)
    assert box.holds(*box.centre)


@pytest.mark.parametrize(
    ("edges", "says"),
    [
        ((0.1, 0.1, 0.2), "four numbers"),
        ((0.1, 0.1, 0.2, 0.2, 0.3), "four numbers"),
        ((), "four numbers"),
        ("0101", "four numbers"),
        ((0.1, "0.1", 0.2, 0.2), "four numbers"),
        ((0.1, None, 0.2, 0.2), "four numbers"),
        ((-0.01, 0.1, 0.2, 0.2), "outside its picture"),
        ((0.1, 0.1, 1.01, 0.2), "outside its picture"),
        ((0.1, float("nan"), 0.2, 0.2), "outside its picture"),
        ((0.1, 0.1, float("inf"), 0.2), "outside its picture"),
        ((12, 20, 64, 80), "outside its picture"),  # pixels
        ((0.2, 0.1, 0.2, 0.2), "is empty: left must be less than right"),
        ((0.3, 0.1, 0.2, 0.2), "is empty"),
        ((0.1, 0.2, 0.2, 0.2), "is empty"),
        ((0.1, 0.3, 0.2, 0.2), "is empty"),
    ],
)
def test_what_is_no_box_is_refused(edges, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        checked_box(edges)


def test_what_is_a_box_is_taken() -> None:
    box = checked_box([0, 0.25, 1, 0.5])
    assert box == Box(0.0, 0.25, 1.0, 0.5) and all(isinstance(edge, float) for edge in box)


@pytest.mark.parametrize(
    ("text", "boxes"),
    [
        ("", []),
        ("a red star", []),
        ("<b3><b8><b7>", []),  # three marks
        ("<b3><b8> and <b7><b12>", []),
        ("<b3><b8><b7><b12>", [(3, 8, 7, 12)]),
        ("find <b3> <b8>\n<b7><b12> star; left <b0><b0><b32><b32>", [(3, 8, 7, 12), (0, 0, 32, 32)]),
        ("<b7><b8><b3><b12>", [None]),  # right before left
        ("<b3><b8><b3><b12>", [None]),
        ("<b3><b12><b7><b8>", [None]),  # bottom above top
        ("<b3><b8><b7><b33>", [None]),  # beyond the grid
        ("<b3><b8><b7><b12><b1><b2>", [(3, 8, 7, 12)]),
        ("<b3><b8><b7><b012>", []),
        ("<b-3><b8><b7><b12>", []),
        ("<b7><b8><b3><b12><b3><b8><b7><b12>", [None, (3, 8, 7, 12)]),
    ],
)
def test_marks_are_read_wherever_they_stand(text: str, boxes) -> None:
    assert read_boxes(text) == [box and Box(*(edge / GRID for edge in box)) for box in boxes]


@pytest.mark.parametrize(
    ("text", "without"),
    [("find <b3><b8><b7><b12> small red star;", "find small red star;"), ("<b1>", ""), ("  a  b ", "a b")],
)
def test_a_text_without_its_marks(text: str, without: str) -> None:
    assert without_boxes(text) == without


def test_there_is_a_mark_for_every_line_of_the_grid() -> None:
    assert len(EDGES) == len(set(EDGES)) == GRID + 1 and (EDGES[0], EDGES[-1]) == ("<b0>", f"<b{GRID}>")
