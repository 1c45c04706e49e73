"""Positions and visibility, against the plain definition written out token by token."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitgen.model.sequence_layout import sequence_layout

LIMIT = 5


def by_definition(mask: list[int], limit: int) -> tuple[list[int | None], list[set[int]]]:
    """Of one row: each real token's position (None: padding or too early to be read) and what it sees."""
    real = [index for index, flag in enumerate(mask) if flag][-limit:]
    positions = [real.index(i) if i in real else None for i in range(len(mask))]
    return positions, [{j for j in real if j <= i} for i in range(len(mask))]


@given(st.lists(st.lists(st.integers(0, 1), min_size=8, max_size=8), min_size=1, max_size=4))
def test_any_mask_means_the_same_in_two_and_in_three_dimensions(rows):
    mask = torch.tensor(rows)
    ids = torch.ones_like(mask)
    square = mask[:, None].expand(-1, 8, -1).tril()
    for given_mask in (mask, square):
        layout = sequence_layout(given_mask, ids, 0, LIMIT)
        assert int(layout.positions.max()) < LIMIT
        for row, flags in enumerate(rows):
            positions, seen = by_definition(flags, LIMIT)
            allowed = layout.allowed
            for index, position in enumerate(positions):
                if position is None:
                    continue
                assert layout.positions[row, index] == position
                visible = (
                    set(range(index + 1)) if allowed is None else set(allowed[row, 0, index].nonzero()[:, 0].tolist())
                )
                assert visible == seen[index]


def test_right_padding_needs_no_mask():
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
    layout = sequence_layout(mask, torch.ones_like(mask), 0, LIMIT)
    assert layout.allowed is None and layout.positions[0].tolist() == [0, 1, 2, 3]


def test_after_cached_tokens():
    mask = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]])
    layout = sequence_layout(mask, torch.ones(2, 1, dtype=torch.long), 3, LIMIT)
    assert layout.positions.tolist() == [[3], [2]] and layout.real.tolist() == [[1], [1]]
    assert layout.allowed[:, 0, 0].tolist() == [[True] * 4, [False, True, True, True]]


def test_a_long_sequence_is_read_from_its_end_with_a_warning(caplog):
    with caplog.at_level("WARNING"):
        layout = sequence_layout(None, torch.ones(1, 7, dtype=torch.long), 0, LIMIT)
    assert layout.positions[0].tolist() == [0, 0, 0, 1, 2, 3, 4]
    assert layout.real[0].tolist() == [0, 0, 1, 1, 1, 1, 1]
    assert "a sequence of 7 tokens is longer than max_seq_len=5: the last 5 are read" in caplog.text


@pytest.mark.parametrize(
    ("mask", "past", "message"),
    [
        (torch.ones(2, 3), 0, r"attention_mask is \[2, 3\]; .* \[1, 3\] or \[1, 3, 3\]"),
        (torch.ones(1, 3), 1, r"must be \[1, 4\]\."),
        (torch.ones(1, 3, 4), 1, "leave past_key_values out"),
        (torch.ones(1, 6), 3, "grown past max_seq_len=5"),
    ],
)
def test_masks_that_do_not_fit_are_named(mask, past, message):
    with pytest.raises(ValueError, match=message):
        sequence_layout(mask, torch.ones(1, 3, dtype=torch.long), past, LIMIT)
