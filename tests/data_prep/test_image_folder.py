"""image_folder.py: both metadata files, and a dataset as the Hub has them, read from a local folder."""

import csv
import json
import shutil

import pytest

from bitgen.data.records import RecordReader
from support.data import jpeg


@pytest.fixture
def image_folder(script):
    return script("image_folder")


@pytest.fixture
def photos(tmp_path):
    """A folder with a.jpg, b.jpg and sub/c.jpg, and no metadata yet."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for number, name in enumerate(("a.jpg", "b.jpg", "sub/c.jpg")):
        (folder / name).write_bytes(jpeg(number))
    return folder


def flags(folder, *more: str) -> list[str]:
    return ["--folder", str(folder), "--output", str(folder.parent / "out"), *more]


def write_csv(folder, rows, header=("file_name", "caption")) -> None:
    with open(folder / "metadata.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def write_lines(folder, rows) -> None:
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def contents(folder) -> list[tuple[str, list[str]]]:
    return [(record.image_id, record.captions) for record in RecordReader(folder.parent / "out")]


EXPECTED = [("a.jpg", ["a dog, running", 'a "big" dog']), ("sub/c.jpg", ["a cat asleep"]), ("b.jpg", ["ein Hündchen"])]


def test_csv_with_several_rows_an_image(photos, image_folder):
    write_csv(photos, [(name, text) for name, texts in EXPECTED for text in texts])
    image_folder(flags(photos))
    assert contents(photos) == EXPECTED


def test_json_lines_with_lists(photos, image_folder):
    write_lines(photos, [{"file_name": name, "captions": texts, "width": 3} for name, texts in EXPECTED])
    image_folder(flags(photos))
    assert contents(photos) == EXPECTED
    assert RecordReader(photos.parent / "out")[0].payload == (photos / "a.jpg").read_bytes()


def test_the_same_source_gives_the_same_rows_byte_for_byte(photos, image_folder):
    write_csv(photos, [(name, text) for name, texts in EXPECTED for text in texts])
    shards = []
    for name in ("one", "two"):
        image_folder(flags(photos, "--output", str(photos.parent / name)))
        shards.append([path.read_bytes() for path in sorted((photos.parent / name).glob("*.arrow"))])
    assert shards[0] == shards[1] and shards[0]


def test_the_captions_column_is_found_or_asked_for(photos, image_folder):
    rows = [(name, texts[0], "other") for name, texts in EXPECTED]
    write_csv(photos, rows, ("file_name", "text", "note"))
    image_folder(flags(photos))
    assert contents(photos)[0] == ("a.jpg", ["a dog, running"])
    image_folder(flags(photos, "--caption_column", "note", "--overwrite", "True"))
    assert contents(photos)[0] == ("a.jpg", ["other"])
    write_csv(photos, rows, ("file_name", "text", "description"))
    with pytest.raises(ValueError, match=r"may hold captions \(text, description\); name one with --caption_column"):
        image_folder(flags(photos, "--overwrite", "True"))
    write_csv(photos, rows, ("file_name", "x", "y"))
    with pytest.raises(ValueError, match="no column of captions; .* It has file_name, x, y"):
        image_folder(flags(photos, "--overwrite", "True"))
    with pytest.raises(ValueError, match="has no column z; it has file_name, x, y"):
        image_folder(flags(photos, "--caption_column", "z", "--overwrite", "True"))


def test_what_is_wrong_is_counted(photos, image_folder, caplog):
    rows = [("a.jpg", "a dog"), ("b.jpg", " "), ("gone.jpg", "x"), ("../secret.jpg", "x"), ("sub/c.jpg", "a cat")]
    (photos.parent / "secret.jpg").write_bytes((photos / "a.jpg").read_bytes())
    (photos / "sub" / "c.jpg").write_bytes(b"<html>")
    (photos / "extra.PNG").write_bytes(b"")
    write_csv(photos, rows)
    image_folder(flags(photos, "--max_failed_fraction", "0.8"))
    assert contents(photos) == [("a.jpg", ["a dog"])]
    for line in (
        "1 x image without a caption: b.jpg",
        "1 x missing image: gone.jpg",
        "1 x file name that leaves the image folder: ../secret.jpg",
        "1 x undecodable image: sub/c.jpg (UnidentifiedImageError",
        "1 x image without a line in the metadata (left out): extra.PNG",
    ):
        assert line in caplog.text


def test_image_bombs_are_refused_before_they_are_decoded(photos, image_folder, caplog):
    write_csv(photos, [("a.jpg", "a dog"), ("b.jpg", "x")])
    from PIL import Image

    Image.new("1", (10_000, 5_001)).save(photos / "b.jpg", "PNG")
    image_folder(flags(photos, "--max_failed_fraction", "0.5"))
    assert "1 x image of too many pixels: b.jpg (10000 x 5001, over 50000000)" in caplog.text
    image_folder(flags(photos, "--max_image_pixels", "50010000", "--overwrite", "True"))
    assert len(contents(photos)) == 2


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "metadata.csv",
            b"file_name,caption\na.jpg,a dog, running\n",
            "line 2 does not have the 2 cells of the header",
        ),
        ("metadata.csv", b"file_name,caption\na.jpg\n", "line 2 does not have the 2 cells"),
        ("metadata.csv", b"name,caption\na.jpg,a dog\n", "line 2 has no file_name; it has name, caption"),
        ("metadata.csv", b"file_name,caption\n", "metadata.csv lists no image"),
        ("metadata.csv", b"file_name,caption\na.jpg,\xe4\n", "metadata.csv is not UTF-8.*iconv"),
        ("metadata.jsonl", b'{"file_name": "a.jpg", "captions": [1]}\n', "line 1: captions holds .* neither a string"),
        ("metadata.jsonl", b'{"file_name": "a.jpg", "text": "x"}\n{"file_na', "line 2 is not valid JSON"),
    ],
)
def test_metadata_of_another_kind(photos, image_folder, name, text, message):
    (photos / name).write_bytes(text)
    with pytest.raises(ValueError, match=message):
        image_folder(flags(photos))


def test_folders_without_one_metadata_file(photos, image_folder):
    with pytest.raises(ValueError, match="has neither metadata.csv nor metadata.jsonl. Write one"):
        image_folder(flags(photos))
    write_csv(photos / "sub", [])
    with pytest.raises(ValueError, match="photos/sub has one: pass that folder"):
        image_folder(flags(photos))
    write_csv(photos, [])
    write_lines(photos, [])
    with pytest.raises(ValueError, match="has both"):
        image_folder(flags(photos))
    (photos.parent / "empty").mkdir()
    with pytest.raises(ValueError, match="--folder .*empty is an empty folder"):
        image_folder(flags(photos.parent / "empty"))


# ---------------------------------------------------------------- Hub


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """``hub(rows)`` writes Parquet as a Hub repository has it; returns the flags."""
    from datasets import Dataset, Features, Image, List, Value

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")

    def write(rows, *more: str) -> list[str]:
        several = isinstance(rows[0]["sentences"], list)
        columns = {"picture": Image(), "sentences": List(Value("string")) if several else Value("string")}
        (tmp_path / "repository").mkdir(exist_ok=True)
        table = Dataset.from_list(rows, features=Features(columns))
        table.to_parquet(str(tmp_path / "repository" / "train-00000-of-00001.parquet"))
        return ["--hub_dataset", str(tmp_path / "repository"), "--output", str(tmp_path / "out"), *more]

    return write


def test_hub_rows(hub, image_folder, tmp_path, caplog):
    rows = [
        {"picture": {"bytes": jpeg(0), "path": "x.jpg"}, "sentences": ["a dog", " a big dog "]},
        {"picture": {"bytes": jpeg(1)[:-300], "path": None}, "sentences": ["cut"]},
        {"picture": None, "sentences": ["nothing"]},
        {"picture": {"bytes": jpeg(2), "path": None}, "sentences": []},
        {"picture": {"bytes": jpeg(3), "path": None}, "sentences": ["a cat"]},
    ]
    image_folder(hub(rows, "--max_failed_fraction", "0.7"))
    reader = RecordReader(tmp_path / "out")
    name = f"{tmp_path / 'repository'}/train"
    assert [(record.image_id, record.captions) for record in reader] == [
        (f"{name}/0000000", ["a dog", "a big dog"]),
        (f"{name}/0000004", ["a cat"]),
    ]
    assert reader.payload(1) == jpeg(3)
    for reason in ("undecodable image", "missing image", "image without a caption"):
        assert f"1 x {reason}: " in caplog.text
    image_folder(hub(rows, "--limit", "1", "--overwrite", "True"))
    assert len(RecordReader(tmp_path / "out")) == 1


def test_hub_rows_of_one_image_are_joined_wherever_they_stand(hub, image_folder, tmp_path, caplog):
    pairs = [(0, "a dog"), (0, "a big dog"), (1, "a cat"), (0, "a dog again")]
    image_folder(hub([{"picture": {"bytes": jpeg(seed), "path": None}, "sentences": text} for seed, text in pairs]))
    captions = [record.captions for record in RecordReader(tmp_path / "out")]
    assert captions == [["a dog", "a big dog", "a dog again"], ["a cat"]]
    assert "2 x row with the image of an earlier row (joined with it): " in caplog.text


def test_hub_errors_say_what_to_do(hub, image_folder, tmp_path, monkeypatch):
    arguments = hub([{"picture": {"bytes": jpeg(0), "path": None}, "sentences": "a dog"}])
    for more, message in (
        (["--split", "test"], "split test, cannot be loaded"),
        (["--image_column", "sentences"], "columns of images: picture; name one with --image_column"),
        (["--caption_column", "captions"], "has no column captions; it has sentences"),
    ):
        with pytest.raises(ValueError, match=message):
            image_folder([*arguments, *more])
    offline = ["--hub_dataset", "nobody/nothing", "--output", str(tmp_path / "out")]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="cannot be loaded .*hf download --repo-type dataset nobody/nothing"):
        image_folder(offline)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("bitgen.data.tokenizer.hub_answers", lambda: False)
    with pytest.raises(ValueError, match="does not answer.*HF_HUB_OFFLINE=1.*hf download"):
        image_folder(offline)


def test_flags_of_the_other_source(photos, image_folder, capsys):
    with pytest.raises(SystemExit):
        image_folder(flags(photos, "--split", "train"))
    assert "belong to --hub_dataset" in capsys.readouterr().err


@pytest.mark.realdata
def test_real_flickr_images(shared_data, image_folder, tmp_path):
    source = shared_data / "flickr8k"
    captions: dict[str, list[str]] = {}
    with open(source / "captions.txt", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            captions.setdefault(row["image"], []).append(row["caption"].strip())
    folder = tmp_path / "photos"
    folder.mkdir()
    names = sorted(path.name for path in (source / "images").iterdir())[:100]
    for name in names:
        shutil.copy(source / "images" / name, folder)
    write_csv(folder, [(name, text) for name in names for text in captions[name]])
    image_folder(flags(folder))
    assert contents(folder) == [(name, captions[name]) for name in names]
