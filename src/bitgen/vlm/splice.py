"""Visual features among text embeddings: places for them in a text, several texts in one row, and the splice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from bitgen.model.likelihood import IGNORED

IMAGE_ID = -200  # where a token of a visual stands in input_ids


class Sample(NamedTuple):
    """One text: ``ids [T]`` with :data:`IMAGE_ID` at each visual token, and ``labels [T]``, both int64."""

    ids: torch.Tensor
    labels: torch.Tensor


class Packed(NamedTuple):
    """Rows of several samples, ``[R, length]`` each; there is no attention mask, positions tell samples apart.

    ``document_ids``: which sample of its row a token belongs to, counted from 0; -1 where nothing is.
    ``order``: the samples in reading order; their visuals must be given in it.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    position_ids: torch.Tensor
    document_ids: torch.Tensor
    order: tuple[int, ...]


def expand(ids: torch.Tensor, labels: torch.Tensor, lengths: Sequence[int]) -> Sample:
    """A text with one :data:`IMAGE_ID` a visual becomes one with ``lengths[i]`` of them for visual i.

    Raises:
        ValueError: the text has another number of visuals than ``lengths``.
    """
    marks = ids == IMAGE_ID
    if int(marks.sum()) != len(lengths):
        raise ValueError(
            f"the text has {int(marks.sum())} places for visuals and {len(lengths)} visuals are given; write one "
            "<image> or <video> for each"
        )
    repeats = torch.ones_like(ids)
    repeats[marks] = torch.tensor(list(lengths), dtype=ids.dtype, device=ids.device)
    labels = labels.masked_fill(marks, IGNORED)
    return Sample(ids.repeat_interleave(repeats), labels.repeat_interleave(repeats))


def pack(samples: Sequence[Sample], length: int, pad_id: int) -> Packed:
    """Puts samples into as few rows of ``length`` tokens as best-fit decreasing finds, none of them torn.

    The first label of each sample is -100, so that no sample is predicted from the one before it. Padding at a row's
    end counts as one more sample, with nothing to learn.

    Raises:
        ValueError: a sample is longer than a row.
    """
    rows: list[list[int]] = []
    free: list[int] = []
    for index in sorted(range(len(samples)), key=lambda index: (-len(samples[index].ids), index)):
        size = len(samples[index].ids)
        if size > length:
            raise ValueError(f"a sample of {size} tokens does not fit into a row of {length}; truncate it first")
        fitting = [row for row in range(len(rows)) if free[row] >= size]
        if not fitting:
            rows.append([])
            free.append(length)
        row = min(fitting, key=lambda row: free[row]) if fitting else len(rows) - 1
        rows[row].append(index)
        free[row] -= size
    shape = (len(rows), length)
    ids, labels = torch.full(shape, pad_id), torch.full(shape, IGNORED)
    positions, documents = torch.zeros(shape, dtype=torch.long), torch.full(shape, -1)
    for row, indices in enumerate(rows):
        start = 0
        for document, index in enumerate(indices):
            where = slice(start, start := start + len(samples[index].ids))
            ids[row, where], labels[row, where] = samples[index].ids, samples[index].labels
            labels[row, where.start] = IGNORED
            positions[row, where], documents[row, where] = torch.arange(where.stop - where.start), document
        positions[row, start:] = torch.arange(length - start)
    return Packed(ids, labels, positions, documents, tuple(index for indices in rows for index in indices))


def splice(embeds: torch.Tensor, input_ids: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """The visuals' tokens in the places that the texts keep for them (LLaVA, arXiv 2304.08485), ``[B, T, H]``.

    Args:
        embeds: ``[B, T, H]`` of the texts; what stands at a place is overwritten.
        input_ids: ``[B, T]`` with :data:`IMAGE_ID` once for each visual token.
        tokens: ``[n, H]`` of all visuals in reading order.

    Raises:
        ValueError: the texts keep another number of places than there are tokens, or these have another width.
    """
    places = input_ids == IMAGE_ID
    if len(tokens) != int(places.sum()):
        raise ValueError(
            f"the texts of this batch keep {int(places.sum())} places for visual tokens, and its pictures fill "
            f"{len(tokens)}: the data was prepared for another encoder or connector."
        )
    if tokens.shape[1] != embeds.shape[2]:  # which would scatter, into the wrong places
        raise ValueError(
            f"the connector gives tokens {tokens.shape[1]} wide and the language model reads {embeds.shape[2]}: "
            "the connector was made for another language model."
        )
    return embeds.masked_scatter(places.unsqueeze(-1), tokens.to(embeds.dtype))
