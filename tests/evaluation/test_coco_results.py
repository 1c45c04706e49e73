"""Captions of `--predictions`, as COCO's own tools read them."""

from __future__ import annotations

import json
import os

import pytest

from bitgen.commands import evaluate
from bitgen.data.dataset import PairDataset
from bitgen.data.record_writer import write_dataset
from bitgen.data.records import DatasetInfo, Record
from bitgen.data.source_ids import SOURCE_IDS, read_source_ids
from bitgen.evaluation.captioning import coco_results
from bitgen.trained import open_model
from support.data import jpeg
from support.runs import written_run

NAMED = ["a.png", "b.png", "c.png"]
BY_COCO = ["COCO_val2014_000000391895.jpg", "val2017/000000000139.jpg", "000000000285.jpg"]


def dataset(folder, names, numbers=None):
    records = [Record(name, jpeg(row), ["a cat"]) for row, name in enumerate(names)]
    write_dataset(folder, records, DatasetInfo(kind="images", source="test"), source_ids=numbers)
    return folder


@pytest.mark.parametrize(
    ("names", "numbers", "expected"),
    [
        (NAMED, {"a.png": 500, "b.png": 7, "c.png": 9}, [500, 7, 9]),
        (NAMED, None, NAMED),
        (NAMED, {"b.png": 7}, ["a.png", 7, "c.png"]),
        (BY_COCO, None, [391895, 139, 285]),
        (BY_COCO, {BY_COCO[0]: 1}, [1, 139, 285]),
    ],
)
def test_an_image_has_cocos_number_where_it_is_known(tmp_path, names, numbers, expected):
    read = PairDataset(dataset(tmp_path / "data", names, numbers), open_model(written_run()).processor)
    found = coco_results(read, ["one", "two", "three"])
    assert found == [
        {"image_id": number, "caption": text} for number, text in zip(expected, ("one", "two", "three"), strict=True)
    ]


def test_the_file_loads_beside_the_annotations_it_came_from(tmp_path, capsys):
    from pycocotools import coco

    folder = dataset(tmp_path / "data", NAMED, {"a.png": 500, "b.png": 7, "c.png": 9})
    annotations = {
        "info": {},
        "images": [{"id": number, "file_name": name} for name, number in read_source_ids(folder).items()],
        "annotations": [{"id": row, "image_id": number, "caption": "a cat"} for row, number in enumerate((500, 7, 9))],
    }
    (tmp_path / "coco.json").write_text(json.dumps(annotations))
    evaluate.main(
        ["--task", "captioning", "--checkpoint", str(written_run()), "--data", str(folder), "--device", "cpu"]
        + ["--num_workers", "0", "--num_beams", "1", "--max_new_tokens", "2", "--precision", "fp32"]
        + ["--output", str(tmp_path / "results.json"), "--predictions", str(tmp_path / "said.json")]
    )
    found = coco.COCO(str(tmp_path / "coco.json")).loadRes(str(tmp_path / "said.json"))
    assert found.getImgIds() == [500, 7, 9] and len(found.anns) == 3


@pytest.mark.parametrize("content", ["[1]", '{"a.png": "x"}', '{"a.png": 1.5}', "{", '{"a.png": true}'])
def test_damaged_numbers_are_named(tmp_path, content):
    (tmp_path / SOURCE_IDS).write_text(content)
    with pytest.raises(ValueError, match=f"{os.sep}{SOURCE_IDS} is damaged"):
        read_source_ids(tmp_path)
