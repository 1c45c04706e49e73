"""Turns a COCO caption file (captions_train2017.json or alike) and a folder of images into a BitGen dataset."""

from __future__ import annotations

from pathlib import Path

from _common.coco_ids import coco_ids
from _common.flags import add_image_flags, make_parser, parse, run
from _common.images import image_items
from _common.problems import Problems
from _common.reading import read_json, with_captions
from _common.writing import write
from bitgen.data.records import DatasetInfo

EXAMPLE = """\
  python data_prep/coco.py --annotations annotations/captions_train2017.json --images train2017 --output data/coco_train
  python data_prep/coco.py --annotations annotations/captions_val2017.json --images val2017 --output data/coco_val
then
  python src/train_stage1_vision_language.py --train_data data/coco_train --val_data data/coco_val"""


def read_annotations(path: Path, problems: Problems) -> dict[str, list[str]]:
    """Captions of every image file in a COCO caption file, in its order; an image without one has an empty list.

    Raises ``ValueError`` for a file that is not of this format.
    """
    content = read_json(path, "--annotations")
    if not isinstance(content, dict):
        raise ValueError(f"--annotations {path} must hold a JSON object with `images` and `annotations`")
    names: dict[int, str] = {}
    captions: dict[str, list[str]] = {}
    for position, image in enumerate(_entries(content, "images", path)):
        try:
            name, number = str(image["file_name"]), int(image["id"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"--annotations {path}: images[{position}] lacks `id` or `file_name`: {image!r}"
            ) from error
        if number in names or name in captions:
            problems.add("duplicate name or id in images (taken once)", name)
        names.setdefault(number, name)
        captions.setdefault(name, [])
    for position, annotation in enumerate(_entries(content, "annotations", path)):
        try:
            number, caption = int(annotation["image_id"]), str(annotation["caption"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"--annotations {path}: annotations[{position}] lacks `image_id` or `caption` (an instances file is "
                f"something else; take the captions file): {str(annotation)[:80]}"
            ) from error
        if number in names:
            captions[names[number]].append(caption)
        else:
            problems.add("caption of an image that is not listed (dropped)", f"image_id {number}")
    return captions


def _entries(content: dict, key: str, path: Path) -> list:
    entries = content.get(key)
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"--annotations {path} has no list `{key}`, or an empty one; is it a COCO captions file?")
    return entries


def main(argv: list[str] | None = None) -> None:
    """Reads the flags, writes the dataset, logs a summary. Raises ``ValueError`` for anything a user can put right."""
    parser = make_parser(__doc__, EXAMPLE)
    parser.add_argument("--annotations", type=Path, required=True, help="caption JSON: images, annotations")
    parser.add_argument("--images", type=Path, required=True, help="folder with the image files")
    add_image_flags(parser)
    args = parse(parser, argv)

    problems = Problems(args.max_failed_fraction)
    wanted = dict(list(read_annotations(args.annotations, problems).items())[: args.limit])
    captions = with_captions(wanted, problems)
    items = image_items([args.images], captions, args.check_images, args.max_image_pixels, problems)
    info = DatasetInfo(kind="images", source=f"COCO: {args.annotations.name}")
    numbers = coco_ids(args.annotations)
    write(items, info, problems, len(wanted), args, {name: numbers[name] for name in captions if name in numbers})


if __name__ == "__main__":
    run(main)
