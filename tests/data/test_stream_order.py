"""The streamed order against brute force: nothing lost, nothing twice, ranks alike, and any batch found again."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitgen.data.sampler import SampleKey
from bitgen.data.stream_order import Pieces, StreamBatchSampler

chunks = st.lists(st.integers(0, 12), min_size=1, max_size=20).map(lambda rows: np.array(rows, dtype=np.int64))
layouts = st.fixed_dictionaries(
    {
        "batch_size": st.integers(1, 5),
        "world_size": st.integers(1, 3),
        "lanes": st.integers(1, 4),
        "shuffle_buffer": st.integers(1, 30),
        "seed": st.integers(0, 2**40),
    }
)


def ranks_of(chunk_rows, weights, layout) -> list[StreamBatchSampler]:
    return [StreamBatchSampler(chunk_rows, weights, rank=rank, **layout) for rank in range(layout["world_size"])]


def fits(chunk_rows, layout) -> bool:
    return layout["batch_size"] * layout["world_size"] <= sum(int(rows.sum()) for rows in chunk_rows)


@given(chunks, layouts, st.integers(0, 3))
def test_every_row_once_but_for_the_last_incomplete_batch(rows, layout, epoch):
    if not fits([rows], layout):
        return
    ranks = ranks_of([rows], [None], layout)
    batches = [list(sampler.epoch(epoch)) for sampler in ranks]
    global_batch = layout["batch_size"] * layout["world_size"]
    assert {len(own) for own in batches} == {len(ranks[0])} == {int(rows.sum()) // global_batch}
    seen = [key for own in batches for batch in own for key in batch]
    assert all(len(batch) == layout["batch_size"] for own in batches for batch in own)
    assert all(key.epoch == epoch for key in seen)
    indices = [key.index for key in seen]
    assert len(set(indices)) == len(indices) > int(rows.sum()) - global_batch
    assert not indices or (min(indices) >= 0 and max(indices) < rows.sum())


@given(chunks, layouts, st.integers(0, 3), st.data())
def test_going_on_at_any_batch_gives_the_tail(rows, layout, epoch, data):
    if not fits([rows], layout):
        return
    sampler = ranks_of([rows], [None], layout)[-1]
    whole = list(sampler.epoch(epoch))
    start = data.draw(st.integers(0, len(whole)))
    assert list(sampler.epoch(epoch, start)) == whole[start:]


@given(chunks, chunks, st.tuples(st.integers(1, 5), st.integers(1, 5)), layouts)
def test_shares_of_a_mixture_are_exact_over_epochs(first, second, weights, layout):
    sizes = [int(first.sum()), int(second.sum())]
    if not fits([first, second], layout) or 0 in sizes:
        return
    sampler = StreamBatchSampler([first, second], weights, **{**layout, "batch_size": 1, "world_size": 1})
    epochs = 4
    keys = [key for epoch in range(epochs) for batch in sampler.epoch(epoch) for key in batch]
    assert len(keys) == epochs * sum(sizes)
    per_source = [[key for key in keys if key.index < sizes[0]], [key for key in keys if key.index >= sizes[0]]]
    for own, size, weight in zip(per_source, sizes, weights, strict=True):
        assert abs(len(own) / epochs - sum(sizes) * weight / sum(weights)) <= 1
        # Endless passes, one after the other: counts differ by one at most, and each pass shows a row once.
        assert max(Counter(own).values(), default=1) == 1
        counts = Counter(key.index for key in own)
        times = [*counts.values(), *[0] * (size - len(counts))]
        assert max(times) - min(times) <= 1


def test_rows_are_shuffled_within_windows_that_span_chunks_and_chunks_are_shuffled():
    rows = np.full(40, 10)
    sampler = StreamBatchSampler([rows], [None], 10, shuffle_buffer=50, seed=1)
    order = [key.index for batch in sampler.epoch(0) for key in batch]
    for window in range(8):
        of_chunks = {index // 10 for index in order[window * 50 : window * 50 + 50]}
        assert len(of_chunks) == 5 and of_chunks != set(range(window * 5, window * 5 + 5))
    in_batch = [len({index // 10 for index in order[start : start + 10]}) for start in range(0, 400, 10)]
    assert np.mean(in_batch) > 3
    orders = {tuple(key.index for key in next(StreamBatchSampler([rows], [None], 9, seed=s).epoch(e)))
              for s in range(3) for e in range(3)}  # fmt: skip
    assert len(orders) == 9


def test_each_lane_reads_its_own_chunks_and_holds_one_window():
    """A worker gets every `lanes`-th batch: what it reads is a few chunks at a time, and no other worker's."""
    rows = np.full(100, 10)
    sampler = StreamBatchSampler([rows], [None], 5, lanes=2, shuffle_buffer=40, seed=0)
    batches = list(sampler.epoch(0))
    read = [[key.index // 10 for batch in batches[lane::2] for key in batch] for lane in range(2)]
    assert len(set(read[0]) & set(read[1])) <= 1
    for own in read:
        spans = [max(i for i, c in enumerate(own) if c == chunk) - own.index(chunk) for chunk in set(own)]
        assert max(spans) < 40


def test_sources_are_dealt_out_evenly_along_the_epoch():
    sampler = StreamBatchSampler([np.full(60, 10), np.full(60, 10)], [3, 1], 100, shuffle_buffer=100, seed=0)
    shares = [np.mean([key.index < 600 for key in batch]) for batch in sampler.epoch(0)]
    assert all(0.6 <= share <= 0.9 for share in shares) and np.mean(shares) == pytest.approx(0.75)


def test_pieces_cut_and_expand():
    pieces = Pieces(np.array([100, 0, 50]), np.array([3, 2, 4]), np.array([7, 8, 9]))
    whole = [100, 101, 102, 0, 1, 50, 51, 52, 53]
    for start in range(10):
        for stop in range(start, 10):
            numbers, epochs = pieces.cut(start, stop).expand()
            assert numbers.tolist() == whole[start:stop]
            assert epochs.tolist() == [7, 7, 7, 8, 8, 9, 9, 9, 9][start:stop]


def test_too_large_a_batch_and_the_identity():
    with pytest.raises(ValueError, match=r"batch_size 6 x 2 processes is larger .* \(10 images\).*--batch_size 5"):
        StreamBatchSampler([np.array([4, 6])], [None], 6, world_size=2)
    sampler = StreamBatchSampler([np.array([4, 6])], [None], 2, lanes=3)
    other = StreamBatchSampler([np.array([6, 4])], [None], 2, lanes=3)
    assert sampler.identity()["num_workers (streaming)"] == 3
    assert sampler.identity() != other.identity()
    assert isinstance(next(sampler.epoch(0))[0], SampleKey)
