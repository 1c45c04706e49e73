"""Text and pairs in one order: all of both, in the ratio that was asked for, resumable, the same over any ranks."""

from collections import Counter
from itertools import chain, islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitgen.data.collate import Collator, build_loader
from bitgen.data.dataset import PairDataset
from bitgen.data.sampler import ResumableBatchSampler, SampleKey
from bitgen.data.text_and_pairs import TextAndPairs, TextAndPairsSampler, TextKey
from bitgen.data.text_blocks import TextBlocks
from support.data import write_text_corpus

sizes = st.fixed_dictionaries(
    {
        "text_len": st.integers(8, 60),
        "pairs_len": st.integers(8, 60),
        "text_batch": st.integers(1, 4),
        "pair_batch": st.integers(1, 4),
        "ratio": st.floats(0.05, 0.95),
        "seed": st.integers(0, 2**40),
    }
)


def sampler_of(size: dict, rank: int = 0, world_size: int = 1, text_batch: int = 1, pair_batch: int = 1):
    """Batches are ``text_batch`` and ``pair_batch`` times those of ``size``."""
    text = ResumableBatchSampler(size["text_len"], size["text_batch"] * text_batch, rank, world_size, size["seed"])
    pairs = ResumableBatchSampler(size["pairs_len"], size["pair_batch"] * pair_batch, rank, world_size, size["seed"])
    return TextAndPairsSampler(text, pairs, size["ratio"])


def is_text(batch: list) -> bool:
    kinds = {isinstance(key, TextKey) for key in batch}
    assert len(kinds) == 1, "a batch is all text or all pairs"
    return kinds.pop()


@given(sizes, st.integers(0, 5))
def test_an_epoch_shows_each_batch_of_text_once_and_pairs_in_the_ratio(size, epoch):
    sampler = sampler_of(size)
    batches = list(sampler.epoch(epoch))
    assert len(batches) == len(sampler)
    text = [[SampleKey(*key) for key in batch] for batch in batches if is_text(batch)]
    assert text == list(sampler.text.epoch(epoch))
    pairs = len(batches) - len(text)
    assert pairs >= 1
    assert abs(pairs - len(text) * (1 - size["ratio"]) / size["ratio"]) <= 0.5 or pairs == 1
    assert [is_text(batch) for batch in batches] == [not sampler.is_pairs(number) for number in range(len(batches))]


@given(sizes)
def test_pairs_go_on_from_epoch_to_epoch_and_each_pass_shows_each_pair_once(size):
    sampler = sampler_of(size)
    epochs = -(-2 * len(sampler.pairs) // sampler.pair_batches)  # two passes through the pairs, at least
    batches = chain.from_iterable(sampler.epoch(epoch) for epoch in range(epochs))
    pairs = [batch for batch in batches if not is_text(batch)]
    length = len(sampler.pairs)
    for number in range(2):
        shown = pairs[number * length : (number + 1) * length]
        assert shown == list(sampler.pairs.epoch(number))
        indices = [key.index for batch in shown for key in batch]
        assert len(indices) == len(set(indices)) > size["pairs_len"] - size["pair_batch"]


@given(sizes, st.data())
def test_pairs_are_spread_evenly_also_over_the_end_of_an_epoch(size, data):
    sampler = sampler_of(size)
    kinds = [is_text(batch) for epoch in range(2) for batch in sampler.epoch(epoch)]
    start = data.draw(st.integers(0, len(kinds) - 1))
    stop = data.draw(st.integers(start, len(kinds)))
    expected = (stop - start) * sampler.pair_batches / len(sampler)
    assert abs(kinds[start:stop].count(False) - expected) < 1


@given(sizes, st.integers(0, 4), st.data())
def test_resuming_gives_the_tail(size, epoch, data):
    sampler = sampler_of(size)
    start = data.draw(st.integers(0, len(sampler)))
    assert list(sampler.epoch(epoch, start)) == list(sampler.epoch(epoch))[start:]


@given(sizes, st.integers(1, 2), st.integers(0, 4))
def test_the_union_over_ranks_is_what_one_rank_with_the_larger_batch_draws(size, world_size, epoch):
    ranks = [list(sampler_of(size, rank, world_size).epoch(epoch)) for rank in range(world_size)]
    alone = sampler_of(size, text_batch=world_size, pair_batch=world_size)
    assert [list(chain.from_iterable(step)) for step in zip(*ranks, strict=True)] == list(alone.epoch(epoch))


@given(sizes, st.integers(0, 4))
def test_text_alone_is_the_order_of_the_text(size, epoch):
    text = ResumableBatchSampler(size["text_len"], size["text_batch"], seed=size["seed"])
    sampler = TextAndPairsSampler(text, None, size["ratio"])
    assert len(sampler) == len(text)
    batches = list(sampler.epoch(epoch))
    assert all(is_text(batch) for batch in batches)
    assert [[SampleKey(*key) for key in batch] for batch in batches] == list(text.epoch(epoch))
    assert sampler.identity() == {"text_ratio": "text alone", "text_batch_size": size["text_batch"]}


def test_what_changes_the_order_is_part_of_the_identity():
    size = {"text_len": 20, "pairs_len": 20, "text_batch": 2, "pair_batch": 2, "ratio": 0.5, "seed": 1}
    identities = [sampler_of(size | change).identity() for change in ({}, {"ratio": 0.6}, {"text_batch": 3})]
    assert len({str(identity) for identity in identities}) == 3


@pytest.fixture
def text(tmp_path, tokenizer) -> TextBlocks:
    documents = [([0, *range(10 + n, 15 + n % 7 + n), 1], 4) for n in range(30)]
    return TextBlocks(write_text_corpus(tmp_path / "text", tokenizer, {"a": documents}), tokenizer, 16, seed=3)


@pytest.fixture
def mixed(text, image_folder, processor) -> TextAndPairs:
    return TextAndPairs(text, PairDataset(image_folder, processor, seed=3), 0.5, 2)


def test_samples_are_numbered_pairs_first(mixed):
    text, pairs = mixed.text, mixed.pairs
    assert len(mixed) == len(text) + len(pairs)
    assert mixed[SampleKey(7, 2)]["index"] == 7
    assert torch.equal(mixed[SampleKey(7, 2)]["input_ids"], pairs[SampleKey(7, 2)]["input_ids"])
    assert mixed[TextKey(3, 2)]["index"] == len(pairs) + 3
    for name, value in text[SampleKey(3, 2)].items():
        if name != "index":
            assert torch.equal(torch.as_tensor(mixed[TextKey(3, 2)][name]), torch.as_tensor(value))
    assert mixed.record_name(7) == pairs.record_name(7)
    assert mixed.record_name(len(pairs) + 3) == text.record_name(3)
    assert text.describe() in mixed.describe() and pairs.describe() in mixed.describe()


def test_text_alone_is_numbered_from_0(text):
    alone = TextAndPairs(text, None, 0.5, 2)
    assert len(alone) == len(text) and alone.describe() == text.describe()
    assert alone[TextKey(3)]["index"] == 3 and alone.record_name(3) == text.record_name(3)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_gives_both_kinds_of_batches(mixed, num_workers):
    sampler = mixed.batch_sampler(4)
    keys = list(sampler.epoch(0))
    batches = list(build_loader(mixed, keys, num_workers, Collator(2)))
    assert Counter(is_text(batch) for batch in keys).keys() == {True, False}
    for own, batch in zip(keys, batches, strict=True):
        assert ("document_ids" in batch) == is_text(own) and ("pixel_values" in batch) != is_text(own)
        assert len(batch["indices"]) == (2 if is_text(own) else 4)
        first = len(mixed.pairs) if is_text(own) else 0
        assert batch["indices"].tolist() == [first + key.index for key in own]


def test_the_ranks_of_a_dataset_share_its_batches(mixed):
    ranks = [mixed.batch_sampler(2, rank, 2) for rank in range(2)]
    alone = TextAndPairs(mixed.text, mixed.pairs, 0.5, 4).batch_sampler(4)
    together = [sum(step, []) for step in zip(*(rank.epoch(1) for rank in ranks), strict=True)]
    assert together == list(islice(alone.epoch(1), len(together))) and len(together) == len(alone)
