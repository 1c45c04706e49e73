import json
import pickle
import shutil

import datasets
import numpy as np
import pytest

from bitgen.data.record_writer import write_dataset
from bitgen.data.records import SIDECAR, DatasetInfo, Record, RecordReader, read_info
from bitgen.data.shards import open_shards

IMAGES = DatasetInfo(kind="images", source="made up")


def test_round_trip_of_images(image_folder):
    reader = RecordReader(image_folder)
    assert len(reader) == 10
    assert (reader.info.num_images, reader.info.num_captions) == (10, 19)
    third = reader[2]
    assert third.image_id == "2.png"
    assert third.payload.startswith(b"\x89PNG")
    assert third.captions == ["image 2 seen from afar", "image 2 seen from near", "image 2 seen from above"]
    assert reader.captions_per_image().tolist() == [1, 2, 3, 1, 2, 3, 1, 2, 3, 1]
    assert list(reader.iter_captions()) == [caption for row in range(10) for caption in reader.captions(row)]


def test_round_trip_of_quantised_features(feature_folder):
    reader = RecordReader(feature_folder)
    rows = np.load(feature_folder.parent / "rows.npy")
    for row in range(6):
        expected = (rows[row].astype(np.float64) - 7) * 0.5
        found = reader.info.dequantize(reader.payload(row))
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_round_trip_of_float_features(tmp_path, dtype):
    row = np.random.default_rng(1).normal(size=(5, 2)).astype(dtype)
    info = DatasetInfo("features", "made up", feature_shape=(5, 2), feature_dtype=dtype)
    write_dataset(tmp_path / "d", [Record("a", row.tobytes(), ["x"])], info)
    reader = RecordReader(tmp_path / "d")
    np.testing.assert_array_equal(reader.info.dequantize(reader.payload(0)), row.astype(np.float32))


def test_writing_streams_and_splits_into_batches(tmp_path, monkeypatch):
    monkeypatch.setattr("bitgen.data.arrow_folder._BATCH_BYTES", 3000)
    monkeypatch.setattr("bitgen.data.arrow_folder._SHARD_BYTES", 20000)
    taken = []

    def records():
        for index in range(50):
            taken.append(index)
            yield Record(str(index), bytes([index]) * 1000, [f"caption {index}"])

    info = write_dataset(tmp_path / "d", records(), IMAGES)
    reader = RecordReader(tmp_path / "d")
    assert info.num_images == len(reader) == len(taken) == 50
    assert all(reader[row] == Record(str(row), bytes([row]) * 1000, [f"caption {row}"]) for row in range(50))
    assert len(list((tmp_path / "d").glob("*.arrow"))) == 3
    assert len(reader._payloads.chunks) == 17


def test_reader_pickles_as_its_path(image_folder):
    data = pickle.dumps(RecordReader(image_folder))
    assert len(data) < 1000
    assert pickle.loads(data)[3].image_id == "3.png"


def test_failure_while_writing_leaves_nothing(tmp_path):
    def records():
        yield Record("a", b"x", ["a"])
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        write_dataset(tmp_path / "d", records(), IMAGES)
    assert list(tmp_path.iterdir()) == []


def test_failure_while_overwriting_keeps_the_old(image_folder):
    def records():
        yield Record("a", b"x", ["a"])
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        write_dataset(image_folder, records(), IMAGES, overwrite=True)
    assert len(RecordReader(image_folder)) == 10
    assert list(image_folder.parent.iterdir()) == [image_folder]


def test_writing_leaves_the_home_folder_alone(tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HF_HOME", str(home))
    write_dataset(tmp_path / "out" / "d", [Record("a", b"x", ["a"])], IMAGES)
    assert list(home.iterdir()) == []
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["d"]


def test_overwriting_only_what_is_a_dataset(image_folder, tmp_path):
    records = [Record("a", b"x", ["a"])]
    with pytest.raises(ValueError, match="--overwrite True"):
        write_dataset(image_folder, records, IMAGES)
    write_dataset(image_folder, records, IMAGES, overwrite=True)
    assert len(RecordReader(image_folder)) == 1
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    (photographs / "wedding.jpg").write_bytes(b"irreplaceable")
    with pytest.raises(ValueError, match="not a BitGen dataset"):
        write_dataset(photographs, records, IMAGES, overwrite=True)
    assert (photographs / "wedding.jpg").read_bytes() == b"irreplaceable"


def test_no_records_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no usable record"):
        write_dataset(tmp_path / "d", [], IMAGES)
    assert list(tmp_path.iterdir()) == []


def test_missing_folder_and_sidecar_say_how_to_make_one(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere does not exist: make it with `python data_prep/flickr8k.py"):
        RecordReader(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=rf"no {SIDECAR}.*data_prep/coco.py"):
        RecordReader(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="is a file"):
        RecordReader(tmp_path / "file")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: "{", "not valid JSON"),
        (lambda raw: "[]", "JSON object"),
        (lambda raw: json.dumps({**raw, "format_version": 99}), "format_version 99"),
        (lambda raw: json.dumps({**raw, "colour": "red"}), "colour"),
        (lambda raw: json.dumps({**raw, "kind": "sounds"}), "sounds"),
        (lambda raw: json.dumps({**raw, "feature_shape": [4]}), "feature_shape"),
        (lambda raw: json.dumps({**raw, "feature_dtype": "int4"}), "feature_dtype"),
        (lambda raw: json.dumps({**raw, "scale": None}), "scale and zero_point"),
        (lambda raw: json.dumps({**raw, "num_images": 7}), "declares 7"),
    ],
)
def test_wrong_sidecar_is_named(feature_folder, change, message):
    path = feature_folder / SIDECAR
    path.write_text(change(json.loads(path.read_text())))
    with pytest.raises(ValueError, match=message):
        RecordReader(feature_folder)


@pytest.mark.parametrize("size", [0, 100, -40])
def test_damaged_arrow_file_is_named(image_folder, size):
    path = next(image_folder.glob("*.arrow"))
    content = path.read_bytes()
    path.write_bytes(content[: size if size >= 0 else len(content) // 2])
    with pytest.raises(ValueError, match=r"dataset .* is damaged.*make it with"):
        RecordReader(image_folder)


def test_missing_arrow_file_is_named(image_folder):
    next(image_folder.glob("*.arrow")).unlink()
    with pytest.raises(ValueError, match="is damaged"):
        RecordReader(image_folder)


def test_sidecar_of_the_other_kind_is_an_error(image_folder):
    path = image_folder / SIDECAR
    raw = json.loads(path.read_text())
    path.write_text(json.dumps({**raw, "kind": "features", "feature_shape": [1, 2], "feature_dtype": "float32"}))
    assert read_info(image_folder).kind == "features"
    with pytest.raises(ValueError, match="lacks the columns"):
        RecordReader(image_folder)


@pytest.mark.parametrize("column", ["captions", "image"])
def test_types_that_streaming_alone_reads_are_named(image_folder, tmp_path, column):
    """As ``datasets`` writes them: one caption a row, or a picture's bytes beside its path."""

    def other(row: dict) -> dict:
        return {column: row["captions"][0] if column == "captions" else {"bytes": row["image"], "path": None}}

    rows = [row | other(row) for row in datasets.load_from_disk(str(image_folder))]
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "other"))
    shutil.copy(image_folder / SIDECAR, tmp_path / "other" / SIDECAR)
    with pytest.raises(ValueError, match=f"its column {column} is of a type .* Write --streaming True, or remove"):
        RecordReader(tmp_path / "other")
    assert len(open_shards(str(tmp_path / "other")).read(0)) == 10
