"""Turns Localized Narratives (JSON lines: image_id, caption, ...) and their images into a BitGen dataset.

The narratives' files are those of the project's site, with or without traces: open_images_train_v6_captions.jsonl,
mscoco_train2017_localized_narratives-00000-of-00004.jsonl and so on; several can be given. The images are found by
image_id: OpenImages, Flickr30k and ADE20k as ID.jpg, MSCOCO under its own names of 12 digits. All narratives of one
image become one row.
"""

from __future__ import annotations

from pathlib import Path

from _common.flags import add_image_flags, make_parser, parse, run
from _common.images import image_items
from _common.problems import Problems
from _common.reading import read_json_lines, shown, with_captions
from _common.writing import write
from bitgen.data.captions import captions_of
from bitgen.data.records import DatasetInfo
from bitgen.guards.printable import printable

EXAMPLE = """\
  python data_prep/localized_narratives.py --narratives mscoco_train2017_captions.jsonl --images train2017 \\
      --output data/narratives_coco --exclude data/coco_val
  python data_prep/localized_narratives.py --narratives open_images_train_v6_*.jsonl --images train_0 train_1 \\
      --output data/narratives_open_images
then
  python src/train_stage1_vision_language.py --train_data data/narratives_coco --val_data data/coco_val"""


def file_name(dataset_id: str, image_id: str) -> str:
    """Name of an image's file: ``dataset_id`` decides how ``image_id`` is written. ``ValueError`` for no such id."""
    if not dataset_id.lower().startswith("mscoco"):
        return f"{image_id}.jpg"
    if not (image_id.isdecimal() and len(image_id) <= 12):
        raise ValueError(f"image_id {shown(image_id)} of {printable(dataset_id, 40)} is not a number of COCO's")
    return f"{int(image_id):012d}.jpg"


def read_narratives(paths: list[Path], problems: Problems) -> dict[str, list[str]]:
    """Narratives of every image file, images in the order of their first one.

    A narrative that stands there twice (the same annotator, image and text: files given with and without traces) is
    taken once. Raises ``ValueError`` naming file and line.
    """
    captions: dict[str, list[str]] = {}
    seen: set[int] = set()
    for path in paths:
        empty = True
        for number, entry in read_json_lines(path, "--narratives"):
            empty = False
            image_id, caption = entry.get("image_id"), entry.get("caption")
            where = f"--narratives {path} line {number}"
            if not isinstance(image_id, (str, int)) or isinstance(image_id, bool) or "caption" not in entry:
                present = printable(", ".join(entry), 200)
                raise ValueError(f"{where} lacks image_id or caption; it has: {present}")
            try:
                name = file_name(str(entry.get("dataset_id", "")), str(image_id))
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error
            texts = captions_of(caption, "caption", where)
            key = hash((name, str(entry.get("annotator_id")), *texts))
            if "annotator_id" in entry and key in seen:
                problems.add("narrative that stands there twice (taken once)", name)
                continue
            seen.add(key)
            captions.setdefault(name, []).extend(texts)
        if empty:
            raise ValueError(f"--narratives {path} is empty")
    return captions


def main(argv: list[str] | None = None) -> None:
    """Reads the flags, writes the dataset, logs a summary. Raises ``ValueError`` for anything a user can put right."""
    parser = make_parser(__doc__, EXAMPLE)
    parser.add_argument("--narratives", type=Path, nargs="+", required=True, metavar="FILE", help="JSON lines files")
    parser.add_argument(
        "--images", type=Path, nargs="+", required=True, metavar="DIR", help="folders with the image files"
    )
    add_image_flags(parser)
    args = parse(parser, argv)

    problems = Problems(args.max_failed_fraction)
    wanted = dict(list(read_narratives(args.narratives, problems).items())[: args.limit])
    captions = with_captions(wanted, problems)
    items = image_items(args.images, captions, args.check_images, args.max_image_pixels, problems)
    source = f"Localized Narratives: {', '.join(path.name for path in args.narratives)}"
    write(items, DatasetInfo(kind="images", source=source), problems, len(wanted), args)


if __name__ == "__main__":
    run(main)
