"""The numbers that a source gives its images, beside a dataset whose images are named by their files: COCO's ids."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from bitgen.guards.json_files import BadJson, read_json

SOURCE_IDS = "source_ids.json"
# Twelve digits, of which COCO needs six: other people name their pictures by date and time.
_COCO_NAME = re.compile(r"(?:COCO_[a-z0-9]+_)?(0{6}\d{6})\.(?:jpg|png)")


def write_source_ids(folder: Path, numbers: Mapping[str, int]) -> None:
    """Write the source's number of each image_id into a dataset's folder; nothing where there is none."""
    if numbers:
        (folder / SOURCE_IDS).write_text(json.dumps(dict(numbers)) + "\n", encoding="utf-8")


def source_id(numbers: Mapping[str, int], image_id: str) -> int | str:
    """The source's number of an image; of COCO's own files the one in the name; else the name itself."""
    if image_id in numbers:
        return numbers[image_id]
    name = _COCO_NAME.fullmatch(Path(image_id).name)
    return int(name[1]) if name else image_id


def read_source_ids(folder: str | Path) -> dict[str, int]:
    """The source's number of each image_id of a dataset; empty where it has none.

    Raises:
        ValueError: the file is damaged.
    """
    path = Path(folder) / SOURCE_IDS
    try:
        numbers = read_json(path, dict)
        if not all(type(number) is int for number in numbers.values()):
            raise BadJson("it holds other values than whole numbers")
    except FileNotFoundError:
        return {}
    except (OSError, BadJson) as error:
        raise ValueError(f"{path} is damaged ({error}): remove it, or prepare the dataset again") from error
    return numbers
