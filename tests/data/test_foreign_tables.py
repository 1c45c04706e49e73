"""Tables and folders that other programs wrote, streamed or mapped: columns, types, texts, copies, names."""

from __future__ import annotations

import json
import logging

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bitgen.data.records import SIDECAR, RecordReader
from bitgen.data.shards import open_shards
from bitgen.data.stream import StreamDataset
from bitgen.data.text_shards import TEXT_SIDECAR, TextShard, read_text_info
from support.data import encode, noise, write_text_corpus

FILES = [encode(noise(index)) for index in range(6)]
TEXTS = [f"photo {index}" for index in range(6)]


def parquet(folder, captions: dict, image=None):
    pq.write_table(pa.table({"image": image if image is not None else FILES, **captions}), folder / "a.parquet")
    return folder / "a.parquet"


def translated(language: str) -> list[str]:
    return [f"{text} in {language}" for text in TEXTS]


@pytest.mark.parametrize(
    ("captions", "expected"),
    [
        ({"caption": TEXTS}, [[text] for text in TEXTS]),
        ({"caption": [[text, None, " "] for text in TEXTS]}, [[text] for text in TEXTS]),
        (
            {"caption": [{"en": a, "de": b} for a, b in zip(translated("en"), translated("de"), strict=True)]},
            [[f"{text} in en", f"{text} in de"] for text in TEXTS],
        ),
        (
            {f"caption_{number}": [f"{text}, {number}" for text in TEXTS] for number in (1, 0)},
            [[f"{text}, 0", f"{text}, 1"] for text in TEXTS],
        ),
        ({"caption": [f"{text}\nagain \x1b[2J" for text in TEXTS]}, [[f"{text} again [2J"] for text in TEXTS]),
    ],
)
def test_captions_of_a_stream(tmp_path, processor, captions, expected):
    shards = open_shards(str(parquet(tmp_path, captions)))
    assert [record.captions for record in shards.read(0)] == expected
    assert list(shards.iter_captions()) == [text for texts in expected for text in texts]
    sample = StreamDataset([shards], [None], processor)[3]
    assert sample["input_ids"].tolist() in processor.encode(expected[3])


@pytest.mark.parametrize(
    ("captions", "image", "message"),
    [
        ({"caption": [{"raw": text} for text in TEXTS]}, None, r"column caption holds struct<raw: string>, neither"),
        ({"caption": [1] * 6}, None, "column caption holds int64, neither a string nor a list of strings"),
        ({"text": [[["a"]]] * 6}, None, "column text holds list<.*neither"),
        ({"caption_0": TEXTS, "caption_1": [0.5] * 6}, None, "column caption_1 holds double, neither"),
        ({"caption": TEXTS}, ["/etc/passwd"] * 6, "column image holds string, not the bytes of encoded files"),
    ],
)
def test_a_column_of_another_type_is_named_at_the_start(tmp_path, captions, image, message):
    with pytest.raises(ValueError, match=rf"Parquet shard .*a.parquet: {message}"):
        open_shards(str(parquet(tmp_path, captions, image)))


def test_text_that_is_not_utf8_costs_its_own_row_only(tmp_path, processor):
    broken = pa.array([b"\xff\xfe"] + [text.encode() for text in TEXTS[1:]]).cast(pa.string(), safe=False)
    try:
        folder = parquet(tmp_path, {"caption": broken})
    except pa.ArrowInvalid:
        pytest.skip("this pyarrow does not write such a file")
    shards = open_shards(str(folder))
    assert list(shards.iter_captions()) == TEXTS[1:]
    sample = StreamDataset([shards], [None], processor)[0]
    assert sample["index"] == 1 and "row 0 holds text that is not UTF-8" in sample["skipped"].message


@pytest.mark.parametrize(("image", "copies"), [(FILES, 0), ([*FILES[:4], FILES[1], FILES[1]], 2), ([b""] * 6, 0)])
def test_a_stream_says_once_that_rows_hold_one_picture(tmp_path, processor, caplog, image, copies):
    caplog.set_level(logging.WARNING)
    StreamDataset([open_shards(str(parquet(tmp_path, {"caption": TEXTS}, image)))], [None], processor)
    said = [record.getMessage() for record in caplog.records if "picture" in record.getMessage()]
    assert len(said) == (copies > 0)
    assert not copies or "2 of the first 6 rows hold the picture of an earlier one" in said[0] and "row 4" in said[0]


# ---- sidecars, and the names in them ----

HOSTILE = ["[" * 100_000, "[]", "null", "3", '{"a": NaN}', "\ud83d", '{"a": ' + "9" * 5000 + "}"]


@pytest.mark.parametrize("text", [*HOSTILE, '{"_data_files": 3}', '{"_data_files": [3]}', '{"_data_files": [{}]}'])
@pytest.mark.parametrize("file", [SIDECAR, "state.json"])
@pytest.mark.parametrize("reader", [RecordReader, open_shards])
def test_a_folder_whose_json_is_of_another_shape_is_named(image_folder, reader, file, text):
    (image_folder / file).write_text(text, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(ValueError, match=rf"{image_folder.name}.*make it with") as caught:
        reader(str(image_folder))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "change",
    [{"num_images": "10"}, {"source": None}, {"num_images": 10.5}, {"format_version": True}, {"scale": "x"}]
    + [{"scale": -1.0, "feature_dtype": "int8", "feature_shape": [1, 2], "kind": "features"}],
)
def test_a_field_of_another_kind_is_named(image_folder, change):
    raw = json.loads((image_folder / SIDECAR).read_text())
    (image_folder / SIDECAR).write_text(json.dumps(raw | change))
    with pytest.raises(ValueError, match=rf"{SIDECAR}.*({'|'.join(change)})"):
        RecordReader(image_folder)


@pytest.mark.parametrize("name", ["../secret.arrow", "/etc/passwd", "", "x" * 300, "out/secret.arrow"])
@pytest.mark.parametrize("reader", [RecordReader, open_shards])
def test_a_dataset_reads_files_of_its_own_folder_only(image_folder, reader, name):
    arrow = next(image_folder.glob("*.arrow"))
    arrow.rename(image_folder.parent / "secret.arrow")
    (image_folder / "out").symlink_to(image_folder.parent)
    state = json.loads((image_folder / "state.json").read_text())
    (image_folder / "state.json").write_text(json.dumps(state | {"_data_files": [{"filename": name}]}))
    with pytest.raises(ValueError, match="is damaged .*(folder|file)"):
        reader(str(image_folder))


@pytest.mark.parametrize("text", [*HOSTILE, '{"format_version": 1}', '{"format_version": 1, "sources": 3}'])
def test_a_corpus_whose_sidecar_is_of_another_shape_is_named(tmp_path, tokenizer, text):
    write_text_corpus(tmp_path / "c", tokenizer, {"a": ["one two"]})
    (tmp_path / "c" / TEXT_SIDECAR).write_text(text, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(ValueError, match=f"{TEXT_SIDECAR} cannot be used .*make it with"):
        read_text_info(tmp_path / "c")


def test_a_corpus_reads_files_of_its_own_folder_only(tmp_path, tokenizer):
    for name in ("a", "b"):
        write_text_corpus(tmp_path / name, tokenizer, {"x": ["one two"]})
    info = read_text_info(tmp_path / "a")
    with pytest.raises(ValueError, match="cannot be read .*leads out of the folder"):
        TextShard(tmp_path / "a", info.sources[0]._replace(name="../b/x"), info.dtype)
