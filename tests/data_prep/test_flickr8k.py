"""Flickr8k, and what every script does: on made-up sources with everything wrong, and on the real one."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bitgen.data.records import RecordReader

DATA_PREP = Path(__file__).resolve().parents[2] / "data_prep"


@pytest.fixture
def flickr(script):
    return script("flickr8k")


def test_images(source, flickr):
    flickr(source.arguments("images"))
    reader = RecordReader(source.output)
    assert [reader.image_id(row) for row in range(6)] == source.names
    assert reader[1].payload == (source.images / "1.jpg").read_bytes()
    assert reader[1].captions == source.captions["1.jpg"]
    assert (reader.info.kind, reader.info.num_images, reader.info.num_captions) == ("images", 6, 12)
    assert sorted(path.name for path in source.folder.iterdir()) == ["Images", "captions.txt", "out", "split.txt"]


def test_float_features_follow_the_split_not_the_rows(source, flickr):
    source.split = ["3.jpg", "0.jpg"]
    flickr(source.arguments("features"))
    reader = RecordReader(source.output)
    assert [reader.image_id(row) for row in range(2)] == source.split
    for row, name in enumerate(source.split):
        expected = source.features[source.names.index(name)]
        np.testing.assert_array_equal(reader.info.dequantize(reader.payload(row)), expected)


def test_quantised_features(source, flickr):
    values = np.random.default_rng(0).integers(-128, 128, (6, 4, 3), dtype=np.int8)
    source.features = values
    source.info = {"scale": 0.25, "zero_point": -3, "dtype": "int8", "shape_per_image": [4, 3], "encoder": "some net"}
    flickr(source.arguments("features"))
    reader = RecordReader(source.output)
    assert reader.info.encoder == "some net"
    assert reader.payload(5) == values[5].tobytes()
    np.testing.assert_array_equal(reader.info.dequantize(reader.payload(5)), (values[5].astype(np.float32) + 3) * 0.25)


def test_one_vector_an_image_and_float64(source, flickr):
    source.features = source.features[:, 0].astype(np.float64)
    flickr(source.arguments("features"))
    info = RecordReader(source.output).info
    assert (info.feature_shape, info.feature_dtype) == ((1, 3), "float32")


def test_big_endian_features(source, flickr):
    source.features = source.features.astype(">f4")
    flickr(source.arguments("features"))
    reader = RecordReader(source.output)
    np.testing.assert_array_equal(reader.info.dequantize(reader.payload(2)), source.features[2])


def test_token_file(source, flickr):
    flags = source.arguments("images")
    lines = [f"{name}#{i}\t{text}" for name, texts in source.captions.items() for i, text in enumerate(texts)]
    (source.folder / "Flickr8k.token.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    flags[flags.index("--captions") + 1] = str(source.folder / "Flickr8k.token.txt")
    flickr(flags)
    reader = RecordReader(source.output)
    assert [reader.captions(row) for row in range(6)] == list(source.captions.values())


def test_limit(source, flickr):
    flickr(source.arguments("images", "--limit", "2"))
    assert len(RecordReader(source.output)) == 2


def test_what_is_wrong_is_counted_and_named(large, flickr, caplog):
    caplog.set_level(logging.INFO)
    large.captions["3.jpg"].append("   ")
    large.captions["4.jpg"].append(large.captions["4.jpg"][0])
    large.split.append("5.jpg")
    (large.images / "6.jpg").unlink()
    path = large.images / "7.jpg"
    path.write_bytes(path.read_bytes()[:-300])
    flickr(large.arguments("images"))
    assert "1 x empty caption (dropped): 3.jpg" in caplog.text
    assert "1 x duplicate caption of the same image (kept): 4.jpg" in caplog.text
    assert "1 x duplicate name in --split (taken once): 5.jpg" in caplog.text
    assert "1 x missing image: 6.jpg" in caplog.text
    assert "1 x undecodable image: 7.jpg (OSError" in caplog.text
    assert "198 images, 397 captions" in caplog.text
    reader = RecordReader(large.output)
    assert {"6.jpg", "7.jpg"}.isdisjoint(reader.image_id(row) for row in range(len(reader)))


@pytest.mark.parametrize("damage", ["missing", "not an image", "no caption", "missing features"])
def test_more_than_one_percent_lost_stops(large, flickr, damage):
    kind = "images"
    for name in ("11.jpg", "50.jpg", "150.jpg"):
        if damage == "missing":
            (large.images / name).unlink()
        elif damage == "not an image":
            (large.images / name).write_text("<html>")
        elif damage == "no caption":
            large.captions[name] = [" "]
        else:
            kind = "features"
            large.feature_names[large.names.index(name)] = f"other-{name}"
    with pytest.raises(ValueError, match=r"3 of 200 images \(1.5%\)[^$]*11.jpg[^$]*50.jpg[^$]*150.jpg"):
        flickr(large.arguments(kind))
    assert not large.output.exists()
    assert not list(large.folder.glob(".out*"))


def test_an_unchecked_damaged_image_is_taken(large, flickr):
    (large.images / "7.jpg").write_text("<html>")
    flickr(large.arguments("images", "--check_images", "False"))
    assert len(RecordReader(large.output)) == 200


def test_output_is_not_overwritten_unasked(source, flickr):
    flickr(source.arguments("images"))
    before = source.output.stat().st_ino
    with pytest.raises(ValueError, match="--overwrite True"):
        flickr(source.arguments("images"))
    flickr(source.arguments("images", "--overwrite", "False", "--output", str(source.folder / "other")))
    assert source.output.stat().st_ino == before
    flickr(source.arguments("features", "--overwrite", "True"))
    assert RecordReader(source.output).info.kind == "features"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": np.zeros((6, 2, 2, 3), np.float32)}, r"shape \[6, 2, 2, 3\]"),
        ({"features": np.zeros(6, np.float32)}, r"shape \[6\]"),
        ({"features": np.zeros((6, 0, 3), np.float32)}, r"shape \[6, 0, 3\]"),
        ({"features": np.zeros((6, 4, 3), np.int64)}, "dtype int64"),
        ({"features": np.zeros((5, 4, 3), np.float32)}, "5 rows but .* lists 6 images"),
        ({"features": np.zeros((6, 4, 3), np.int8)}, "give --feature_info"),
        ({"features": np.zeros((6, 4, 3), np.int8), "info": {"scale": "x", "zero_point": 0}}, "must be numbers"),
        ({"features": np.zeros((6, 4, 3), np.int8), "info": {"scale": -1, "zero_point": 0}}, "must be positive"),
        ({"info": {"dtype": "int8"}}, "declares dtype int8, but --features has float32"),
        ({"info": {"shape_per_image": [49, 320]}}, r"declares shape_per_image \[49, 320\]"),
        ({"info": [1]}, "JSON object"),
    ],
)
def test_features_that_do_not_fit(source, flickr, change, message):
    for name, value in change.items():
        setattr(source, name, value)
    with pytest.raises(ValueError, match=message):
        flickr(source.arguments("features"))
    assert not source.output.exists()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite(source, flickr, value):
    source.features[3, 2, 1] = value
    with pytest.raises(ValueError, match=r"with NaN or infinite values: 3.jpg \(row 3\)"):
        flickr(source.arguments("features"))
    assert not source.output.exists()


def test_duplicate_feature_names_are_counted(source, flickr, caplog):
    source.features = np.concatenate([source.features, source.features[:1] + 1])
    source.feature_names.append("0.jpg")
    flickr(source.arguments("features"))
    assert "1 x duplicate name in --feature_images (first row used): 0.jpg" in caplog.text
    reader = RecordReader(source.output)
    np.testing.assert_array_equal(reader.info.dequantize(reader.payload(0)), source.features[0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,caption\n0.jpg,a dog\n1.jpg,a , b\n", r"line 3 is not `image,caption`"),
        ("0.jpg#0\ta dog\n1.jpg a cat\n", r"line 2 is not `name#0<TAB>caption`"),
        ("\n", "is empty"),
    ],
)
def test_captions_in_no_known_format(source, flickr, text, message):
    flags = source.arguments("images")
    (source.folder / "captions.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        flickr(flags)


def test_files_that_are_not_there_or_not_text(source, flickr):
    flags = source.arguments("images")
    for flag in ("--captions", "--split", "--images"):
        wrong = list(flags)
        wrong[flags.index(flag) + 1] = "/no/such/thing"
        with pytest.raises(ValueError, match=f"{flag} /no/such/thing does not exist"):
            flickr(wrong)
    (source.folder / "split.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ValueError, match="not UTF-8"):
        flickr(flags)
    (source.folder / "split.txt").write_text("\n\n")
    with pytest.raises(ValueError, match="lists no image"):
        flickr(flags)
    flags = source.arguments("features")
    (source.folder / "features.npy").write_bytes(b"no numbers")
    with pytest.raises(ValueError, match="not a readable .npy"):
        flickr(flags)


def test_flags_that_do_not_belong_together(source, flickr, capsys):
    flags = source.arguments("features")
    at = flags.index("--feature_images")
    with pytest.raises(SystemExit):
        flickr(flags[:at] + flags[at + 2 :])
    assert "needs --feature_images" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        flickr([*flags, "--images", "x"])
    with pytest.raises(SystemExit):
        flickr([*flags, "--overwrite", "yes"])
    assert "write True or False" in capsys.readouterr().err


def run_script(name: str, *flags: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, DATA_PREP / name, *flags], capture_output=True, text=True, cwd=cwd)


def test_scripts_run_from_anywhere_and_end_in_one_line(source):
    done = run_script("flickr8k.py", *source.arguments("images"), cwd=source.folder)
    assert done.returncode == 0, done.stderr
    assert "6 images, 12 captions" in done.stderr
    again = run_script("flickr8k.py", *source.arguments("images"), cwd=source.folder)
    assert again.returncode == 2
    assert "--overwrite True" in again.stderr and "Traceback" not in again.stderr
    shown = run_script("coco.py", "--help", cwd=source.folder)
    assert shown.returncode == 0 and "example:" in shown.stdout and "python data_prep/coco.py" in shown.stdout


# ---------------------------------------------------------------- real data


@pytest.mark.realdata
def test_real_flickr_images_and_features_agree(shared_data, flickr, tmp_path):
    folder = shared_data / "flickr8k"
    common = ["--captions", str(folder / "captions.txt"), "--split", str(folder / "images_train.txt"), "--limit", "50"]
    flickr([*common, "--images", str(folder / "images"), "--output", str(tmp_path / "images")])
    features = folder / "features"
    flickr(
        [*common, "--features", str(features / "train.npy"), "--feature_images", str(features / "train_images.txt"),
         "--feature_info", str(features / "features.json"), "--output", str(tmp_path / "features")]
    )  # fmt: skip
    images, rows = RecordReader(tmp_path / "images"), RecordReader(tmp_path / "features")
    names = (folder / "images_train.txt").read_text().split()[:50]
    array = np.load(features / "train.npy", mmap_mode="r")
    order = (features / "train_images.txt").read_text().split()
    declared = json.loads((features / "features.json").read_text())
    assert images.info.num_captions == rows.info.num_captions == 250
    for row, name in enumerate(names):
        assert images.image_id(row) == rows.image_id(row) == name
        assert images.captions(row) == rows.captions(row)
        assert images.payload(row) == (folder / "images" / name).read_bytes()
        expected = (array[order.index(name)].astype(np.float64) - declared["zero_point"]) * declared["scale"]
        np.testing.assert_allclose(rows.info.dequantize(rows.payload(row)), expected, atol=1e-4)
