"""Turns expressions with the box of what they name into a BitGen dataset of questions: where is the ...?

--source names the layout of --records, that of the files as they are published:

  mdetr                 JSON of MDETR (finetune_refcoco_train.json, final_flickr_separateGT_train.json and alike)
  flickr30k_entities    the folder that holds Sentences and Annotations; --split train.txt takes the images it lists
  localized_narratives  JSON lines with traces (..._localized_narratives-00000-of-00004.jsonl): rough boxes, of the
                        pointer's path while a thing was named
  jsonl                 an object a line: image, expression, and box, a list of left, top, right, bottom in pixels, or
                        with --normalised True as fractions of the image; id where there is one

The answer is the box in marks of its grid, and the box itself is kept beside it. Boxes up to two pixels outside their
image, as rounding makes them, are moved to its border; others outside, and empty ones, are counted and left out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path

from _common import grounding_json
from _common.flags import add_image_flags, add_limit_flags, plain_parser, run
from _common.grounding_json import Phrase, question_about
from _common.problems import Problems, Unusable
from _common.question_json import name_of, text_of
from _common.reading import need_file, need_folder, read_json, read_lines, read_names
from _common.several_files import Ids, file_labels
from bitgen.data.captions import tidy
from bitgen.data.questions.boxes import box_text
from bitgen.data.questions.records import NO_PICTURE, Question
from bitgen.data.questions.writer import QuestionWriter, writing_questions
from bitgen.data.sidecar import SIDECAR
from bitgen.data.whole_folder import check_output
from bitgen.guards.flags import boolean
from bitgen.guards.names import BadName, inside
from bitgen.guards.regular_files import BadFile, read_regular_file
from localized_narratives import file_name
from questions import Pictures, line_entries, usable, write_summary

logger = logging.getLogger("data_prep")

EXAMPLE = """\
  python data_prep/grounding.py --source mdetr --records finetune_refcoco_train.json --images train2014 \\
      --output data/refcoco_train
  python data_prep/grounding.py --source flickr30k_entities --records flickr30k_entities --split train.txt \\
      --images flickr30k-images --output data/entities_train
  python data_prep/grounding.py --source jsonl --records mine.jsonl --images photos --output data/mine
with a line such as
  {"image": "a.jpg", "expression": "the cup on the left", "box": [20, 31, 96, 110]}"""

FAMILY = "where"
_MOST_XML = 10_000_000  # bytes

Record = tuple[str, Callable[[], Iterator[Phrase]]]


# ---- reading ----


def read_mdetr(path: Path) -> Iterator[Record]:
    """Captions of MDETR's JSON."""
    content = read_json(path, "--records")
    for where, entry in grounding_json.mdetr_records(content, f"--records {path}"):
        yield where.removeprefix(f"--records {path}: "), partial(grounding_json.mdetr, entry, where)


def read_plain(path: Path, normalised: bool) -> Iterator[Record]:
    """Expressions, one a line."""
    for where, entry in line_entries(path, "--records"):
        yield f"{path.name}{where}", partial(grounding_json.plain, entry, f"{path.name}{where}", normalised)


def read_narratives(path: Path) -> Iterator[Record]:
    """Localized narratives, one a line."""

    def phrases(entry: dict, where: str) -> Iterator[Phrase]:
        try:
            name = file_name(text_of(entry, "dataset_id"), name_of(entry, "image_id"))
        except Unusable:
            raise
        except ValueError as error:
            raise Unusable("image_id that is no number of COCO's", str(error)) from error
        yield from grounding_json.narrative(entry, name, where)

    for where, entry in line_entries(path, "--records"):
        yield f"{path.name}{where}", partial(phrases, entry, f"{path.name}{where}")


def read_entities(folder: Path, split: Path | None) -> Iterator[Record]:
    """Pictures of Flickr30k Entities, with the sentences about each."""
    texts, boxes = (need_folder(folder / name, "--records") for name in ("Sentences", "Annotations"))
    stems = read_names(split, "--split") if split is not None else sorted(path.stem for path in texts.glob("*.txt"))

    def phrases(stem: str) -> Iterator[Phrase]:
        try:
            sentences, xml = inside(texts, f"{stem}.txt"), inside(boxes, f"{stem}.xml")
            lines = [line for _, line in read_lines(sentences, "--records")]
            content = read_regular_file(xml, _MOST_XML)
        except BadName as error:
            raise Unusable("file name that cannot be used", str(error)) from error
        except FileNotFoundError as error:
            raise Unusable("picture without its XML", stem) from error
        except (OSError, ValueError, BadFile) as error:
            raise Unusable("unreadable file", str(error)) from error
        yield from grounding_json.entities(lines, content, stem)

    for stem in stems:
        yield stem, partial(phrases, stem)


def read_phrases(records: Iterator[Record], problems: Problems) -> Iterator[tuple[str, Phrase]]:
    """``(where, phrase)`` of every record; one that cannot be used is counted."""
    for where, read in records:
        try:
            for phrase in read():
                yield where, phrase
        except Unusable as error:
            problems.add(error.reason, f"{where} ({error.detail})" if error.detail else where, lost=True)


# ---- writing ----


def question_of(phrase: Phrase, pictures: Pictures) -> Question:
    """Where what an expression names is, without its picture yet. Raises ``Unusable``."""
    text = question_about(tidy(phrase.expression))
    box = phrase.box(phrase.size or pictures.size((phrase.file,)))
    return Question(tidy(phrase.id), NO_PICTURE, text, (box_text(box),), boxes=(box,), family=FAMILY)


def write_phrases(
    phrases: list[tuple[str, str, Phrase]], pictures: Pictures, writer: QuestionWriter, problems: Problems
) -> None:
    """Writes every phrase (of a file, from where in it) that can be used, and counts the others. Raises ``ValueError``
    when those are too many."""
    from tqdm import tqdm

    ids = Ids()
    total = len(phrases) + problems.lost
    problems.stop_if_too_many(total)
    for file, where, phrase in tqdm(phrases, desc="writing", unit="expression", disable=None):
        try:
            question = usable(question_of(phrase, pictures), ids, file)
            writer.add(question._replace(picture=pictures.row((phrase.file,))))
            ids.take(question.id, file)
        except Unusable as error:
            detail = "; ".join(filter(None, (phrase.expression, error.detail)))
            problems.add(error.reason, f"{where} ({detail})", lost=True)
            problems.stop_if_too_many(total)
    if writer.questions == 0:
        raise ValueError("no expression is left to write:\n  " + "\n  ".join(problems.lines()))


def main(argv: list[str] | None = None) -> None:
    """Reads the flags, writes the dataset, logs a summary. Raises ``ValueError`` for anything a user can put right."""
    parser = plain_parser(__doc__ or "", EXAMPLE, "dataset folder", "the dataset")
    sources = ("mdetr", "flickr30k_entities", "localized_narratives", "jsonl")
    parser.add_argument("--source", required=True, choices=sources, help="layout of --records, as above")
    parser.add_argument(
        "--records", type=Path, nargs="+", required=True, metavar="PATH", help="files; of flickr30k_entities a folder"
    )
    parser.add_argument("--images", type=Path, nargs="+", required=True, metavar="FOLDER", help="folders of the images")
    parser.add_argument("--split", type=Path, metavar="FILE", help="flickr30k_entities: a list of the images to take")
    parser.add_argument(
        "--normalised", type=boolean, default=False, help="jsonl: True: boxes are fractions of the image, not pixels"
    )
    add_limit_flags(parser, "expressions")
    add_image_flags(parser)
    args = parser.parse_args(argv)
    check_output(args.output, args.overwrite, SIDECAR)
    for flag, source in (("split", "flickr30k_entities"), ("normalised", "jsonl")):
        if getattr(args, flag) and args.source != source:
            raise ValueError(f"--{flag} does not go with --source {args.source}")
    for folder in args.images:
        need_folder(folder, "--images")

    readers: dict[str, Callable[[Path], Iterator[Record]]] = {
        "mdetr": read_mdetr,
        "flickr30k_entities": partial(read_entities, split=args.split),
        "localized_narratives": read_narratives,
        "jsonl": partial(read_plain, normalised=args.normalised),
    }
    problems = Problems(args.max_failed_fraction, "expressions")
    phrases: list[tuple[str, str, Phrase]] = []
    for file, path in zip(file_labels(args.records), args.records, strict=True):
        if args.source != "flickr30k_entities":
            need_file(path, "--records")
        before = len(phrases) + problems.lost
        left = None if args.limit is None else args.limit - len(phrases)
        own = islice(read_phrases(readers[args.source](path), problems), left)
        phrases += [(file, where, phrase) for where, phrase in own]
        if len(phrases) + problems.lost == before and left != 0:
            raise ValueError(f"--records {path} holds no expression with a box")
    named = f"{args.source}: {', '.join(path.name for path in args.records)}"
    with writing_questions(args.output, named, args.overwrite) as writer:
        pictures = Pictures(args.images, args.check_images, args.max_image_pixels, writer)
        write_phrases(phrases, pictures, writer, problems)
    write_summary(writer, args.output, problems, writer.questions + problems.lost)


if __name__ == "__main__":
    run(main)
