"""Turns Flickr8k's own files into a BitGen dataset: images, or image features computed earlier, and their captions.

Captions are read in both of the formats that Flickr8k is found in: captions.txt (CSV with the header image,caption) and
Flickr8k.token.txt (name.jpg#0<TAB>caption). Flickr30k in either format works too. The split file names the images to
take, one a line; where only some of the images are at hand, pass the list of those.
"""

from __future__ import annotations

import csv
import io
import re
from argparse import Namespace
from functools import partial
from pathlib import Path

from _common.features import FeatureFile
from _common.flags import add_image_flags, make_parser, parse, run
from _common.images import image_items
from _common.problems import Problems
from _common.reading import read_names, read_text, with_captions
from _common.writing import Item, write
from bitgen.data.records import DatasetInfo

EXAMPLE = """\
  python data_prep/flickr8k.py --captions captions.txt --split split_train.txt --images Images \\
      --output data/flickr8k_train
  python data_prep/flickr8k.py --captions captions.txt --split split_train.txt --features train.npy \\
      --feature_images train_images.txt --feature_info features.json --output data/flickr8k_features_train
then
  python src/train_stage1_vision_language.py --train_data data/flickr8k_train --val_data data/flickr8k_dev"""

_TOKEN_LINE = re.compile(r"(?P<name>[^\t]+)#\d+\t(?P<caption>.*)")


def read_captions(path: Path) -> dict[str, list[str]]:
    """Captions of every image name in ``captions.txt`` or ``Flickr8k.token.txt``, in the file's order.

    Raises ``ValueError`` naming the line that is in neither format.
    """
    text = read_text(path, "--captions")
    lines = text.split("\n")
    if not any(line.strip() for line in lines):
        raise ValueError(f"--captions {path} is empty")
    captions: dict[str, list[str]] = {}
    if _TOKEN_LINE.fullmatch(next(line for line in lines if line.strip())):
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            match = _TOKEN_LINE.fullmatch(line)
            if match is None:
                raise ValueError(f"--captions {path} line {number} is not `name#0<TAB>caption`: {line[:80]!r}")
            captions.setdefault(match["name"].strip(), []).append(match["caption"])
        return captions
    reader = csv.reader(io.StringIO(text, newline=""))
    for cells in reader:
        if not cells or [cell.strip().lower() for cell in cells] == ["image", "caption"]:
            continue
        if len(cells) != 2 or not cells[0].strip():
            raise ValueError(
                f"--captions {path} line {reader.line_num} is not `image,caption` "
                f"(a caption with commas needs quotes): {','.join(cells)[:80]!r}"
            )
        captions.setdefault(cells[0].strip(), []).append(cells[1])
    return captions


def select(args: Namespace, problems: Problems) -> tuple[dict[str, list[str]], int]:
    """Captions of the images of the split that have any, and the number of images asked for."""
    names: dict[str, None] = {}
    for name in read_names(args.split, "--split"):
        if name in names:
            problems.add("duplicate name in --split (taken once)", name)
        names[name] = None
    captions = read_captions(args.captions)
    wanted = {name: captions.get(name, []) for name in list(names)[: args.limit]}
    return with_captions(wanted, problems), len(wanted)


def main(argv: list[str] | None = None) -> None:
    """Reads the flags, writes the dataset, logs a summary. Raises ``ValueError`` for anything a user can put right."""
    parser = make_parser(__doc__, EXAMPLE)
    parser.add_argument("--captions", type=Path, required=True, help="captions.txt or Flickr8k.token.txt")
    parser.add_argument("--split", type=Path, required=True, help="image names to take, one a line")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--images", type=Path, help="folder with the image files")
    source.add_argument(
        "--features", type=Path, help=".npy with features [images, patches, channels] or [images, channels]"
    )
    parser.add_argument("--feature_images", type=Path, help="image name of each row of --features, one a line")
    parser.add_argument("--feature_info", type=Path, help="JSON with scale and zero_point of int8 features")
    add_image_flags(parser)
    args = parse(parser, argv)
    if args.features and not args.feature_images:
        parser.error("--features needs --feature_images, the list of the image names of its rows")
    if args.images and (args.feature_images or args.feature_info):
        parser.error("--feature_images and --feature_info belong to --features, not to --images")

    problems = Problems(args.max_failed_fraction)
    captions, total = select(args, problems)
    if args.images:
        items = image_items([args.images], captions, args.check_images, args.max_image_pixels, problems)
        info = DatasetInfo(kind="images", source=f"Flickr8k: {args.split.name}")
    else:
        features = FeatureFile(args.features, args.feature_images, args.feature_info, problems)
        items = []
        for name, texts in captions.items():
            if name in features.rows:
                items.append(Item(name, partial(features.payload, name), texts))
            else:
                problems.add("missing features", name, lost=True)
        info = DatasetInfo(kind="features", source=f"Flickr8k: {args.split.name}", **features.description)
    write(items, info, problems, total, args)


if __name__ == "__main__":
    run(main)
