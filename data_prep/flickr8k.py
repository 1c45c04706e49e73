"""Turns Flickr8k's own files into a BitGen dataset: images, or image features computed earlier, and their captions.

Captions are read in the formats that Flickr8k and Flickr30k are found in, one caption a line: captions.txt (commas,
with the header image,caption or image_name,comment_number,comment), Flickr8k.token.txt and results_20130124.token
(name.jpg#0<TAB>caption), and Flickr30k's results.csv (bars, with the header image_name| comment_number| comment). The
split file names the images to take, one a line; where only some of the images are at hand, pass the list of those.
Karpathy's dataset_flickr8k.json and dataset_flickr30k.json are read by data_prep/coco.py.
"""

from __future__ import annotations

import re
from argparse import Namespace
from functools import partial
from pathlib import Path

from _common.features import FeatureFile
from _common.flags import add_image_flags, make_parser, parse, run
from _common.images import image_items
from _common.problems import Problems
from _common.reading import read_lines, read_names, with_captions
from _common.writing import Item, write
from bitgen.data.records import DatasetInfo
from bitgen.guards.printable import printable

EXAMPLE = """\
  python data_prep/flickr8k.py --captions captions.txt --split split_train.txt --images Images \\
      --output data/flickr8k_images/train
  python data_prep/flickr8k.py --captions captions.txt --split split_train.txt --features train.npy \\
      --feature_images train_images.txt --feature_info features.json --output data/flickr8k_features/train
  python data_prep/flickr8k.py --captions captions.txt --split split_dev.txt --features dev.npy \\
      --feature_images dev_images.txt --feature_info features.json --output data/flickr8k_features/dev
then
  python src/train_stage1_vision_language.py --config configs/flickr8k_features.yaml"""

_TOKEN_LINE = re.compile(r"(?P<name>[^\t]+)#\d+\t(?P<caption>.*)")
_QUOTED = r'"[^"]*(?:""[^"]*)*"'
_COMMA_LINE = re.compile(rf"(?P<name>{_QUOTED}|[^,]*),(?P<caption>.*)")
_NUMBERED_COMMA_LINE = re.compile(rf"(?P<name>{_QUOTED}|[^,]*),\s*\d+\s*,(?P<caption>.*)")
# The second bar is missing in a row of the published file: "name.jpg| 4   A dog runs .".
_BAR_LINE = re.compile(r"(?P<name>[^|]+)\|\s*\d+(?:\s*(?P<bar>\|)|\s)(?P<caption>.*)")
_HEADERS = {
    "image,caption": _COMMA_LINE,
    "image_name,comment_number,comment": _NUMBERED_COMMA_LINE,
    "image_name|comment_number|comment": _BAR_LINE,
}


def _form(line: str) -> tuple[str, re.Pattern[str], bool]:
    """What the lines of a file look like whose first one this is, the pattern of them, and whether it is a header."""
    if _TOKEN_LINE.fullmatch(line):
        return "name#0<TAB>caption", _TOKEN_LINE, False
    header = re.sub(r'[\s"]', "", line).lower()
    if header in _HEADERS:
        return header, _HEADERS[header], True
    if _BAR_LINE.fullmatch(line):
        return "image_name|comment_number|comment", _BAR_LINE, False
    return "image,caption", _COMMA_LINE, False


def read_captions(path: Path, problems: Problems) -> dict[str, list[str]]:
    """Captions of every image name in a file of one caption a line, in the file's order.

    Raises ``ValueError`` naming the line that is not in the format of the first.
    """
    captions: dict[str, list[str]] = {}
    form, pattern = "", _COMMA_LINE
    for number, line in read_lines(path, "--captions"):
        if not form:
            form, pattern, is_header = _form(line)
            if is_header:
                continue
        match = pattern.fullmatch(line)
        name, caption = (match["name"].strip(), match["caption"]) if match else ("", "")
        if "," in form:
            name, caption = _unquoted(name) or name, _comma_caption(caption, name, problems)
        if not name or caption is None:
            quotes = " (a caption with commas needs quotes)" if "," in form else ""
            raise ValueError(f"--captions {path} line {number} is not `{form}`{quotes}: {printable(line, 80)!r}")
        if match and pattern is _BAR_LINE and not match["bar"]:
            problems.add("line without its second bar (its caption is what follows the number)", f"line {number}")
        captions.setdefault(name, []).append(caption)
    if not form:
        raise ValueError(f"--captions {path} is empty")
    return captions


def _unquoted(cell: str) -> str | None:
    """The text of a cell in quotes, or None where they are not those of CSV."""
    return cell[1:-1].replace('""', '"') if re.fullmatch(_QUOTED, cell) else None


def _comma_caption(cell: str, name: str, problems: Problems) -> str | None:
    """The caption that ends a line of CSV; None where nobody can tell, for it has commas and no quotes.

    A line is one caption: a quote that is not closed would take the lines after it along.
    """
    unquoted = _unquoted(cell.strip()) if cell.lstrip().startswith('"') else None
    if unquoted is not None:
        return unquoted
    if "," in cell:
        return None
    if cell.lstrip().startswith('"'):
        problems.add("caption with quotes that are not those of CSV (taken as it stands)", name)
    return cell


def select(args: Namespace, problems: Problems) -> tuple[dict[str, list[str]], int]:
    """Captions of the images of the split that have any, and the number of images asked for."""
    names: dict[str, None] = {}
    for name in read_names(args.split, "--split"):
        if name in names:
            problems.add("duplicate name in --split (taken once)", name)
        names[name] = None
    captions = read_captions(args.captions, problems)
    wanted = {name: captions.get(name, []) for name in list(names)[: args.limit]}
    return with_captions(wanted, problems), len(wanted)


def main(argv: list[str] | None = None) -> None:
    """Reads the flags, writes the dataset, logs a summary. Raises ``ValueError`` for anything a user can put right."""
    parser = make_parser(__doc__, EXAMPLE)
    parser.add_argument("--captions", type=Path, required=True, help="captions.txt, results.csv or a .token file")
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
