"""The layouts in which captions are passed on: each gives the same dataset."""

from __future__ import annotations

import csv
import json

import pytest

from bitgen.data.records import RecordReader
from support.data import jpeg

NAMES = ["0.jpg", "1.jpg", "2.jpg"]
CAPTIONS = {"0.jpg": ["a dog , running", "it runs"], "1.jpg": ["a cat"], "2.jpg": ["a red ball"]}
PAIRS = [(name, text) for name, texts in CAPTIONS.items() for text in texts]
OPEN_QUOTE = [("0.jpg", '" a screen of 20 inches'), ("0.jpg", "it runs"), ("1.jpg", '"A sign reads STOP" in red')]


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos" / "train2014").mkdir(parents=True)
    for number, name in enumerate(NAMES):
        for folder in ("photos", "photos/train2014"):
            (tmp_path / folder / name).write_bytes(jpeg(number))
    return tmp_path / "photos"


def captions_of(tmp_path) -> dict[str, list[str]]:
    return {record.image_id: record.captions for record in RecordReader(tmp_path / "out")}


# ---- lines of captions: flickr8k.py ----


def comma(rows, header="image,caption\n") -> str:
    return header + "".join(f'{name},"{text}"\n' if "," in text else f"{name},{text}\n" for name, text in rows)


def bars(rows) -> str:
    return "image_name| comment_number| comment\n" + "".join(f"{name}| 0| {text}\n" for name, text in rows)


@pytest.mark.parametrize(
    ("text", "expected", "said"),
    [
        (comma(PAIRS), CAPTIONS, ""),
        (comma(PAIRS, ""), CAPTIONS, ""),
        (comma(PAIRS).replace("\n", "\r\n"), CAPTIONS, ""),
        (comma(PAIRS, "image_name,comment_number,comment\n").replace(".jpg,", ".jpg,0,"), CAPTIONS, ""),
        ("".join(f"{name}#0\t{text}\n" for name, text in PAIRS), CAPTIONS, ""),
        (bars(PAIRS), CAPTIONS, ""),
        (bars(PAIRS).replace("| 0| a cat", "| 4   a cat"), CAPTIONS, "1 x line without its second bar"),
        (
            comma(OPEN_QUOTE) + "2.jpg,\"\n",
            {"0.jpg": ['" a screen of 20 inches', "it runs"], "1.jpg": ['"A sign reads STOP" in red'], "2.jpg": ['"']},
            "3 x caption with quotes that are not those of CSV",
        ),
        (comma([("0.jpg", "word " * 28_000)] + PAIRS[1:]), None, "1 x caption of more than 20,000 characters (cut)"),
    ],
)  # fmt: skip
def test_lines_of_captions(script, photos, tmp_path, caplog, text, expected, said):
    (tmp_path / "captions").write_text(text, encoding="utf-8", newline="")
    (tmp_path / "split.txt").write_text("\n".join(NAMES))
    flags = ["--captions", str(tmp_path / "captions"), "--split", str(tmp_path / "split.txt")]
    script("flickr8k")([*flags, "--images", str(photos), "--output", str(tmp_path / "out")])
    found = captions_of(tmp_path)
    assert found == expected if expected else list(found) == NAMES
    assert said in caplog.text


# ---- one JSON: coco.py ----


def karpathy(split="train", filepath=""):
    images = [{"filename": name, "filepath": filepath, "split": split, "sentences": [{"raw": text} for text in texts]}
              for name, texts in CAPTIONS.items()]  # fmt: skip
    return {"dataset": "coco", "images": images}


def coco(identity):
    images = [{"id": identity(number), "file_name": name} for number, name in enumerate(NAMES)]
    annotations = [{"image_id": identity(NAMES.index(name)), "caption": text} for name, text in PAIRS]
    return {"images": images, "annotations": annotations}


def llava(*more):
    return [{"id": name, "image": name, "conversations": [{"from": "human", "value": "<image>\nDescribe it."},
             {"from": "gpt", "value": texts[0]}, *more]} for name, texts in CAPTIONS.items()]  # fmt: skip


FIRST = {name: texts[:1] for name, texts in CAPTIONS.items()}


@pytest.mark.parametrize(
    ("content", "flags", "expected"),
    [
        (coco(int), [], CAPTIONS),
        (coco(str), [], CAPTIONS),
        (coco(float), [], CAPTIONS),
        (coco(lambda number: f"a{number}"), [], CAPTIONS),
        (karpathy(), [], CAPTIONS),
        (karpathy(), ["--split", "train", "all"], CAPTIONS),
        (karpathy(filepath="train2014"), [], {f"train2014/{name}": texts for name, texts in CAPTIONS.items()}),
        ({"images": karpathy()["images"] + karpathy("val", "train2014")["images"]}, ["--split", "train"], CAPTIONS),
        ([{"image": name, "caption": text, "image_id": "coco_9"} for name, text in PAIRS], [], CAPTIONS),
        ([{"image": name, "caption": texts} for name, texts in CAPTIONS.items()], [], CAPTIONS),
        (llava(), [], FIRST),
        (llava() + [{"id": "x", "conversations": []}], [], FIRST),
    ],
)
def test_one_json(script, photos, tmp_path, content, flags, expected):
    (tmp_path / "captions.json").write_text(json.dumps(content))
    arguments = ["--annotations", str(tmp_path / "captions.json"), "--images", str(photos), *flags]
    script("coco")([*arguments, "--output", str(tmp_path / "out")])
    assert captions_of(tmp_path) == expected


@pytest.mark.parametrize(
    ("content", "flags", "message"),
    [
        ({"images": karpathy()["images"] + karpathy("val")["images"]}, [], r"splits train \(3\), val \(3\): name"),
        (karpathy(), ["--split", "test"], "has no split test: it has train"),
        (coco(int), ["--split", "train"], "does not say which split"),
        (
            llava({"from": "human", "value": "Red?"}, {"from": "gpt", "value": "Yes."}),
            [],
            "several questions",
        ),
    ],
)
def test_what_a_layout_leaves_open_is_asked(script, photos, tmp_path, content, flags, message):
    (tmp_path / "captions.json").write_text(json.dumps(content))
    arguments = ["--annotations", str(tmp_path / "captions.json"), "--images", str(photos), *flags]
    with pytest.raises(ValueError, match=message):
        script("coco")([*arguments, "--output", str(tmp_path / "out")])


# ---- tables: image_folder.py ----

FILES = [jpeg(number) for number in range(3)]
TEXTS = ["a dog", "a cat", "a ball"]


def parquet(folder, columns, split="train"):
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    pq.write_table(pa.table(columns), folder / f"{split}-00000-of-00001.parquet")


def saved(folder, splits):
    from datasets import Dataset, DatasetDict

    parts = {split: Dataset.from_dict({"image": FILES, "caption": TEXTS}) for split in splits}
    (DatasetDict(parts) if splits[0] else parts[""]).save_to_disk(folder)


NUMBERED = {f"caption_{number}": [f"{text} {number}" for text in TEXTS] for number in (1, 0)}


@pytest.mark.parametrize(
    ("write", "flags", "captions"),
    [
        (lambda f: parquet(f, {"image": FILES, "caption": TEXTS}), [], [[t] for t in TEXTS]),
        (lambda f: parquet(f, {"image": FILES, "caption": TEXTS}), ["--image_column", "image"], [[t] for t in TEXTS]),
        (
            lambda f: parquet(f, {"x": [{"bytes": b, "path": None} for b in FILES], "text": TEXTS}),
            [],
            [[t] for t in TEXTS],
        ),
        (lambda f: parquet(f, {"image": FILES, **NUMBERED}), [], [[f"{t} 0", f"{t} 1"] for t in TEXTS]),
        (
            lambda f: parquet(f, {"image": FILES, "a": TEXTS, "b": TEXTS}),
            ["--caption_column", "a,b"],
            [[t, t] for t in TEXTS],
        ),
        (
            lambda f: parquet(f, {"image": FILES, "caption": [{"en": t, "de": "x"} for t in TEXTS]}),
            [],
            [[t, "x"] for t in TEXTS],
        ),
        (
            lambda f: parquet(f, {"image": [FILES[0], FILES[1], FILES[0]], "caption": TEXTS}),
            [],
            [["a dog", "a ball"], ["a cat"]],
        ),
        (lambda f: parquet(f, {"image": FILES, "caption": TEXTS}, "test"), [], [[t] for t in TEXTS]),
        (lambda f: saved(f, [""]), [], [[t] for t in TEXTS]),
        (lambda f: saved(f, ["train", "test"]), [], [[t] for t in TEXTS]),
        (lambda f: saved(f, ["test"]), [], [[t] for t in TEXTS]),
    ],
)
def test_tables(script, tmp_path, monkeypatch, write, flags, captions):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    write(tmp_path / "set")
    script("image_folder")(["--hub_dataset", str(tmp_path / "set"), "--output", str(tmp_path / "out"), *flags])
    assert list(captions_of(tmp_path).values()) == captions


def test_several_splits_without_train_are_asked_for(script, tmp_path):
    saved(tmp_path / "set", ["dev", "test"])
    with pytest.raises(ValueError, match=r"set has the splits dev, test; name one with --split$"):
        script("image_folder")(["--hub_dataset", str(tmp_path / "set"), "--output", str(tmp_path / "out")])


def test_a_quote_that_swallows_rows_of_metadata_is_named(script, photos):
    rows = [("file_name", "caption"), ("0.jpg", '" a screen of 20 inches'), ("1.jpg", "a cat"), ("2.jpg", '"')]
    (photos / "metadata.csv").write_text("".join(f"{name},{text}\n" for name, text in rows))
    with pytest.raises(ValueError, match=r"line 4: caption holds what look like further rows \(1.jpg,a cat\): close"):
        script("image_folder")(["--folder", str(photos), "--output", str(photos.parent / "out")])


def test_spellings_of_one_file_and_copies_of_one_picture(script, photos, tmp_path, caplog):
    with open(photos / "metadata.csv", "w", newline="") as file:
        names = ["0.jpg", "./0.jpg", "train2014/0.jpg", "1.jpg"]
        csv.writer(file).writerows([("file_name", "caption"), *((name, f"of {name}") for name in names)])
    script("image_folder")(["--folder", str(photos), "--output", str(tmp_path / "out")])
    assert captions_of(tmp_path)["0.jpg"] == ["of 0.jpg", "of ./0.jpg"] and len(captions_of(tmp_path)) == 3
    assert "1 x image with the same bytes as an earlier one" in caplog.text and "train2014/0.jpg" in caplog.text
