import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitgen.data.sampler import ResumableBatchSampler, SampleKey

shapes = st.tuples(st.integers(1, 9), st.integers(1, 4), st.integers(0, 60), st.integers(0, 2**40), st.integers(0, 50))


def samplers(shape) -> list[ResumableBatchSampler]:
    batch_size, world_size, extra, seed, _ = shape
    length = batch_size * world_size + extra
    return [ResumableBatchSampler(length, batch_size, rank, world_size, seed) for rank in range(world_size)]


@settings(max_examples=60, deadline=None)
@given(shapes)
def test_ranks_are_disjoint_and_cover_a_prefix_of_the_permutation(shape):
    batch_size, world_size, _, _, epoch = shape
    ranks = samplers(shape)
    order = ranks[0].permutation(epoch).tolist()
    assert sorted(order) == list(range(ranks[0].dataset_len))
    batches = [list(sampler.epoch(epoch)) for sampler in ranks]
    assert {len(rank_batches) for rank_batches in batches} == {len(ranks[0])}
    assert len(ranks[0]) == ranks[0].dataset_len // (batch_size * world_size)
    seen = []
    for step in zip(*batches, strict=True):
        for batch in step:
            assert len(batch) == batch_size
            assert all(key.epoch == epoch for key in batch)
            seen += [key.index for key in batch]
    assert len(seen) == len(set(seen))
    assert seen == order[: len(ranks[0]) * batch_size * world_size]


@settings(max_examples=60, deadline=None)
@given(shapes, st.data())
def test_resuming_gives_the_tail(shape, data):
    sampler = samplers(shape)[-1]
    start = data.draw(st.integers(0, len(sampler)))
    assert list(sampler.epoch(shape[-1], start)) == list(sampler.epoch(shape[-1]))[start:]


@settings(max_examples=30, deadline=None)
@given(shapes)
def test_global_batches_do_not_depend_on_the_number_of_ranks(shape):
    batch_size, world_size, _, seed, epoch = shape
    ranks = samplers(shape)
    single = ResumableBatchSampler(ranks[0].dataset_len, batch_size * world_size, seed=seed)
    together = [sum(step, []) for step in zip(*(sampler.epoch(epoch) for sampler in ranks), strict=True)]
    assert together == list(single.epoch(epoch))


def test_order_changes_with_seed_and_epoch_but_not_with_time():
    first = ResumableBatchSampler(100, 10, seed=1)
    assert list(first.epoch(3)) == list(ResumableBatchSampler(100, 10, seed=1).epoch(3))
    orders = {
        tuple(ResumableBatchSampler(100, 10, seed=seed).permutation(epoch).tolist())
        for seed in range(5)
        for epoch in range(5)
    }
    assert len(orders) == 25


def test_iterating_starts_at_start_batch():
    sampler = ResumableBatchSampler(10, 2, start_batch=4)
    assert list(sampler) == list(sampler.epoch(0))[4:]
    assert isinstance(list(sampler)[0][0], SampleKey)


def test_global_batch_larger_than_the_dataset_is_an_error():
    with pytest.raises(ValueError, match=r"batch_size 6 x 2 processes is larger .* \(10 samples\).*--batch_size 5"):
        ResumableBatchSampler(10, 6, world_size=2)
    assert len(ResumableBatchSampler(10, 5, world_size=2)) == 1
