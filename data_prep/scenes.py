"""Draws built-in scenes as picture files, with captions or questions, to teach, caption, search and ask about.

The scenes are those that training on `scenes` never draws (held-out combinations of colours, shapes, places and
numbers). With --with THING they are pictures of that thing: first one of it alone, then new ones of it beside another
thing. With --with twice: one of each alone, then new ones of both. Their captions are in metadata.csv.

With --questions N they are other scenes, of three to six objects, as models of stage 2 know them (their colours, shapes
and questions are of the kinds that training has, but no training draws these very scenes). questions.jsonl then holds N
questions about each, with answers and rationales, as data_prep/questions.py --source jsonl reads them.

The same flags write the same pictures.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from _common.flags import count, plain_parser, positive, run
from bitgen.data.scenes.dataset import CAPTIONS_PER_SCENE, SceneReader
from bitgen.data.scenes.descriptions import COLOURS, SHAPES, Scene, scene_rng
from bitgen.data.scenes.drawing import render_scene
from bitgen.data.scenes.named import Entity, entities, scene_alone, scene_with
from bitgen.data.scenes.questions import SceneQuestion, draw_question
from bitgen.data.scenes.reasoning import with_rationale
from bitgen.data.scenes.tables import TableScene, render_table, table_scene
from bitgen.data.scenes.wording import caption_scene_differently
from bitgen.data.whole_folder import check_output
from bitgen.guards.printable import printable
from bitgen.machine.files import replacing_folder

EXAMPLE = """\
  python data_prep/scenes.py --output scenes --count 20
  python src/caption.py scenes/1.png --model checkpoints/quickstart
  python data_prep/scenes.py --with "purple star" --output stars
  python src/memory.py --model checkpoints/memory_scenes teach stars/1.png "this is Rex"
  python src/caption.py stars/2.png --model checkpoints/memory_scenes --memory checkpoints/memory_scenes.memory
  python data_prep/scenes.py --questions 4 --output tables
  python src/ask.py tables/1.png "how many large things are there?" --model checkpoints/stage2_scenes
as training data, like any folder of pictures
  python data_prep/image_folder.py --folder scenes --output data/scenes"""

logger = logging.getLogger("data_prep")

SIDECAR = "bitgen_scenes.json"
_SIZE, _SIZE_OF_TABLES = 56, 84  # what configs/scenes_captions.yaml and configs/stage2_scenes.yaml learn
_MOST_SCENES, _LARGEST, _MOST_QUESTIONS = 10_000, 2048, 20


def thing(text: str) -> Entity:
    """``purple star`` as a thing. Raises ``ValueError`` that names the colours and shapes."""
    words = text.lower().split()
    if len(words) == 2 and words[0] in COLOURS and words[1] in SHAPES:
        return Entity(*words)
    raise ValueError(
        f"--with {printable(text, 60)!r} is no thing: give a colour ({', '.join(COLOURS)}) and a shape "
        f"({', '.join(SHAPES)}), as in --with 'purple star'"
    )


def scenes_with(things: Sequence[Entity], total: int, seed: int) -> Iterator[Scene]:
    """Each thing alone, then new scenes of one thing beside others, or of two together; ``total`` of them."""
    rng = scene_rng(seed, "scenes with", *(" ".join(one) for one in things))
    others = [one for held_out in (False, True) for one in entities(held_out) if one not in things]
    for number in range(total):
        if number < len(things):
            yield scene_alone(things[number], rng)
        else:
            yield scene_with(things[0], things[1] if len(things) > 1 else rng.choice(others), rng)


def write_captioned(folder: Path, args: argparse.Namespace, scenes: Sequence[Scene]) -> None:
    """Pictures of one or two things, and their captions in metadata.csv."""
    with (folder / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file_name", *(f"caption_{number}" for number in range(CAPTIONS_PER_SCENE))])
        for number, scene in enumerate(scenes, start=1):
            rng = scene_rng(args.seed, "file", number, *args.things)
            render_scene(scene, args.size, random.Random(rng.getrandbits(62))).save(folder / f"{number}.png")
            rows.writerow([f"{number}.png", *caption_scene_differently(scene, CAPTIONS_PER_SCENE, rng)])


def write_asked(folder: Path, args: argparse.Namespace) -> None:
    """Pictures of three to six objects, and questions about each in questions.jsonl."""
    with (folder / "questions.jsonl").open("w", encoding="utf-8") as file:
        for number in range(1, args.count + 1):
            key = ("file", args.seed, number)  # no key of training or of an evaluation
            scene, rng = table_scene(key), scene_rng("questions of a file", *key)
            render_table(scene, args.size, key).save(folder / f"{number}.png")
            for turn, question in enumerate(_questions(scene, args.questions, rng), start=1):
                asked = with_rationale(scene, question, rng, thinks=True)
                record = {"id": f"{number}.{turn}", "image": f"{number}.png", "question": asked.question}
                record |= {"answer": asked.answer, "rationale": asked.rationale}
                file.write(json.dumps(record | {"family": asked.family, "hops": asked.hops}) + "\n")


def _questions(scene: TableScene, count: int, rng: random.Random) -> list[SceneQuestion]:
    found: dict[str, SceneQuestion] = {}
    while len(found) < count:  # each scene has more questions than are asked for
        if (question := draw_question(scene, rng)) is not None:
            found.setdefault(question.text, question)
    return list(found.values())


def main(argv: list[str] | None = None) -> None:
    """Reads the flags, draws, writes the folder. Raises ``ValueError`` for anything a user can put right."""
    parser = plain_parser(__doc__, EXAMPLE, "folder", "the scenes")
    parser.add_argument(
        "--count", type=positive, default=8, help="pictures to draw, at most 10000 (default %(default)s)"
    )
    parser.add_argument(
        "--size",
        type=positive,
        help="pixels of a side, at most 2048; models are used to those that they were trained on (default "
        f"{_SIZE}, with --questions {_SIZE_OF_TABLES})",
    )
    parser.add_argument("--seed", type=count, default=1, help="other scenes for another seed (default %(default)s)")
    parser.add_argument(
        "--with",
        dest="things",
        action="append",
        default=[],
        metavar="THING",
        help="a colour and a shape, such as 'purple star', that the pictures show; once or twice",
    )
    parser.add_argument(
        "--questions", type=positive, metavar="N", help="pictures of three to six objects, with N questions about each"
    )
    args = parser.parse_args(argv)
    if args.questions and args.things:
        raise ValueError("--questions and --with are about pictures of different kinds: give one of them")
    if args.size is None:
        args.size = _SIZE_OF_TABLES if args.questions else _SIZE
    things = [thing(text) for text in args.things]
    if len(things) > 2 or len(set(things)) < len(things):
        raise ValueError("--with: give one thing, or two that differ")
    if args.count < len(things):
        raise ValueError(f"--count {args.count} leaves no picture for each of {len(things)} things: give at least 2")
    if args.count > _MOST_SCENES or args.size > _LARGEST:
        raise ValueError(f"--count is at most {_MOST_SCENES:,}, and --size at most {_LARGEST:,}")
    if args.questions and args.questions > _MOST_QUESTIONS:
        raise ValueError(f"--questions is at most {_MOST_QUESTIONS}")
    check_output(args.output, args.overwrite, SIDECAR, "folder of scenes")
    meta = {"count": args.count, "size": args.size, "seed": args.seed}
    with replacing_folder(args.output) as folder:
        if args.questions:
            meta["questions"] = args.questions
            write_asked(folder, args)
        else:
            meta["with"] = [" ".join(one) for one in things]
            drawn = scenes_with(things, args.count, args.seed) if things else None
            write_captioned(folder, args, list(drawn or SceneReader("val", args.count, args.seed).scenes))
        (folder / SIDECAR).write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
    logger.info("%d pictures -> %s", args.count, args.output)


if __name__ == "__main__":
    run(main)
