"""localized_narratives.py on small files of the published form, and on the real COCO images."""

import json

import pytest

from bitgen.data.records import Record, RecordReader
from support.data import jpeg, write_images

COCO, OPEN = "mscoco_train2017", "open_images_train_v6"


@pytest.fixture
def narratives(script):
    return script("localized_narratives")


def line(dataset: str, image: str, annotator: int, caption: str) -> str:
    """A line of the published files, traces cut short."""
    entry = {"dataset_id": dataset, "image_id": image, "annotator_id": annotator, "caption": caption}
    entry["timed_caption"] = [{"utterance": "in", "start_time": 0.0, "end_time": 0.4}]
    entry["traces"] = [[{"x": 0.21, "y": -0.05, "t": 0.0}]]
    entry["voice_recording"] = f"{dataset}/{dataset}_{image}_{annotator}.ogg"
    return json.dumps(entry) + "\n"


@pytest.fixture
def source(tmp_path):
    """Two files and two folders of images; returns the flags."""
    for folder, names in (("coco", ["000000000139.jpg", "000000574769.jpg"]), ("open", ["4a84e4d5a6d3f5a0.jpg"])):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).write_bytes(jpeg(len(name)))
    (tmp_path / "coco.jsonl").write_text(
        line(COCO, "574769", 1, "In this image there is a cat.")
        + line(COCO, "139", 2, "A room.")
        + line(COCO, "574769", 3, " A woman holds a cat. ")
    )
    (tmp_path / "open.jsonl").write_text(line(OPEN, "4a84e4d5a6d3f5a0", 1, "A street.\u2028Two cars."))
    return [
        *("--narratives", str(tmp_path / "coco.jsonl"), str(tmp_path / "open.jsonl")),
        *("--images", str(tmp_path / "coco"), str(tmp_path / "open"), "--output", str(tmp_path / "out")),
    ]


def test_narratives_of_one_image_are_one_row(source, narratives, tmp_path):
    narratives(source)
    reader = RecordReader(tmp_path / "out")
    assert [(reader.image_id(row), reader.captions(row)) for row in range(len(reader))] == [
        ("000000574769.jpg", ["In this image there is a cat.", "A woman holds a cat."]),
        ("000000000139.jpg", ["A room."]),
        ("4a84e4d5a6d3f5a0.jpg", ["A street. Two cars."]),
    ]
    assert reader.payload(2) == (tmp_path / "open" / "4a84e4d5a6d3f5a0.jpg").read_bytes()


def test_limit_keeps_all_narratives_of_its_images(source, narratives, tmp_path):
    narratives([*source, "--limit", "1"])
    reader = RecordReader(tmp_path / "out")
    assert len(reader) == 1 and len(reader.captions(0)) == 2


def test_the_same_file_with_and_without_traces_counts_once(source, narratives, tmp_path, caplog):
    copy = tmp_path / "captions.jsonl"
    entries = [json.loads(text) for text in (tmp_path / "coco.jsonl").read_text().splitlines()]
    keep = ("dataset_id", "image_id", "annotator_id", "caption")
    copy.write_text("".join(json.dumps({key: entry[key] for key in keep}) + "\n" for entry in entries))
    narratives([*source, "--narratives", str(tmp_path / "coco.jsonl"), str(copy)])
    assert RecordReader(tmp_path / "out").info.num_captions == 3
    assert "3 x narrative that stands there twice (taken once)" in caplog.text


def test_images_of_another_dataset_are_left_out(source, narratives, tmp_path, caplog):
    """COCO's validation images have narratives too: they must not come back in training."""
    narratives([*source, "--limit", "1", "--output", str(tmp_path / "val")])
    narratives([*source, "--exclude", str(tmp_path / "val")])
    assert [record.image_id for record in RecordReader(tmp_path / "out")] == [
        "000000000139.jpg",
        "4a84e4d5a6d3f5a0.jpg",
    ]
    assert "1 x image of an --exclude dataset (left out): 000000574769.jpg" in caplog.text
    assert "was met here by name" not in caplog.text
    with pytest.raises(ValueError, match="no image is left to write:\n  1 x image of an --exclude"):
        narratives([*source, "--limit", "1", "--exclude", str(tmp_path / "val"), "--output", str(tmp_path / "none")])
    with pytest.raises(ValueError, match="coco is not a BitGen dataset"):
        narratives([*source, "--exclude", str(tmp_path / "coco"), "--overwrite", "True"])


def test_a_picture_of_coco_is_known_by_its_number(source, narratives, tmp_path, caplog):
    """Karpathy's files and those of 2014 have other names for it."""
    name = "val2014/COCO_val2014_000000574769.jpg"
    write_images(tmp_path / "test", [Record(name, (tmp_path / "coco" / "000000574769.jpg").read_bytes(), ["a cat"])])
    write_images(tmp_path / "other", [Record("else.jpg", (tmp_path / "coco" / "000000574769.jpg").read_bytes(), ["a"])])
    narratives([*source, "--exclude", str(tmp_path / "test"), str(tmp_path / "other")])
    assert "000000574769.jpg" not in [record.image_id for record in RecordReader(tmp_path / "out")]
    assert "1 x image of an --exclude dataset (left out): 000000574769.jpg" in caplog.text
    [line] = [message for message in caplog.messages if "was met here by name" in message]
    assert str(tmp_path / "other") in line and "none of its 1 images" in line


def test_missing_images_stop_unless_allowed(source, narratives, tmp_path):
    (tmp_path / "open" / "4a84e4d5a6d3f5a0.jpg").rename(tmp_path / "open" / "other.jpg")
    with pytest.raises(ValueError, match=r"1 of 3 images[^$]*raise --max_failed_fraction[^$]*missing image: 4a84"):
        narratives(source)
    narratives([*source, "--max_failed_fraction", "0.5"])
    assert len(RecordReader(tmp_path / "out")) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "coco.jsonl is empty"),
        (line(COCO, "139", 1, "A room.")[:-20], "line 1 is not valid JSON .*cut off"),
        ("[1]\n", "line 1 is not a JSON object"),
        ('{"image_id": "139"}\n', "line 1 lacks image_id or caption; it has: image_id"),
        (line(COCO, "139", 1, "x") + line(COCO, "abc", 1, "x"), "line 2: image_id 'abc' of mscoco_train2017"),
    ],
)
def test_files_of_another_kind(source, narratives, tmp_path, text, message):
    (tmp_path / "coco.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        narratives(source)


def test_empty_and_missing_folders(source, narratives, tmp_path):
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match="--images .*nothing is an empty folder"):
        narratives([*source, "--images", str(tmp_path / "nothing")])
    with pytest.raises(ValueError, match="--images .*nowhere does not exist"):
        narratives([*source, "--images", str(tmp_path / "nowhere")])


@pytest.mark.realdata
def test_real_coco_images_under_their_numbers(shared_data, narratives, tmp_path):
    content = json.loads((shared_data / "coco_sample" / "captions_val2017.json").read_text())
    text = "".join(line("mscoco_val2017", str(a["image_id"]), a["id"], a["caption"]) for a in content["annotations"])
    (tmp_path / "narratives.jsonl").write_text(text)
    folder = shared_data / "coco_sample" / "val2017"
    flags = ["--narratives", str(tmp_path / "narratives.jsonl"), "--images", str(folder)]
    narratives([*flags, "--output", str(tmp_path / "out")])
    reader = RecordReader(tmp_path / "out")
    assert {record.image_id for record in reader} == {image["file_name"] for image in content["images"]}
    assert reader.info.num_captions == len(content["annotations"])
