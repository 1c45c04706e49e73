"""COCO: made-up annotations with everything wrong, and real ones."""

import json

import pytest

from bitgen.data.records import RecordReader
from bitgen.data.source_ids import read_source_ids
from support.flickr8k_files import Source


@pytest.fixture
def coco(script):
    return script("coco")


def coco_json(source: Source) -> dict:
    images = [{"id": 100 + index, "file_name": name} for index, name in enumerate(source.names)]
    annotations = [
        {"id": index, "image_id": 100 + index % len(images), "caption": f" caption {index} \n"}
        for index in range(3 * len(images))
    ]
    return {"info": {}, "images": images, "annotations": annotations}


def coco_flags(source: Source, content: object, *more: str) -> list[str]:
    (source.folder / "captions.json").write_text(json.dumps(content))
    annotations = str(source.folder / "captions.json")
    return ["--annotations", annotations, "--images", str(source.images), "--output", str(source.output), *more]


def test_coco_gathers_captions_by_image(source, coco):
    coco(coco_flags(source, coco_json(source)))
    reader = RecordReader(source.output)
    assert len(reader) == 6
    assert reader[2].image_id == "2.jpg"
    assert reader[2].captions == ["caption 2", "caption 8", "caption 14"]
    assert read_source_ids(source.output) == {f"{row}.jpg": 100 + row for row in range(6)}
    assert reader[2].payload == (source.images / "2.jpg").read_bytes()


def test_numbers_of_another_source_exclude_nothing_of_cocos(source, coco, tmp_path, caplog):
    """A file in COCO's layout has numbers of its own: its 102 is not the picture 000000000102.jpg."""
    coco(coco_flags(source, coco_json(source), "--output", str(tmp_path / "mine")))
    content = coco_json(source)
    for index, image in enumerate(content["images"]):
        (source.images / image["file_name"]).rename(source.images / f"{100 + index:012d}.jpg")
        image["file_name"] = f"{100 + index:012d}.jpg"
    coco(coco_flags(source, content, "--exclude", str(tmp_path / "mine")))
    assert len(RecordReader(source.output)) == 6
    assert "none of its 6 images was met here by name" in caplog.text


def test_coco_counts_what_is_wrong(large, coco, caplog):
    content = coco_json(large)
    content["annotations"].append({"image_id": 7, "caption": "nobody's"})
    content["images"].append(dict(content["images"][3]))
    content["annotations"][0]["caption"] = " "
    (large.images / "9.jpg").unlink()
    coco(coco_flags(large, content))
    assert "1 x caption of an image that is not listed (dropped): image_id 7" in caplog.text
    assert "1 x duplicate name or id in images (taken once): 3.jpg" in caplog.text
    assert "1 x empty caption (dropped): 0.jpg" in caplog.text
    assert "1 x missing image: 9.jpg" in caplog.text
    assert len(RecordReader(large.output)) == 199


def test_coco_stops_when_images_are_missing(source, coco):
    (source.images / "1.jpg").unlink()
    with pytest.raises(ValueError, match=r"1 of 6 images \(16.7%\)[^$]*missing image: 1.jpg"):
        coco(coco_flags(source, coco_json(source)))
    assert not source.output.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "JSON object"),
        ({"images": []}, "no list `images`, or an empty one"),
        ({"images": [{"id": 1}]}, r"images\[0\] lacks"),
        ({"images": [{"id": 1, "file_name": "a"}]}, "no list `annotations`"),
        (
            {"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 1, "bbox": []}]},
            r"annotations\[0\].*captions file",
        ),
    ],
)
def test_coco_file_of_another_kind(source, coco, content, message):
    with pytest.raises(ValueError, match=message):
        coco(coco_flags(source, content))


@pytest.mark.realdata
def test_real_coco_sample(shared_data, coco, tmp_path):
    folder = shared_data / "coco_sample"
    flags = ["--annotations", str(folder / "captions_val2017.json"), "--images", str(folder / "val2017")]
    coco([*flags, "--output", str(tmp_path / "out")])
    content = json.loads((folder / "captions_val2017.json").read_text())
    reader = RecordReader(tmp_path / "out")
    assert (len(reader), reader.info.num_captions) == (len(content["images"]), len(content["annotations"]))
