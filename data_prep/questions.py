"""Turns questions about images, with answers and rationales, into a BitGen dataset of questions.

--source names the layout of --questions, that of the files as they are published:

  clevr      CLEVR_train_questions.json; --scenes CLEVR_train_scenes.json stores boxes (balls of an object's size)
  vqav2      v2_OpenEnded_mscoco_train2014_questions.json with --annotations v2_mscoco_train2014_annotations.json
  gqa        train_balanced_questions.json; --scene_graphs train_sceneGraphs.json adds boxes to rationales
  aokvqa     aokvqa_v1p0_train.json
  llava_cot  LLaVA-CoT's train.jsonl: REASONING is the rationale, CONCLUSION the answer
  jsonl      an object a line: image, question (or instruction), answer (or answers, a list); and, where there are,
             rationale (or reasoning, a list), boxes (lists of left, top, right, bottom as fractions of the image),
             family, hops, choices, id. Without image it is a question about none. Boxes beside an answer are kept
             with the record and not trained on: data_prep/grounding.py makes questions that are answered with a box.

The answer to train on comes first: of ten people's that of most, of multiple choice the right one. Rationales of CLEVR
and GQA say the program of the question, a clause a step. Images are found in the folders of --images by the name or
number that a question gives, and stored once however many questions ask of one.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from _common import question_json
from _common.flags import add_image_flags, add_limit_flags, plain_parser, positive, run
from _common.images import check_image, decode, read_image
from _common.problems import Problems, Unusable
from _common.question_json import Parsed
from _common.reading import need_folder, read_json, read_json_lines, shown
from _common.several_files import Ids, file_labels
from bitgen.data.captions import tidy, valid_unicode
from bitgen.data.questions.records import NO_PICTURE, Question
from bitgen.data.questions.writer import QuestionWriter, writing_questions
from bitgen.data.sidecar import SIDECAR
from bitgen.data.whole_folder import check_output
from bitgen.guards.flags import check_ranges
from bitgen.guards.names import BadName, Outside, inside

logger = logging.getLogger("data_prep")

EXAMPLE = """\
  python data_prep/questions.py --source clevr --questions CLEVR_v1.0/questions/CLEVR_train_questions.json \\
      --scenes CLEVR_v1.0/scenes/CLEVR_train_scenes.json --images CLEVR_v1.0/images/train --output data/clevr_train
  python data_prep/questions.py --source vqav2 --questions v2_OpenEnded_mscoco_val2014_questions.json \\
      --annotations v2_mscoco_val2014_annotations.json --images val2014 --output data/vqav2_val
  python data_prep/questions.py --source jsonl --questions mine.jsonl --images photos --output data/mine
with a line such as
  {"image": "a.jpg", "question": "What is left of the cup?", "reasoning": ["cup", "left of it"], "answer": "a spoon"}"""

_ADDRESS = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+:(//|.*;base64,)", re.DOTALL)
_MOST_WORDS = 10_000
_ALL_PIXELS = 1 << 30  # as a side: a picture that is decoded is not made smaller

Entries = list[tuple[str, dict]]


# ---- pictures ----


class Pictures:
    """The image files that records name, found in folders and stored in the table of a dataset; each is read once."""

    def __init__(self, folders: list[Path], check: bool, max_pixels: int, writer: QuestionWriter) -> None:
        self.folders, self.check, self.max_pixels, self.writer = folders, check, max_pixels, writer
        self._rows: dict[str, int] = {}
        self._sizes: dict[str, tuple[int, int]] = {}
        self._unusable: dict[str, Unusable] = {}

    def row(self, names: tuple[str, ...]) -> int:
        """The row of the first file there is of these names; -1 for no names. ``Unusable``: it cannot be used."""
        if not names:
            return NO_PICTURE
        return self._once(names, self._rows, self._store)

    def size(self, names: tuple[str, ...]) -> tuple[int, int]:
        """Width and height of such a picture, upright as training sees it."""
        return self._once(names, self._sizes, self._measure)

    def _once(self, names: tuple[str, ...], known: dict[str, Any], get: Callable[[str, Path], Any]) -> Any:
        key = names[0]
        if key in self._unusable:
            raise self._unusable[key]
        if key not in known:
            try:
                name, path = self._find(names)
                known[key] = get(name, path)
            except Unusable as error:
                self._unusable[key] = error
                raise
        return known[key]

    def _store(self, name: str, path: Path) -> int:
        payload = self._read(name, path)
        if self.check:
            self._named(name, lambda: check_image(payload, self.max_pixels))
        return self.writer.picture(name, payload)

    def _measure(self, name: str, path: Path) -> tuple[int, int]:
        payload = self._read(name, path)
        _, height, width = self._named(name, lambda: decode(payload, self.max_pixels, _ALL_PIXELS)).shape
        return width, height

    def _read(self, name: str, path: Path) -> bytes:
        return self._named(name, lambda: read_image(path, False, self.max_pixels))

    def _named(self, name: str, call: Callable[[], Any]) -> Any:
        """What a call gives; its ``Unusable`` names the file."""
        try:
            return call()
        except Unusable as error:
            raise Unusable(error.reason, f"{name}: {error.detail}" if error.detail else name) from error

    def _find(self, names: tuple[str, ...]) -> tuple[str, Path]:
        if not self.folders:
            raise ValueError(f"the records name files such as {shown(names[0])}: add --images FOLDER")
        for name in names:
            if _ADDRESS.match(name):
                raise Unusable("address in place of a file (download it into --images and write its name)", name)
            for folder in self.folders:
                try:
                    path = inside(folder, name)
                except Outside as error:
                    raise Unusable("file name that leaves --images", str(error)) from error
                except BadName as error:
                    raise Unusable("file name that cannot be used", str(error)) from error
                if path.exists():
                    return name, path
        raise Unusable("missing image", " or ".join(names))


# ---- reading ----


class Source(NamedTuple):
    """A layout: its records in a parsed file (None: it has one a line), their parser, the flag of a second file, and
    what that file says by key."""

    entries: Callable[[object, str], Entries] | None
    parse: Callable[[dict, str, dict[str, Any]], Parsed]
    second: str = ""
    join: Callable[[object, str], dict[str, Any]] | None = None


def _listed(key: str | None, kind: str) -> Callable[[object, str], Entries]:
    """Records that stand in a list: the file itself, or under ``key`` of it."""

    def entries(content: object, where: str) -> Entries:
        found = content if key is None else content.get(key) if isinstance(content, dict) else None
        if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
            what = "a list of objects" if key is None else f"an object with a list of objects `{key}`"
            raise ValueError(f"{where} is not {what}: is it a file of {kind}?")
        return [(f"[{position}]", entry) for position, entry in enumerate(found)]

    return entries


def _by_id(content: object, where: str) -> Entries:
    if not isinstance(content, dict) or not all(isinstance(each, dict) for each in content.values()):
        raise ValueError(f"{where} is not an object with an object a question: is it a file of GQA?")
    return [(f" {name}", {**entry, "id": name}) for name, entry in content.items()]


def _keyed(key: str, inside: str, kind: str) -> Callable[[object, str], dict[str, Any]]:
    """Entries of a list under ``inside``, by their ``key``."""

    def join(content: object, where: str) -> dict[str, Any]:
        entries = _listed(inside, kind)(content, where)
        found = {str(entry.get(key)): entry for _, entry in entries}
        if "None" in found or not found:
            raise ValueError(f"{where}: an entry of `{inside}` has no `{key}`, or there is none")
        return found

    return join


def _graphs(content: object, where: str) -> dict[str, Any]:
    if not isinstance(content, dict) or not content or not all(isinstance(each, dict) for each in content.values()):
        raise ValueError(f"{where} is not an object with a scene graph an image: is it GQA's?")
    return content


SOURCES = {
    "clevr": Source(
        _listed("questions", "CLEVR"), question_json.clevr, "scenes", _keyed("image_filename", "scenes", "CLEVR")
    ),
    "vqav2": Source(
        _listed("questions", "VQA v2"), question_json.vqav2, "annotations", _keyed("question_id", "annotations", "VQA")
    ),
    "gqa": Source(_by_id, question_json.gqa, "scene_graphs", _graphs),
    "aokvqa": Source(_listed(None, "A-OKVQA"), question_json.aokvqa),
    "llava_cot": Source(None, question_json.llava_cot),
    "jsonl": Source(None, question_json.plain),
}


def line_entries(path: Path, flag: str) -> Iterator[tuple[str, dict]]:
    """``(where, entry)`` of a file that has an object a line; where: in the file."""
    for number, entry in read_json_lines(path, flag):
        yield f" line {number}", entry


def read_entries(source: Source, paths: list[Path]) -> list[tuple[str, str, dict]]:
    """``(file, where, entry)`` of every record. Raises ``ValueError`` naming a file of another kind, or empty."""
    found: list[tuple[str, str, dict]] = []
    for file, path in zip(file_labels(paths), paths, strict=True):
        if source.entries is None:
            own = list(line_entries(path, "--questions"))
        else:
            own = source.entries(read_json(path, "--questions"), f"--questions {path}")
        if not own:
            raise ValueError(f"--questions {path} holds no question")
        found += [(file, f"{file}{where}", entry) for where, entry in own]
    return found


# ---- writing ----


def question_of(parsed: Parsed, picture: int, most_words: int, where: str, problems: Problems) -> Question:
    """A question as it is stored: every text one line of valid Unicode, the rationale of at most ``most_words``."""
    texts = [parsed.question, parsed.rationale, *parsed.answers]
    if any(valid_unicode(text) != text for text in texts):
        problems.add("text that is no valid Unicode (what is broken became U+FFFD)", where)
    words = tidy(parsed.rationale).split()
    if len(words) > most_words:
        problems.add(f"rationale of more than {most_words} words (cut)", where)
    return Question(
        tidy(parsed.id),
        picture,
        " ".join(tidy(parsed.question).split()),
        tuple(text for answer in parsed.answers if (text := tidy(answer))),
        " ".join(words[:most_words]),
        parsed.boxes,
        tidy(parsed.family),
        parsed.hops,
        tuple(map(tidy, parsed.choices)),
    )


def usable(question: Question, ids: Ids, file: str) -> Question:
    """The question with an id that no other has. ``Unusable``: it has no words or answer, or the id of another of its
    file."""
    if not question.question:
        raise Unusable("empty question")
    if not question.answers:
        raise Unusable("question without an answer")
    return question._replace(id=ids.free(question.id, file))


def write_summary(writer: QuestionWriter, output: Path, problems: Problems, total: int) -> None:
    """Logs what was written and what was not."""
    for line in problems.lines():
        logger.warning(line)
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file()) / 1e6
    counts = f"{writer.questions} questions ({writer.text_only} about no picture), {writer.pictures} pictures"
    logger.info("%s -> %s (%.1f MB)", counts, output, size)
    if problems.lost:
        logger.info("%d of %d %s could not be used; the warnings above say why", problems.lost, total, problems.unit)


def main(argv: list[str] | None = None) -> None:
    """Reads the flags, writes the dataset, logs a summary. Raises ``ValueError`` for anything a user can put right."""
    from tqdm import tqdm

    parser = plain_parser(__doc__ or "", EXAMPLE, "dataset folder", "the dataset")
    parser.add_argument("--source", required=True, choices=SOURCES, help="layout of --questions, as above")
    parser.add_argument("--questions", type=Path, nargs="+", required=True, metavar="FILE", help="files of questions")
    parser.add_argument("--images", type=Path, nargs="+", default=[], metavar="FOLDER", help="folders of the images")
    parser.add_argument("--scenes", type=Path, metavar="FILE", help="clevr: objects of every image, for boxes")
    parser.add_argument("--annotations", type=Path, metavar="FILE", help="vqav2: the answers")
    parser.add_argument("--scene_graphs", type=Path, metavar="FILE", help="gqa: objects of every image, for boxes")
    parser.add_argument(
        "--max_rationale_words", type=positive, default=80, help="longer rationales are cut (default %(default)s)"
    )
    add_limit_flags(parser, "questions")
    add_image_flags(parser)
    args = parser.parse_args(argv)
    check_ranges(parser, args, {"max_rationale_words": (1, _MOST_WORDS)})
    check_output(args.output, args.overwrite, SIDECAR)
    source = SOURCES[args.source]
    for flag in ("scenes", "annotations", "scene_graphs"):
        if getattr(args, flag) is not None and flag != source.second:
            raise ValueError(f"--{flag} does not go with --source {args.source}")
    if args.source == "vqav2" and args.annotations is None:
        raise ValueError("--source vqav2 needs --annotations, the file with the answers")
    for folder in args.images:
        need_folder(folder, "--images")

    problems, ids = Problems(args.max_failed_fraction, "questions"), Ids()
    entries = read_entries(source, args.questions)[: args.limit]
    second: dict[str, Any] = {}
    path = getattr(args, source.second) if source.second else None
    if path is not None and source.join is not None:
        second = source.join(read_json(path, f"--{source.second}"), f"--{source.second} {path}")
    named = f"{args.source}: {', '.join(path.name for path in args.questions)}"
    with writing_questions(args.output, named, args.overwrite) as writer:
        pictures = Pictures(args.images, args.check_images, args.max_image_pixels, writer)
        for file, where, entry in tqdm(entries, desc="writing", unit="question", disable=None):
            try:
                parsed = source.parse(entry, where, second)
                question = question_of(parsed, NO_PICTURE, args.max_rationale_words, where, problems)
                question = usable(question, ids, file)
                writer.add(question._replace(picture=pictures.row(parsed.files)))
                ids.take(question.id, file)
            except Unusable as error:
                problems.add(error.reason, f"{where} ({error.detail})" if error.detail else where, lost=True)
                problems.stop_if_too_many(len(entries))
        if writer.questions == 0:
            raise ValueError("no question is left to write:\n  " + "\n  ".join(problems.lines()))
    write_summary(writer, args.output, problems, len(entries))


if __name__ == "__main__":
    run(main)
