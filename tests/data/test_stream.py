"""Streaming against the mapped dataset and against files whose rows are known; damaged shards; resuming."""

import shutil

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from bitgen.data import shards
from bitgen.data.bad_records import BadRecord
from bitgen.data.collate import Collator, build_loader
from bitgen.data.dataset import PairDataset
from bitgen.data.record_writer import write_dataset
from bitgen.data.records import DatasetInfo, Record
from bitgen.data.sampler import SampleKey
from bitgen.data.shards import open_shards
from bitgen.data.stream import StreamDataset
from support.data import encode, write_images


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(shards, "_FIRST_WAIT", 0.0)


@pytest.fixture(scope="module")
def records():
    def png(index: int) -> bytes:
        return encode(Image.new("RGB", (9, 7), (index, 255 - index, 3 * index % 256)))

    def captions(index: int) -> list[str]:
        return [f"image {index} seen from {where}" for where in ("afar", "near")[: 1 + index % 2]]

    return [Record(f"{index}.png", png(index), captions(index)) for index in range(60)]


@pytest.fixture
def arrow_folder(tmp_path, records, monkeypatch):
    """Sixty images in several Arrow files of several record batches."""
    monkeypatch.setattr("bitgen.data.arrow_folder._BATCH_BYTES", 600)
    monkeypatch.setattr("bitgen.data.arrow_folder._SHARD_BYTES", 2000)
    write_images(tmp_path / "arrow", records)
    return tmp_path / "arrow"


@pytest.fixture
def parquet_folder(tmp_path, records):
    """The same in four uneven Parquet shards of seven rows a row group, images as `datasets` stores them."""
    folder = tmp_path / "parquet"
    folder.mkdir()
    for number, (start, stop) in enumerate([(0, 20), (20, 21), (21, 55), (55, 60)]):
        part = records[start:stop]
        images = [{"bytes": record.payload, "path": record.image_id} for record in part]
        table = pa.table({"image": images, "captions": [record.captions for record in part]})
        pq.write_table(table, folder / f"train-{number}.parquet", row_group_size=7)
    return folder


def stream(path, processor, **options) -> StreamDataset:
    return StreamDataset([open_shards(str(path))], [None], processor, **options)


@pytest.mark.parametrize("kind", ["arrow_folder", "parquet_folder"])
def test_rows_are_those_of_the_files(kind, request, processor, records, arrow_folder):
    dataset = stream(request.getfixturevalue(kind), processor)
    mapped = PairDataset(arrow_folder, processor)
    assert len(dataset) == dataset.image_count == 60 and dataset.kind == "images"
    assert dataset.sources[0].num_files > 1 and len(dataset.sources[0].chunk_rows) > dataset.sources[0].num_files
    for index in np.random.default_rng(0).permutation(60):
        sample = dataset[SampleKey(int(index), 1)]
        assert sample["image_id"] == sample["index"] == index
        assert torch.equal(sample["pixel_values"], mapped.image_tensor(index))
        caption = records[index].captions[(1 + index) % len(records[index].captions)]
        assert sample["input_ids"].tolist() == processor.encode([caption])[0]
    assert list(dataset.iter_captions()) == [caption for record in records for caption in record.captions]
    assert "60 images in" in dataset.describe()
    with pytest.raises(IndexError):
        dataset[60]


def test_captions_take_turns_or_are_drawn(parquet_folder, processor, records):
    turns, drawn = (stream(parquet_folder, processor, caption_sampling=way) for way in ("all", "one"))
    both = {tuple(ids) for ids in processor.encode(records[3].captions)}
    assert {tuple(turns[SampleKey(3, epoch)]["input_ids"].tolist()) for epoch in (4, 5)} == both
    draws = [tuple(drawn[SampleKey(3, epoch)]["input_ids"].tolist()) for epoch in range(20)]
    assert set(draws) == both
    again = stream(parquet_folder, processor, caption_sampling="one")
    assert draws == [tuple(again[SampleKey(3, epoch)]["input_ids"].tolist()) for epoch in range(20)]


def test_other_layouts_of_parquet(tmp_path, records, processor):
    plain = pa.table({"image": [r.payload for r in records], "text": [r.captions[0] for r in records],
                      "image_id": [r.image_id for r in records]})  # fmt: skip
    pq.write_table(plain, tmp_path / "one.parquet")
    dataset = stream(tmp_path / "one.parquet", processor)
    assert torch.equal(dataset[5]["input_ids"], torch.tensor(processor.encode(records[5].captions[:1])[0]))
    assert "one.parquet, row group 0, row 5" in dataset.record_name(5)
    (tmp_path / "more").mkdir()
    pq.write_table(plain.slice(0, 10), tmp_path / "more" / "a-0.parquet")
    pq.write_table(plain.slice(10, 10), tmp_path / "more" / "b-0.parquet")
    assert len(stream(tmp_path / "more" / "b-*.parquet", processor)) == 10
    assert len(stream(tmp_path / "more", processor)) == 20


@pytest.mark.parametrize("workers", [0, 2])
def test_from_object_storage(parquet_folder, processor, workers):
    remote = fsspec.filesystem("memory")
    for path in parquet_folder.iterdir():
        remote.pipe(f"/bucket/{path.name}", path.read_bytes())
    try:
        local = stream(parquet_folder, processor, lanes=2)
        far = stream("memory://bucket/train-*.parquet", processor, lanes=2)
        sampler = far.batch_sampler(8)
        for one, other in zip(
            build_loader(local, sampler.epoch(0), 0, Collator(2)),
            build_loader(far, sampler.epoch(0), workers, Collator(2)),
            strict=True,
        ):
            assert all(torch.equal(one[name], other[name]) for name in one)
    finally:
        remote.rm("/bucket", recursive=True)


# ---------------------------------------------------------------- going on


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("weights", [[None], [2.0, 1.0]])
def test_stopping_and_going_on_is_the_same_stream(
    arrow_folder, parquet_folder, processor, world_size, workers, weights
):
    def build() -> StreamDataset:
        sources = [open_shards(str(path)) for path in (arrow_folder, parquet_folder)[: len(weights)]]
        options = dict(seed=3, augment=True, caption_sampling="one", lanes=max(workers, 1), shuffle_buffer=9)
        return StreamDataset(sources, weights, processor, **options)

    seen = []
    for rank in range(world_size):
        dataset = build()
        epochs = [list(build_loader(dataset, dataset.batch_sampler(4, rank, world_size).epoch(e), workers, Collator(2)))
                  for e in (0, 1)]  # fmt: skip
        fresh = build()
        rest = build_loader(fresh, fresh.batch_sampler(4, rank, world_size).epoch(1, 3), workers, Collator(2))
        for one, other in zip(epochs[1][3:], rest, strict=True):
            assert all(torch.equal(one[name], other[name]) for name in one)
        seen.append([index for batch in epochs[0] for index in batch["image_ids"].tolist()])
    assert len({len(own) for own in seen}) == 1
    together = sum(seen, [])
    assert len(together) >= len(dataset) - 4 * world_size
    if weights == [None]:
        assert len(set(together)) == len(together)


def test_workers_change_nothing_but_the_reading(parquet_folder, processor):
    dataset = stream(parquet_folder, processor, lanes=2, shuffle_buffer=9)
    batches = [list(build_loader(dataset, dataset.batch_sampler(4).epoch(0), w, Collator(2))) for w in (0, 1, 2)]
    for several in zip(*batches, strict=True):
        assert all(torch.equal(several[0][name], other[name]) for other in several[1:] for name in other)


def test_a_worker_reads_each_of_its_chunks_once(parquet_folder, processor):
    dataset = stream(parquet_folder, processor, shuffle_buffer=20)
    read, plain = [], dataset.sources[0].read
    dataset.sources[0].read = lambda chunk: read.append(chunk) or plain(chunk)
    for batch in dataset.batch_sampler(4).epoch(0):
        for key in batch:
            dataset[key]
        assert sum(map(len, dataset._cache.values())) <= dataset._cached_rows
    assert sorted(read) == list(range(len(dataset.sources[0].chunk_rows)))


# ---------------------------------------------------------------- bad input


def test_bad_records_are_replaced_named_and_counted(tmp_path, records, processor):
    damaged = [*records[:20]]
    damaged[4] = Record("half.png", damaged[4].payload[:40], ["half"])
    damaged[5] = Record("none.png", damaged[5].payload, ["  "])
    damaged[19] = Record("empty.png", b"", ["empty"])
    write_images(tmp_path / "d", damaged)
    dataset = stream(tmp_path / "d", processor)
    for index, instead, reason in ((4, 6, "cannot be decoded"), (5, 6, "no caption"), (19, 0, "cannot be decoded")):
        sample = dataset[SampleKey(index, 2)]
        expected = dataset[SampleKey(instead, 2)]
        assert sample["index"] == sample["image_id"] == instead
        assert torch.equal(sample["pixel_values"], expected["pixel_values"])
        assert (
            reason in sample["skipped"].reason
            and f"record {index} ({damaged[index].image_id})" in sample["skipped"].message
        )
        assert "skipped" not in expected
    batches = list(build_loader(dataset, dataset.batch_sampler(5).epoch(0), 2, Collator(2)))
    assert [len(batch["input_ids"]) for batch in batches] == [5] * 4
    skipped = [record for batch in batches for record in batch.get("skipped", [])]
    assert sorted(record.message.split("(")[1].split(")")[0] for record in skipped) == [
        "empty.png",
        "half.png",
        "none.png",
    ]


def test_features_with_nan_are_skipped(tmp_path, processor):
    rows = np.ones((4, 1, 2), dtype=np.float16)
    rows[2, 0, 1] = np.nan
    info = DatasetInfo("features", "made up", feature_shape=(1, 2), feature_dtype="float16")
    write_dataset(tmp_path / "f", [Record(f"{i}", row.tobytes(), ["a"]) for i, row in enumerate(rows)], info)
    for dataset in (stream(tmp_path / "f", processor), PairDataset(tmp_path / "f", processor, replace_bad=True)):
        assert dataset.feature_shape == (1, 2)
        sample = dataset[2]
        assert sample["index"] == 3 and "NaN" in sample["skipped"].reason and "(2)" in sample["skipped"].message


def test_nothing_usable_is_an_error(tmp_path, processor):
    write_images(tmp_path / "d", [Record("x", b"x", ["a"])] * 3)
    with pytest.raises(BadRecord, match="no record can be used"):
        stream(tmp_path / "d", processor)[1]


def test_truncated_and_foreign_parquet_is_named_at_the_start(parquet_folder):
    path = parquet_folder / "train-2.parquet"
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"<html>404</html>", b""):
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match=r"Parquet shard .*train-2.parquet cannot be read .*write that shard again"
        ):
            open_shards(str(parquet_folder))
    pq.write_table(pa.table({"image": [b"x"], "caption": ["a"]}), path)
    with pytest.raises(ValueError, match=r"train-2.parquet: column .* in .*train-0.parquet"):
        open_shards(str(parquet_folder))
    pq.write_table(pa.table({"picture": [b"x"]}), parquet_folder / "train-0.parquet")
    with pytest.raises(ValueError, match=r"train-0.parquet has the columns \['picture'\]; it needs image"):
        open_shards(str(parquet_folder))


def test_a_shard_that_breaks_or_vanishes_later_is_named(parquet_folder, processor):
    dataset = stream(parquet_folder, processor)
    path = parquet_folder / "train-2.parquet"
    whole = bytearray(path.read_bytes())
    whole[4:200] = bytes(196)
    path.write_bytes(whole)
    with pytest.raises(ValueError, match=r"train-2.parquet, row group 0 cannot be read"):
        dataset[22]
    path.unlink()
    with pytest.raises(ValueError, match=r"train-2.parquet, row group 1 is gone"):
        dataset[30]


def test_passing_trouble_of_a_network_is_waited_out(parquet_folder, processor, monkeypatch):
    dataset = stream(parquet_folder, processor)
    plain, failures = dataset.sources[0]._open, [OSError("connection reset")] * 2
    monkeypatch.setattr(
        dataset.sources[0], "_open", lambda file: plain(file) if not failures else _raise(failures.pop())
    )
    assert dataset[3]["index"] == 3 and not failures


def _raise(error: Exception) -> None:
    raise error


def test_empty_folders_and_missing_ones(tmp_path):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "nowhere", tmp_path / "x*.parquet"):
        with pytest.raises(ValueError, match="no Parquet file is there.*data_prep"):
            open_shards(str(path))
    pq.write_table(
        pa.table({"image": pa.array([], pa.binary()), "text": pa.array([], pa.string())}), tmp_path / "e.parquet"
    )
    with pytest.raises(ValueError, match="hold no rows"):
        open_shards(str(tmp_path / "e.parquet"))


def test_damaged_arrow_shards(arrow_folder):
    path = sorted(arrow_folder.glob("*.arrow"))[1]
    whole = path.read_bytes()
    for content in (whole[:-400], whole[:100], b"", b"no arrow at all, but long enough to be read as a length"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{path.name} is damaged or truncated"):
            open_shards(str(arrow_folder))
    path.write_bytes(sorted(arrow_folder.glob("*.arrow"))[0].read_bytes())
    with pytest.raises(ValueError, match="declares 60"):
        open_shards(str(arrow_folder))
    (arrow_folder / "state.json").write_text("{}")
    with pytest.raises(ValueError, match="is damaged"):
        open_shards(str(arrow_folder))


def test_a_folder_with_brackets_in_its_name_is_a_folder(parquet_folder, tmp_path):
    shutil.copytree(parquet_folder, tmp_path / "coco [2017]")
    found = open_shards(str(tmp_path / "coco [2017]"))
    assert found.chunk_rows.tolist() == open_shards(str(parquet_folder)).chunk_rows.tolist()
    assert len(open_shards(f"{parquet_folder}/train-[02].parquet").chunk_rows) < len(found.chunk_rows)


def test_sources_of_different_kinds(arrow_folder, feature_folder, processor):
    with pytest.raises(ValueError, match="mixes images"):
        StreamDataset([open_shards(str(f)) for f in (arrow_folder, feature_folder)], [None, None], processor)


def test_huge_row_groups_are_warned_of(parquet_folder, monkeypatch, caplog):
    monkeypatch.setattr(shards, "_LARGE_CHUNK", 100)
    open_shards(str(parquet_folder))
    assert "row_group_size=100" in caplog.text
