"""The order of a streamed epoch: a pure function of (seed, epoch, step), as that of a mapped one, but local.

1. Chunks (row groups, record batches) are shuffled, those of each pass through each source among themselves, and the
   sources' chunks dealt out evenly along the epoch.
2. That sequence is cut into one contiguous segment for each *lane*, a worker of a rank, of exactly the rows that its
   batches need: all ranks have the same number of batches, no row is in two segments, and only the rows of the last
   incomplete global batch are left out. A chunk on a cut is read by both neighbours, each taking its own rows.
3. Inside a lane, neighbouring chunks of ``shuffle_buffer`` rows or a little more are a *window*, whose rows are
   shuffled. A lane holds one window in memory at a time, whatever the size of the data.

Batch ``k`` of a rank belongs to lane ``k % lanes``, which is how a DataLoader hands batches to its workers: each worker
reads its own chunks alone. Going on at batch ``k`` computes where every lane is; nothing is read to get there.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from bitgen.data.quotas import most_passes, quotas, source_passes
from bitgen.data.sampler import SampleKey


class Pieces(NamedTuple):
    """Runs of neighbouring rows: the first row's number over all sources, how many, and the pass; int64 ``[n]``."""

    first: np.ndarray
    rows: np.ndarray
    epoch: np.ndarray

    def cut(self, start: int, stop: int) -> Pieces:
        """The pieces of positions ``start`` to ``stop`` of their concatenation."""
        ends = np.cumsum(self.rows)
        begins = ends - self.rows
        inside = slice(np.searchsorted(ends, start, side="right"), np.searchsorted(begins, stop, side="left"))
        low, high = np.maximum(begins[inside], start), np.minimum(ends[inside], stop)
        return Pieces(self.first[inside] + low - begins[inside], high - low, self.epoch[inside])

    def expand(self) -> tuple[np.ndarray, np.ndarray]:
        """Number and pass of every single row."""
        before = np.repeat(np.cumsum(self.rows) - self.rows, self.rows)
        offsets = np.arange(len(before)) - before
        return np.repeat(self.first, self.rows) + offsets, np.repeat(self.epoch, self.rows)


class StreamBatchSampler:
    """Batches of a rank as lists of :class:`SampleKey`: the row's number over all sources, and the pass it is seen in.

    Args:
        chunk_rows: rows of the chunks of each source, in the order of the sources and their files.
        weights: of each source; None joins them.
        batch_size: samples a batch of one rank.
        rank, world_size: which of the ranks this is.
        lanes: workers of each rank (at least 1).
        shuffle_buffer: rows shuffled together.
        seed: decides every order.

    Raises ``ValueError`` when one global batch is larger than the data.
    """

    def __init__(
        self,
        chunk_rows: Sequence[np.ndarray],
        weights: Sequence[float | None],
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        lanes: int = 1,
        shuffle_buffer: int = 1000,
        seed: int = 0,
    ) -> None:
        assert batch_size > 0 and lanes > 0 and 0 <= rank < world_size and shuffle_buffer > 0
        self.chunk_rows, self.weights = list(chunk_rows), list(weights)
        self.sizes = [int(rows.sum()) for rows in self.chunk_rows]
        if batch_size * world_size > sum(self.sizes):
            raise ValueError(
                f"batch_size {batch_size} x {world_size} processes is larger than the dataset ({sum(self.sizes)} "
                f"images): use --batch_size {max(sum(self.sizes) // world_size, 1)} or less, or more data"
            )
        self.quotas = quotas(self.sizes, weights)
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.lanes, self.shuffle_buffer, self.seed = lanes, shuffle_buffer, seed % 2**63

    def __len__(self) -> int:
        """Batches an epoch, on every rank."""
        return sum(self.sizes) // (self.batch_size * self.world_size)

    @property
    def passes_per_epoch(self) -> float:
        """How often an epoch shows the source that it shows most often."""
        return most_passes(self.quotas, self.sizes)

    def identity(self) -> dict[str, int | str]:
        """What else must be the same for a resumed run to see the same order."""
        layout = 0
        for rows in self.chunk_rows:
            layout = zlib.crc32(rows.astype("<i8").tobytes(), layout)
        return {
            "num_workers (streaming)": self.lanes,
            "shuffle_buffer": self.shuffle_buffer,
            "row groups of the shards (checksum)": layout,
            "weights of the mixed sources": str(self.weights),
        }

    # ---- the epoch's sequence ----

    def _pieces(self, epoch: int) -> Pieces:
        """All pieces of an epoch in their order, the same on every rank."""
        parts, places = [], []
        offset = 0
        for source, (rows, size, quota) in enumerate(
            zip(self.chunk_rows, self.sizes, self.quotas.tolist(), strict=True)
        ):
            firsts = np.cumsum(rows) - rows + offset
            own = []
            for number, start, stop in source_passes(size, quota, epoch):
                order = np.random.default_rng([self.seed, 1, source, number]).permutation(len(rows))
                whole = Pieces(firsts[order], rows[order], np.full(len(rows), number))
                own.append(whole.cut(start, stop))
            if own:
                joined = Pieces(*(np.concatenate(part) for part in zip(*own, strict=True)))
                parts.append(joined)
                places.append((np.cumsum(joined.rows) - joined.rows / 2) / max(quota, 1))
            offset += size
        # By how far along its own source a piece stands, so that every stretch holds the sources in their shares.
        order = np.argsort(np.concatenate(places), kind="stable")
        return Pieces(*(np.concatenate(part)[order] for part in zip(*parts, strict=True)))

    def _lane_batches(self, lane: int) -> int:
        return (len(self) - lane + self.lanes - 1) // self.lanes

    def _segment(self, pieces: Pieces, lane: int) -> Pieces:
        """What ``lane`` of this rank reads: segments follow one another lane by lane, and rank by rank inside."""
        sizes = [self._lane_batches(other) * self.batch_size for other in range(self.lanes)]
        start = sum(sizes[:lane]) * self.world_size + sizes[lane] * self.rank
        return pieces.cut(start, start + sizes[lane])

    def _rows(self, segment: Pieces, epoch: int, lane: int, start: int) -> Iterator[SampleKey]:
        """The rows of a lane in their order, from position ``start`` on."""
        ends = np.cumsum(segment.rows)
        total = int(ends[-1]) if len(ends) else 0
        position = window = 0
        while position < total:
            # Whole pieces, so that no chunk is read for two windows.
            last = min(int(np.searchsorted(ends, position + self.shuffle_buffer, side="left")), len(ends) - 1)
            end = int(ends[last])
            if end > start:
                rows, epochs = segment.cut(position, end).expand()
                order = np.random.default_rng([self.seed, 2, epoch, self.rank, lane, window]).permutation(len(rows))
                order = order[max(start - position, 0) :]
                yield from map(SampleKey, rows[order].tolist(), epochs[order].tolist())
            position, window = end, window + 1

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[list[SampleKey]]:
        """Yields this rank's batches of ``epoch`` from ``start_batch`` on."""
        pieces = self._pieces(epoch)
        rows = []
        for lane in range(self.lanes):
            done = max(0, (start_batch - lane + self.lanes - 1) // self.lanes) * self.batch_size
            rows.append(self._rows(self._segment(pieces, lane), epoch, lane, done))
        for batch in range(start_batch, len(self)):
            of_lane = rows[batch % self.lanes]
            yield [next(of_lane) for _ in range(self.batch_size)]
