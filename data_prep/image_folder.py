"""Turns any folder of images with a metadata file, or a dataset of the Hugging Face Hub, into a BitGen dataset.

The folder follows the imagefolder convention: metadata.csv or metadata.jsonl with file_name (relative to the folder)
and a column of captions. Several rows of one file_name, or a list in the captions' column (JSON lines), are several
captions of that image. So are several columns: caption_0, caption_1 ... are found by themselves. A cell with a text in
each of several languages ({"en": ..., "de": ...}) has them all as captions.

A Hub dataset has a column of images (or of the encoded files' bytes) and one or several of captions. It may also be a
local folder of Parquet files, or one that `datasets` wrote with save_to_disk. Rows with the same image are joined,
wherever they stand.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from _common.flags import add_image_flags, make_parser, parse, run
from _common.hub import hub_items, load_hub
from _common.images import image_items
from _common.problems import Problems
from _common.reading import need_folder, not_utf8, read_json_lines, with_captions
from _common.tables import caption_columns, texts_of
from _common.writing import write
from bitgen.data.records import DatasetInfo
from bitgen.guards.csv_files import BadCsv, read_csv
from bitgen.guards.printable import printable

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
        for number, row in read_csv(path):
            where = f"{path} line {number}"
            _refuse_swallowed_rows(row, where)
            rows.append((where, row))
    except UnicodeDecodeError as error:
        raise not_utf8(path, "--folder", error) from error
    except BadCsv as error:
        raise ValueError(f"{path} {error}") from error
    return rows


def _refuse_swallowed_rows(row: dict[str, str], where: str) -> None:
    """A quote that opens in one caption and closes in another makes one cell of all rows between them."""
    for column, cell in row.items():
        for line in cell.split("\n")[1:]:
            name = line.partition(",")[0].strip().strip('"')
            if "," in line and name.lower().endswith(_IMAGE_SUFFIXES):
                raise ValueError(
                    f"{where}: {printable(column, 40)} holds what look like further rows ({printable(line, 60)}): "
                    'close the quote that opened before them, or write "" for a quote that belongs to the text'
                )


def captions_by_file(rows: list[tuple[str, dict]], columns: list[str]) -> dict[str, list[str]]:
    """Captions of every file, in the order of the rows."""
    captions: dict[str, list[str]] = {}
    for where, row in rows:
        name = row.get("file_name")
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"{where} has no file_name; it has {printable(', '.join(row), 200)}")
        # The same file under two spellings, a.jpg and ./a.jpg, is one image.
        captions.setdefault(os.path.normpath(name.strip()), []).extend(texts_of(row, columns, where))
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
    source.add_argument("--hub_dataset", help="Hub id such as user/pictures, or a local folder (see above)")
    parser.add_argument(
        "--caption_column", help="column of the captions, or several with commas between; found where there is no doubt"
    )
    parser.add_argument("--image_column", help="Hub dataset: column of the images; found by itself where there is one")
    parser.add_argument("--config", help="Hub dataset: configuration, where it has several")
    parser.add_argument("--split", help="Hub dataset: split (default: train, or the only one there is)")
    parser.add_argument(
        "--images",
        type=Path,
        help="Hub dataset: folder of the files that rows name where they hold no image themselves",
    )
    add_image_flags(parser)
    args = parse(parser, argv)
    if args.folder and (args.image_column or args.config or args.split or args.images):
        parser.error("--image_column, --config, --split and --images belong to --hub_dataset, not to --folder")

    problems = Problems(args.max_failed_fraction)
    if args.folder:
        metadata = find_metadata(need_folder(args.folder, "--folder"))
        rows = read_metadata(metadata)
        if not rows:
            raise ValueError(f"{metadata} lists no image")
        columns = caption_columns({name for _, row in rows for name in row}, args.caption_column, str(metadata))
        listed = captions_by_file(rows, columns)
        count_unlisted(args.folder, listed, problems)
        wanted = dict(list(listed.items())[: args.limit])
        captions = with_captions(wanted, problems)
        items = image_items([args.folder], captions, args.check_images, args.max_image_pixels, problems)
        total, source = len(wanted), f"folder: {args.folder.resolve().name}"
    else:
        hub = load_hub(args)
        items, total = hub_items(hub, args.limit, args, problems)
        source = f"Hub: {hub.name}"
    write(items, DatasetInfo(kind="images", source=source), problems, total, args)


if __name__ == "__main__":
    run(main)
