"""Visual features among text embeddings: placeholders, truncation, padding, and several samples in one row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from bitgen.guards.printable import printable

IMAGE_ID = -200  # where a token of a visual stands in input_ids
IGNORED = -100  # where nothing is learned
SIDES = ("right", "left")


class Sample(NamedTuple):
    """One text with its visuals: ``ids [T]`` with :data:`IMAGE_ID` at each visual token, ``labels [T]``, int64.

    ``kept``: of each visual, how many of its tokens stand in the text: all, unless the text was truncated.
    """

    ids: torch.Tensor
    labels: torch.Tensor
    kept: tuple[int, ...]


class Batch(NamedTuple):
    """Samples as rows, ``[B, T]`` each: ids, labels, attention mask (1 where a token is real) and positions.

    ``kept``: of each visual of the batch, in reading order, how many of its tokens stand there.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor
    kept: tuple[int, ...]


class Packed(NamedTuple):
    """Rows of several samples, ``[R, length]`` each; there is no attention mask, positions tell samples apart.

    ``document_ids``: which sample of its row a token belongs to, counted from 0; -1 where nothing is.
    ``order``: the samples in reading order; their visuals must be given in it. ``kept`` is in it already.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    position_ids: torch.Tensor
    document_ids: torch.Tensor
    order: tuple[int, ...]
    kept: tuple[int, ...]


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
    return Sample(ids.repeat_interleave(repeats), labels.repeat_interleave(repeats), tuple(lengths))


def truncate(sample: Sample, most: int) -> Sample:
    """The first ``most`` tokens of an expanded sample. A visual may be cut, or lost whole; ``kept`` says so."""
    left = int((sample.ids[:most] == IMAGE_ID).sum())
    kept = []
    for length in sample.kept:
        kept.append(min(length, left))
        left -= kept[-1]
    return Sample(sample.ids[:most], sample.labels[:most], tuple(kept))


class Truncations:
    """Counts what truncation takes away, with the first names, so that it is reported and not silent."""

    shown = 5

    def __init__(self) -> None:
        self.samples = self.tokens = self.visuals = self.unlearnable = 0
        self.names: list[str] = []

    def __call__(self, name: str, sample: Sample, most: int) -> Sample:
        """:func:`truncate`, counted."""
        cut = truncate(sample, most)
        if lost := len(sample.ids) - len(cut.ids):
            self.samples, self.tokens = self.samples + 1, self.tokens + lost
            self.visuals += sum(now < before for now, before in zip(cut.kept, sample.kept, strict=True))
            self.unlearnable += bool((cut.labels == IGNORED).all())
            if len(self.names) < self.shown:
                self.names.append(name)
        return cut

    def __str__(self) -> str:
        """One line for the log, such as "3 samples were truncated (a, b, c): ..."."""
        more = ["..."] if self.samples > len(self.names) else []
        names = ", ".join([*(printable(name, 80) for name in self.names), *more])
        return (
            f"{self.samples} samples were truncated ({names}): {self.tokens} tokens lost, {self.visuals} visuals cut, "
            f"{self.unlearnable} samples left without anything to learn"
        )


def collate(samples: Sequence[Sample], pad_id: int, side: str = "right") -> Batch:
    """Samples as rows of equal length, padded on the ``right`` for training, on the ``left`` for generation.

    Positions count real tokens from 0 and are 0 at padding.
    """
    assert side in SIDES
    longest = max(len(sample.ids) for sample in samples)
    shape = (len(samples), longest)
    ids, labels = torch.full(shape, pad_id), torch.full(shape, IGNORED)
    mask, positions = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    for row, sample in enumerate(samples):
        length = len(sample.ids)
        where = slice(0, length) if side == "right" else slice(longest - length, longest)
        ids[row, where], labels[row, where] = sample.ids, sample.labels
        mask[row, where], positions[row, where] = 1, torch.arange(length)
    return Batch(ids, labels, mask, positions, tuple(kept for sample in samples for kept in sample.kept))


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
    order = tuple(index for indices in rows for index in indices)
    return Packed(ids, labels, positions, documents, order, tuple(k for index in order for k in samples[index].kept))


def splice(
    embedding: nn.Module,
    input_ids: torch.Tensor,
    features: torch.Tensor | Sequence[torch.Tensor],
    kept: Sequence[int],
    attention_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Embeddings ``[B, T, H]`` of text and visuals (LLaVA, arXiv 2304.08485), a language model's ``inputs_embeds``.

    Args:
        embedding: the language model's input embedding module; its weight alone would miss Gemma's scale.
        input_ids: ``[B, T]`` with :data:`IMAGE_ID` once for each visual token.
        features: of each visual in reading order, ``[V, M, H]``, or ``[M_v, H]`` each where they differ.
        kept: of each visual, how many of its first tokens stand in the text (``Batch.kept``); 0 uses none of them.
        attention_mask: ``[B, T]``; where it is 0 the embedding is 0.

    Raises:
        ValueError: the visuals given are not those that the text has places for.
    """
    marks = input_ids == IMAGE_ID
    embeds = embedding(input_ids.clamp_min(0))
    if len(features) != len(kept):
        raise ValueError(f"the text has {len(kept)} visuals and features of {len(features)} are given")
    for number, (feature, count) in enumerate(zip(features, kept, strict=True)):
        if len(feature) < count:
            raise ValueError(f"visual {number} has {len(feature)} tokens and the text places for {count} of it")
    if int(marks.sum()) != sum(kept):
        raise ValueError(
            f"the text has places for {int(marks.sum())} visual tokens and {len(kept)} visuals give {sum(kept)}: a "
            "visual's number of tokens was counted wrongly"
        )
    if len(features):
        placed = torch.cat([feature[:count] for feature, count in zip(features, kept, strict=True)]).to(embeds.dtype)
        if placed.shape[1] != embeds.shape[2]:
            raise ValueError(f"features are {placed.shape[1]} wide and the language model {embeds.shape[2]}")
        embeds = embeds.masked_scatter(marks[..., None], placed)
    return embeds if attention_mask is None else embeds.masked_fill(attention_mask[..., None] == 0, 0)
