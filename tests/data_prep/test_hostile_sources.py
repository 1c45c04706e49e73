"""Sources that are damaged or mean harm: one line that names file, record and key, and nothing read elsewhere."""

from __future__ import annotations

import json
import os

import pytest

from bitgen.data.records import RecordReader
from support.data import jpeg

HALF, ORDERS = "so cute \ud83d", "a dog\nruns \x1b[2J\x07"
ENTRY = {"image_id": "a", "caption": "x"}


@pytest.fixture
def prepare(script, tmp_path):
    """``prepare(source, pairs)`` gives every reader its own kind of file; returns captions by image."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(jpeg(0))
    (tmp_path / "photos" / "b.jpg").write_bytes(jpeg(1))
    (tmp_path / "secret.jpg").write_bytes(jpeg(2))
    (tmp_path / "photos" / "out.jpg").symlink_to(tmp_path / "secret.jpg")
    output, images = ["--output", str(tmp_path / "out")], ["--images", str(tmp_path / "photos")]
    allow = ["--max_failed_fraction", "0.9"]

    def run(source: str, pairs: list[tuple[str, object]]) -> dict[str, list[str]]:
        write(source, pairs, tmp_path)
        if source == "flickr8k":
            flags = ["--captions", str(tmp_path / "captions.txt"), "--split", str(tmp_path / "split.txt"), *images]
            script("flickr8k")([*flags, *output, *allow])
        elif source == "narratives":
            script("localized_narratives")(["--narratives", str(tmp_path / "n.jsonl"), *images, *output, *allow])
        elif source.startswith("metadata"):
            script("image_folder")(["--folder", str(tmp_path / "photos"), *output, *allow])
        else:
            script("coco")(["--annotations", str(tmp_path / "captions.json"), *images, *output, *allow])
        return {record.image_id: record.captions for record in RecordReader(tmp_path / "out")}

    return run


def write(source: str, pairs: list[tuple[str, object]], folder) -> None:
    lines = "".join(f"{name},{text}\n" for name, text in pairs)
    contents: dict[str, object] = {
        "coco": {
            "images": [{"id": number, "file_name": name} for number, (name, _) in enumerate(pairs)],
            "annotations": [{"image_id": number, "caption": text} for number, (_, text) in enumerate(pairs)],
        },
        "karpathy": {"images": [{"filename": name, "sentences": [{"raw": text}]} for name, text in pairs]},
        "lavis": [{"image": name, "caption": text} for name, text in pairs],
        "llava": [{"image": name, "conversations": [{"from": "gpt", "value": text}]} for name, text in pairs],
    }
    if source in contents:
        (folder / "captions.json").write_text(json.dumps(contents[source]))
    elif source == "flickr8k":
        (folder / "captions.txt").write_text(lines)
        (folder / "split.txt").write_text("".join(f"{name}\n" for name, _ in pairs))
    elif source == "metadata.csv":
        (folder / "photos" / "metadata.csv").write_text("file_name,caption\n" + lines)
    else:
        key, end = ("file_name", "") if source == "metadata.jsonl" else ("image_id", ".jpg")
        path = folder / "photos" / source if source == "metadata.jsonl" else folder / "n.jsonl"
        rows = [{key: name.removesuffix(end), "caption": text} for name, text in pairs]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


JSON = ["coco", "karpathy", "lavis", "metadata.jsonl", "narratives"]
ALL = [*JSON, "llava", "flickr8k", "metadata.csv"]
OUTSIDE = [
    "../secret.jpg",
    "out.jpg",
    "b/../../secret.jpg",
    "{root}/secret.jpg",
    "x" * 256 + ".jpg",
    "é" * 200 + ".jpg",
]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("source", ALL)
def test_a_name_leads_to_a_file_of_the_folder_or_is_counted(prepare, tmp_path, caplog, source, name):
    assert prepare(source, [("a.jpg", "a dog"), (name.format(root=tmp_path), "a secret")]) == {"a.jpg": ["a dog"]}
    assert "1 x file name that " in caplog.text


@pytest.mark.parametrize("source", JSON + ["llava"])
def test_half_an_emoji_costs_itself_only(prepare, caplog, source):
    found = prepare(source, [("a.jpg", HALF), ("b.jpg", "a dog")])
    assert found == {"a.jpg": ["so cute \ufffd"], "b.jpg": ["a dog"]}
    assert "1 x caption that is no valid Unicode (what is broken became U+FFFD): a.jpg" in caplog.text


@pytest.mark.parametrize("source", JSON + ["llava"])
def test_a_caption_is_one_line_without_control_characters(prepare, caplog, source):
    assert prepare(source, [("a.jpg", ORDERS)]) == {"a.jpg": ["a dog runs [2J"]}
    assert "1 x caption with line breaks, control characters or runs of spaces (one space each): a.jpg" in caplog.text


@pytest.mark.parametrize("missing", [None, float("nan"), "", " ", [], [None]])
@pytest.mark.parametrize("source", JSON)
def test_what_is_missing_is_counted(prepare, caplog, source, missing):
    assert prepare(source, [("a.jpg", "a dog"), ("b.jpg", missing)]) == {"a.jpg": ["a dog"]}
    assert "1 x image without a caption: b.jpg" in caplog.text


@pytest.mark.parametrize("value", [3, True, {"raw": "x"}, [["x"]], ["x", 3]])
@pytest.mark.parametrize("source", JSON)
def test_a_caption_of_another_kind_is_named(prepare, source, value):
    with pytest.raises(ValueError, match=r"(\[1\]|line 2).*(caption|raw) holds .*neither a string") as caught:
        prepare(source, [("a.jpg", "a dog"), ("b.jpg", value)])
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("images", "annotation", "message"),
    [
        ([{"id": 3.5, "file_name": "a.jpg"}], {}, r"images\[0\]: its `id` is 3.5; it must be a whole number or a text"),
        ([{"id": True, "file_name": "a.jpg"}], {}, r"images\[0\]: its `id` is True"),
        ([{"id": None, "file_name": "a.jpg"}], {}, r"images\[0\]: its `id` is None"),
        ([{"id": 1, "file_name": None}], {}, r"images\[0\]: its 'file_name' is null where a text should be"),
        ([7], {}, r"images\[0\] is 7, not an object"),
        ([{"id": 1, "file_name": "a.jpg"}], {"image_id": [1], "caption": "x"}, r"annotations\[0\]: its `image_id` is"),
        ([{"id": 1, "file_name": "a.jpg"}], {"caption": "x"}, r"annotations\[0\] lacks `image_id`"),
    ],
)
def test_an_id_or_name_of_another_kind_is_named(script, tmp_path, images, annotation, message):
    (tmp_path / "c.json").write_text(json.dumps({"images": images, "annotations": [annotation]}))
    flags = ["--annotations", str(tmp_path / "c.json"), "--images", str(tmp_path), "--output", str(tmp_path / "out")]
    with pytest.raises(ValueError, match=message):
        script("coco")(flags)


TEXTS = ["[" * 100_000, '{"a": 1e999}', '{"a": ' + "9" * 5000 + "}", '{"a": Infinity}', "nothing", '"\x1b[2J"', "3", ""]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("source", ["coco", "metadata.jsonl", "narratives", "babylm", "feature_info", "journal"])
def test_json_of_another_shape_is_one_line_with_the_file(script, prepare, tmp_path, source, text):
    from _common.features import FeatureFile
    from _common.journal import Journal
    from babylm_multimodal import read_captions

    path = {"coco": "captions.json", "metadata.jsonl": "photos/metadata.jsonl", "narratives": "n.jsonl"}.get(
        source, "j"
    )
    text = text + "\n" if source == "journal" else text
    (tmp_path / path).write_text(text)
    output, images = ["--output", str(tmp_path / "out")], ["--images", str(tmp_path / "photos")]
    calls = {
        "coco": lambda: script("coco")(["--annotations", str(tmp_path / path), *images, *output]),
        "metadata.jsonl": lambda: script("image_folder")(["--folder", str(tmp_path / "photos"), *output]),
        "narratives": lambda: script("localized_narratives")(["--narratives", str(tmp_path / path), *images, *output]),
        "babylm": lambda: read_captions(tmp_path / path),
        "feature_info": lambda: FeatureFile._read_declaration(tmp_path / path, "int8", (1, 2)),
        "journal": lambda: (tmp_path / path).rename(tmp_path / "journal.jsonl") and Journal(tmp_path, {"a": 1}),
    }
    with pytest.raises(ValueError, match=os.path.basename(path) if source != "journal" else "journal.jsonl") as caught:
        calls[source]()
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("where", ["elsewhere", "inside", "named"])
def test_a_row_reads_files_of_its_own_dataset_only(script, tmp_path, monkeypatch, caplog, where):
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    (tmp_path / "other").mkdir()
    path = tmp_path / ("set" if where == "inside" else "other") / "x.jpg"
    path.write_bytes(jpeg(1))
    cells = [{"bytes": jpeg(0), "path": "a.jpg"}, {"bytes": None, "path": str(path)}]
    pq.write_table(pa.table({"image": cells, "caption": ["a", "b"]}), tmp_path / "set" / "train.parquet")
    flags = ["--images", str(tmp_path / "other")] if where == "named" else []
    flags += ["--hub_dataset", str(tmp_path / "set"), "--output", str(tmp_path / "out")]
    script("image_folder")([*flags, "--max_failed_fraction", "0.5"])
    assert len(RecordReader(tmp_path / "out")) == (1 if where == "elsewhere" else 2)
    assert ("path to a file that is not the dataset's own" in caplog.text) == (where == "elsewhere")


@pytest.mark.parametrize("text", ["nan", "inf", "1e999", "-1", "x", "9" * 5000, "\x1b[2J"])
@pytest.mark.parametrize("flag", ["--max_failed_fraction", "--limit", "--timeout", "--concurrency", "--retries"])
def test_a_flag_takes_finite_numbers_only(script, capsys, flag, text):
    with pytest.raises(SystemExit) as ended:
        script("cc3m")(["--tsv", "x", "--output", "x", flag, text])
    assert ended.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "number" in said and said.isprintable()
