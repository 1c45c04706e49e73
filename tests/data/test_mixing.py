import json
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitgen.config.sources import Source, parse_sources
from bitgen.data.collate import Collator, build_loader
from bitgen.data.dataset import PairDataset
from bitgen.data.mixing import MixedBatchSampler, MixedDataset
from bitgen.data.quotas import quotas
from bitgen.data.record_writer import write_dataset
from bitgen.data.records import DatasetInfo, Record
from bitgen.data.sampler import SampleKey
from bitgen.data.shards import open_shards
from bitgen.data.sidecar import SIDECAR
from bitgen.data.stream import StreamDataset
from bitgen.data.word_count import WordCounter
from bitgen.model.processing_bitgen import BitGenProcessor
from support.data import write_features


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data/a", [("data/a", None)]),
        ("data/a:3", [("data/a", None)]),
        ("data/a,data/b", [("data/a", None), ("data/b", None)]),
        ("data/a:2, data/b:.5", [("data/a", 2.0), ("data/b", 0.5)]),
        ("hf://datasets/o/n/*.parquet:2,s3://b/k:1", [("hf://datasets/o/n/*.parquet", 2.0), ("s3://b/k", 1.0)]),
        ("https://host:8000/a.parquet", [("https://host:8000/a.parquet", None)]),
    ],
)
def test_sources_as_written(text, expected):
    assert parse_sources(text) == [Source(*pair) for pair in expected]


@pytest.mark.parametrize(
    ("text", "named"),
    [("a,,b", "empty entry"), ("a:1,b", "b has no weight"), ("a:0,b:1", "weight of 0"), ("a:1,a:2", "a twice")],
)
def test_sources_that_make_no_sense(text, named):
    with pytest.raises(ValueError, match=named):
        parse_sources(text)


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=5), st.data())
def test_quotas_fill_an_epoch_exactly(sizes, data):
    weights = data.draw(st.lists(st.floats(0.01, 100), min_size=len(sizes), max_size=len(sizes)))
    counts = quotas(sizes, weights)
    assert counts.sum() == sum(sizes)
    for count, weight in zip(counts, weights, strict=True):
        assert abs(count - sum(sizes) * weight / sum(weights)) < 1.001
    assert quotas(sizes, [None] * len(sizes)).tolist() == sizes


def test_a_weighted_epoch_and_its_continuation():
    ranks = [MixedBatchSampler([30, 10], [1, 3], 4, rank, 2, seed=5) for rank in range(2)]
    seen: Counter = Counter()
    for epoch in range(6):
        batches = [list(sampler.epoch(epoch)) for sampler in ranks]
        keys = [key for own in batches for batch in own for key in batch]
        assert len(keys) == 40 and sum(key.index < 30 for key in keys) == 10
        seen.update(keys)
        for start in (0, 3):
            assert list(ranks[1].epoch(epoch, start)) == batches[1][start:]
    # Six epochs: twice through the first source, 18 times through the second.
    assert set(seen.values()) == {1}
    assert sorted(key for key in seen if key.index < 30) == [SampleKey(i, e) for i in range(30) for e in range(2)]
    assert sorted(key for key in seen if key.index >= 30) == [SampleKey(i, e) for i in range(30, 40) for e in range(18)]


@given(st.lists(st.integers(4, 40), min_size=1, max_size=4), st.data())
def test_no_pass_begins_before_the_one_before_it_is_at_its_end(sizes, data):
    weights = data.draw(st.lists(st.sampled_from([1.0, 2.0, 5.0]), min_size=len(sizes), max_size=len(sizes)))
    sampler = MixedBatchSampler(sizes, weights, 1, seed=3)
    keys = [key for epoch in range(4) for batch in sampler.epoch(epoch) for key in batch]
    first = 0
    for size in sizes:
        own = [key for key in keys if first <= key.index < first + size]
        assert [key.epoch for key in own] == [place // size for place in range(len(own))]
        assert len(set(own)) == len(own)
        first += size


@pytest.fixture
def two_folders(tmp_path, image_folder, processor):
    payload = PairDataset(image_folder, processor).reader.payload(3)
    records = [Record(name, payload, [f"other {name}"]) for name in ("3.png", "x.png", "4.png")]
    write_dataset(tmp_path / "other", records, DatasetInfo("images", "made up"))
    return image_folder, tmp_path / "other"


def test_numbers_run_over_all_sources(two_folders, processor, caplog):
    first, second = (PairDataset(folder, processor, seed=1) for folder in two_folders)
    mixed = MixedDataset([first, second], [None, None])
    assert "2 image ids occur in more than one source" in caplog.text and "3.png, 4.png" in caplog.text
    assert (len(mixed), mixed.image_count, mixed.num_captions) == (22, 13, 22)
    sample = mixed[SampleKey(20, 0)]
    assert (sample["image_id"], sample["index"]) == (11, 20)
    assert torch.equal(sample["input_ids"], second[1]["input_ids"]) and torch.equal(mixed.tokens(20), second.tokens(1))
    assert mixed.captions_of(11) == ["other x.png"] and mixed.record_name(20) == second.record_name(1)
    assert mixed.record_of_image(11) == second.record_of_image(1)
    assert torch.equal(mixed.image_tensor(11), second.image_tensor(1))
    assert list(mixed.iter_captions()) == [*first.iter_captions(), *second.iter_captions()]
    # The same name and the same picture, and still two images.
    assert mixed[SampleKey(19, 0)]["image_id"] != mixed[SampleKey(int(first.first_caption[3]), 0)]["image_id"]
    with pytest.raises(IndexError):
        mixed[22]
    assert sorted(key.index for batch in mixed.batch_sampler(2).epoch(0) for key in batch) == list(range(22))
    assert mixed.describe().endswith("/other: 3 images, 3 captions")


def test_a_weighted_loader_resumes_with_other_workers(two_folders, processor):
    mixed = MixedDataset([PairDataset(f, processor, seed=1, augment=True) for f in two_folders], [1.0, 2.0])
    sampler = mixed.batch_sampler(4)
    whole = list(build_loader(mixed, sampler.epoch(1), 0, Collator(2)))
    rest = list(build_loader(mixed, mixed.batch_sampler(4).epoch(1, 2), 2, Collator(2)))
    assert len(whole) == 5 and len(rest) == 3
    for one, other in zip(whole[2:], rest, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_features_of_two_encoders_are_refused(tmp_path, processor):
    """One would be noise to what learns to read the other."""
    folders = {name: write_features(tmp_path / name, [["a cat"], ["a dog"]]) for name in ("one", "other", "unknown")}
    for name in ("one", "other"):
        path = folders[name] / SIDECAR
        path.write_text(json.dumps(json.loads(path.read_text()) | {"encoder": name}))
    one, other, unknown = (PairDataset(folder, processor) for folder in folders.values())
    with pytest.raises(ValueError, match=r"features \[4, 6\] of one .* with features \[4, 6\] of other"):
        MixedDataset([one, other], [None, None])
    shards = {name: open_shards(str(folder)) for name, folder in folders.items()}
    with pytest.raises(ValueError, match="prepare all of them alike, with one encoder"):
        StreamDataset([shards["one"], shards["other"]], [None, None], processor)
    MixedDataset([one, unknown], [None, None])
    StreamDataset([shards["one"], shards["unknown"]], [None, None], processor)


def test_sources_of_different_kinds_are_refused(image_folder, feature_folder, processor):
    datasets = [PairDataset(folder, processor) for folder in (image_folder, feature_folder)]
    with pytest.raises(ValueError, match=r"mixes images .* with features \[4, 3\]"):
        MixedDataset(datasets, [None, None])


@pytest.mark.parametrize(
    ("weights", "max_length"), [([None, None], 64), ([1.0, 9.0], 64), ([99.0, 1.0], 64), ([1.0, 1.0], 8)]
)
def test_words_are_estimated_as_they_are_shown(tmp_path, processor, weights, max_length) -> None:
    """Each source by its share, and captions as far as they are seen: a budget of words plans its run by this."""
    short = write_features(tmp_path / "short", [["a dog"]] * 60)
    long = write_features(tmp_path / "long", [["a dog " * 6, "a dog"]] * 20)
    cut = BitGenProcessor(processor.tokenizer, image_size=14, max_length=max_length)
    datasets = [PairDataset(f, cut, caption_sampling=c) for f, c in ((short, "all"), (long, "one"))]
    mixed, count = MixedDataset(datasets, weights), WordCounter(processor.tokenizer)
    sampler = mixed.batch_sampler(4)
    shown = []
    for epoch in range(6):  # which caption of an image is drawn differs
        for batch in build_loader(mixed, sampler.epoch(epoch), 0, Collator(2)):
            shown.append(count(batch["input_ids"], batch["attention_mask"]))
    assert mixed.words_per_batch(sampler) == pytest.approx(sum(shown) / len(shown), rel=0.08)
