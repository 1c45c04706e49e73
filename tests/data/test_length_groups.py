"""Batches of similar length: every sample once, resumable, the same for any number of ranks, and less padding."""

from __future__ import annotations

import pytest
import torch

from bitgen.data.length_groups import LengthGroupedBatchSampler
from bitgen.data.sampler import ResumableBatchSampler

LENGTHS = torch.randint(5, 300, (403,), generator=torch.Generator().manual_seed(0)).tolist()


def sampler(**changes):
    return LengthGroupedBatchSampler(**(dict(lengths=LENGTHS, batch_size=8, seed=3, group_batches=10) | changes))


def batches(source, epoch=0, start=0):
    return [[key.index for key in batch] for batch in source.epoch(epoch, start)]


def padding(found):
    return sum(max(LENGTHS[i] for i in batch) * len(batch) - sum(LENGTHS[i] for i in batch) for batch in found)


@pytest.mark.parametrize("epoch", [0, 1])
def test_an_epoch_shows_the_samples_that_it_shows_without_grouping(epoch):
    plain = batches(ResumableBatchSampler(len(LENGTHS), 8, seed=3), epoch)
    found = batches(sampler(), epoch)
    assert sorted(sum(found, [])) == sorted(sum(plain, []))
    assert padding(found) < 0.25 * padding(plain)


def test_long_batches_do_not_come_first_and_epochs_differ():
    longest = [max(LENGTHS[i] for i in batch) for batch in batches(sampler())]
    assert longest != sorted(longest) and longest != sorted(longest, reverse=True)
    assert batches(sampler(), 0) != batches(sampler(), 1) != batches(sampler(seed=4), 1)


def test_it_resumes_at_any_batch():
    whole = batches(sampler(), 2)
    assert batches(sampler(), 2, 17) == whole[17:]
    assert [[key.epoch for key in batch] for batch in sampler().epoch(2, 49)] == [[2] * 8]


def test_ranks_share_the_batches_that_one_process_has():
    whole = batches(sampler(batch_size=8))
    parts = [batches(sampler(batch_size=4, rank=rank, world_size=2)) for rank in (0, 1)]
    assert [a + b for a, b in zip(*parts, strict=True)] == whole


def test_other_lengths_are_another_order():
    assert sampler().identity() == sampler().identity()
    assert sampler().identity() != sampler(lengths=[*LENGTHS[1:], 1]).identity()
    assert sampler().identity() != sampler(group_batches=11).identity()
