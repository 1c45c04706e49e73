"""Turns a JSON file of captions (COCO's captions_train2017.json or alike) and a folder of images into a BitGen dataset.

Four layouts are understood: COCO's own (`images` and `annotations`, ids being numbers or texts); Karpathy's
dataset_coco.json, dataset_flickr8k.json and dataset_flickr30k.json (`images` with `sentences` and `split`); LAVIS's
(a list of `image` and `caption`, as in coco_karpathy_train.json); and LLaVA's (a list of `image` and `conversations`
with one answer). The names of files in it are relative to --images; where they have folders (`train2014/...`), it is
the folder that holds those.
"""

from __future__ import annotations

from pathlib import Path

from _common.caption_json import ALL, captions_in
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
  python data_prep/coco.py --annotations dataset_flickr30k.json --split train --images flickr30k-images \\
      --output data/flickr30k_train
then
  python src/train_stage1_vision_language.py --train_data data/coco_train --val_data data/coco_val"""


def main(argv: list[str] | None = None) -> None:
    """Reads the flags, writes the dataset, logs a summary. Raises ``ValueError`` for anything a user can put right."""
    parser = make_parser(__doc__, EXAMPLE)
    parser.add_argument("--annotations", type=Path, required=True, help="caption JSON, in one of the layouts above")
    parser.add_argument("--images", type=Path, required=True, help="folder with the image files")
    parser.add_argument(
        "--split",
        nargs="+",
        metavar="NAME",
        help=f"Karpathy's layout: splits to take (train, restval, val, test), or {ALL}; needed where there are several",
    )
    add_image_flags(parser)
    args = parse(parser, argv)

    problems = Problems(args.max_failed_fraction)
    content = read_json(args.annotations, "--annotations")
    found = captions_in(content, f"--annotations {args.annotations}", args.split, problems)
    wanted = dict(list(found.items())[: args.limit])
    captions = with_captions(wanted, problems)
    items = image_items([args.images], captions, args.check_images, args.max_image_pixels, problems)
    split = f", {' '.join(args.split)}" if args.split else ""
    info = DatasetInfo(kind="images", source=f"COCO: {args.annotations.name}{split}")
    numbers = coco_ids(content)
    write(items, info, problems, len(wanted), args, {name: numbers[name] for name in captions if name in numbers})


if __name__ == "__main__":
    run(main)
