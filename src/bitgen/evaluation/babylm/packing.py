"""Sequences as a tree of their common beginnings, cut into rows that a transformer reads in one pass each.

The candidates of an item, and often many items, begin alike: of the 2.4M tokens of the fast sets one in ten differs.
Sorted, each sequence adds only what goes beyond its neighbour, so that a row is the tree in depth-first order; a token
sees its ancestors and itself, and its position is its depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

# A row ends at LONGEST tokens, or from SHORTEST on where the next sequence shares at most SHALLOW tokens: attention
# costs the square of a row, a cut costs reading the shared beginning again.
SHORTEST, LONGEST, SHALLOW = 160, 768, 8


class TokenSequence(NamedTuple):
    """What is to be scored: token ids, the positions whose tokens are predicted from all before them (each at least
    1), and where the text came from, for messages."""

    ids: list[int]
    wanted: list[int]
    origin: str

    @property
    def inputs(self) -> list[int]:
        """The ids that the predictions depend on."""
        return self.ids[: max(self.wanted, default=0)]


@dataclass
class Row:
    """Tokens of a tree in depth-first order.

    Attributes:
        tokens, parents, depths: by node; the parent of a root is -1.
        nodes, targets, slots: by prediction: the node it is made at, the token it is asked for, and where the answer
            belongs.
    """

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    nodes: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.tokens)

    def grow(self, path: list[int], inputs: Sequence[int]) -> list[int]:
        """Add what ``inputs`` has beyond ``path``, the nodes of its beginning; returns the nodes of all of it."""
        path = list(path)
        for depth in range(len(path), len(inputs)):
            self.tokens.append(inputs[depth])
            self.parents.append(path[-1] if path else -1)
            self.depths.append(depth)
            path.append(len(self.tokens) - 1)
        return path

    def visible(self, size: int) -> np.ndarray:
        """Which node (columns) each node (rows) sees, bool ``[size, size]``; padding sees itself."""
        seen = np.eye(size, dtype=bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                seen[node] |= seen[parent]
        return seen


def common_length(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    length = 0
    for one, other in zip(left, right, strict=False):
        if one != other:
            break
        length += 1
    return length


def slots_of(sequences: Sequence[TokenSequence]) -> list[int]:
    """Where the first answer of each sequence stands among all answers; last, how many there are."""
    return [0, *np.cumsum([len(sequence.wanted) for sequence in sequences], dtype=int).tolist()]


def pack(sequences: Sequence[TokenSequence]) -> list[Row]:
    """Rows that make every wanted prediction, each once."""
    starts, inputs = slots_of(sequences), [sequence.inputs for sequence in sequences]
    rows: list[Row] = []
    path: list[int] = []
    previous: list[int] = []
    for index in sorted((i for i, ids in enumerate(inputs) if ids), key=inputs.__getitem__):
        sequence, ids = sequences[index], inputs[index]
        shared = common_length(previous, ids)
        size = len(rows[-1]) if rows else LONGEST
        if size + len(ids) - shared > LONGEST or (size >= SHORTEST and shared <= SHALLOW):
            rows.append(Row())
            shared = 0
        row, previous = rows[-1], ids
        path = row.grow(path[:shared], ids)
        row.nodes += [path[position - 1] for position in sequence.wanted]
        row.targets += [sequence.ids[position] for position in sequence.wanted]
        row.slots += range(starts[index], starts[index + 1])
    return rows
