"""Turns any folder of images with a metadata file, or a dataset of the Hugging Face Hub, into a BitGen dataset.

The folder follows the imagefolder convention: metadata.csv or metadata.jsonl with file_name (relative to the folder)
and a column of captions. Several rows of one file_name, or a list in the captions' column (JSON lines), are several
captions of that image. A Hub dataset has a column of images and one of captions; rows that follow one another with the
same image are joined.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable
from pathlib import Path

from _common.flags import add_image_flags, make_parser, parse, run
from _common.hub import hub_items, load_hub
from _common.images import image_items
from _common.problems import Problems
from _common.reading import need_folder, not_utf8, read_json_lines, with_captions
from _common.tables import caption_column, texts_of
from _common.writing import write
from bitgen.data.records import DatasetInfo

EXAMPLE = """\
  python data_prep/image_folder.py --folder photos --output data/photos
  python data_prep/image_folder.py --folder photos --caption_column description --output data/photos
  python data_prep/image_folder.py --hub_dataset user/pictures --split train --output data/pictures
with photos/metadata.csv
  file_name,caption
  beach/1.jpg,"a dog on the beach, running"
or photos/metadata.jsonl
  {"file_name": "beach/1.jpg", "captions": ["a dog on the beach", "a running dog"]}
then
  python src/train_stage1_vision_language.py --train_data data/photos"""

_METADATA = ("metadata.csv", "metadata.jsonl")
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


def find_metadata(folder: Path) -> Path:
    """The metadata file of ``folder``; ``ValueError`` when there is none, or two."""
    found = [folder / name for name in _METADATA if (folder / name).is_file()]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"--folder {folder} has both {' and '.join(_METADATA)}; move one away")
    below = sorted(path.parent for name in _METADATA for path in folder.glob(f"*/{name}"))
    hint = f"; {below[0]} has one: pass that folder" if below else ""
    raise ValueError(
        f"--folder {folder} has neither {' nor '.join(_METADATA)}{hint}. Write one with a line an image: "
        "file_name (relative to the folder) and caption, as --help shows"
    )


def read_metadata(path: Path) -> list[tuple[str, dict]]:
    """``("metadata.csv line 2", row)`` of every row. Raises ``ValueError`` naming the line that is no row."""
    if path.suffix == ".jsonl":
        return [(f"{path} line {number}", row) for number, row in read_json_lines(path, "--folder")]
    rows = []
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            for row in reader:
                where = f"{path} line {reader.line_num}"
                if None in row or None in row.values():
                    raise ValueError(
                        f"{where} does not have the {len(reader.fieldnames)} cells of the header (a caption with "
                        f"commas needs quotes): {list(row.values())}"
                    )
                rows.append((where, row))
    except UnicodeDecodeError as error:
        raise not_utf8(path, "--folder", error) from error
    except csv.Error as error:
        raise ValueError(f"{path} line {reader.line_num} is not CSV ({error})") from error
    return rows


def captions_by_file(rows: list[tuple[str, dict]], column: str, problems: Problems) -> dict[str, list[str]]:
    """Captions of every file, in the order of the rows."""
    captions: dict[str, list[str]] = {}
    for where, row in rows:
        name = row.get("file_name")
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"{where} has no file_name; it has {', '.join(row)}")
        captions.setdefault(name.strip(), []).extend(texts_of(row.get(column), column, where))
    return captions


def count_unlisted(folder: Path, names: Iterable[str], problems: Problems) -> None:
    """Counts image files below ``folder`` that the metadata do not name."""
    listed = {os.path.normpath(name) for name in names}
    for parent, folders, files in os.walk(folder):
        folders.sort()
        for file in sorted(files):
            name = os.path.relpath(os.path.join(parent, file), folder)
            if file.lower().endswith(_IMAGE_SUFFIXES) and name not in listed:
                problems.add("image without a line in the metadata (left out)", name)


def main(argv: list[str] | None = None) -> None:
    """Reads the flags, writes the dataset, logs a summary. Raises ``ValueError`` for anything a user can put right."""
    parser = make_parser(__doc__, EXAMPLE)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--folder", type=Path, help="folder of images with metadata.csv or metadata.jsonl")
    source.add_argument("--hub_dataset", help="Hub id such as user/pictures, or a local folder of Parquet files")
    parser.add_argument("--caption_column", help="column of the captions; found by itself where there is no doubt")
    parser.add_argument("--image_column", help="Hub dataset: column of the images; found by itself where there is one")
    parser.add_argument("--config", help="Hub dataset: configuration, where it has several")
    parser.add_argument("--split", help="Hub dataset: split (default train)")
    add_image_flags(parser)
    args = parse(parser, argv)
    if args.folder and (args.image_column or args.config or args.split):
        parser.error("--image_column, --config and --split belong to --hub_dataset, not to --folder")

    problems = Problems(args.max_failed_fraction)
    if args.folder:
        metadata = find_metadata(need_folder(args.folder, "--folder"))
        rows = read_metadata(metadata)
        if not rows:
            raise ValueError(f"{metadata} lists no image")
        column = caption_column({name for _, row in rows for name in row}, args.caption_column, str(metadata))
        listed = captions_by_file(rows, column, problems)
        count_unlisted(args.folder, listed, problems)
        wanted = dict(list(listed.items())[: args.limit])
        captions = with_captions(wanted, problems)
        items = image_items([args.folder], captions, args.check_images, args.max_image_pixels, problems)
        total, source = len(wanted), f"folder: {args.folder.resolve().name}"
    else:
        split = args.split or "train"
        rows, image, column = load_hub(args.hub_dataset, args.config, split, args.image_column, args.caption_column)
        rows = rows.select(range(min(args.limit or len(rows), len(rows))))
        name = f"{args.hub_dataset}/{split}"
        items = hub_items(rows, image, column, name, args.check_images, args.max_image_pixels, problems)
        total, source = len(rows), f"Hub: {name}"
    write(items, DatasetInfo(kind="images", source=source), problems, total, args)


if __name__ == "__main__":
    run(main)
