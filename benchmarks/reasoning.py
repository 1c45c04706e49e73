"""What rationales, and reinforcement, do for answers: trained models of stage 2 side by side, on questions that
training never asked, each about a picture of its own. Prints JSON lines {"arm": .., "way": .., "split": .., "name": ..,
"value": .., "interval": half of a 95% interval, "low": .., "high": its ends, "questions": count}:

  accuracy         percent of the questions that are answered right, `direct` or after a `rationale`; also by hops
                   (accuracy_2_hops; a split of their own for chains of 2 and 3) and by family; of arms trained with
                   dots, `dots` stand where the rationale would; of arms trained without their pictures, without them
  other_picture    the same, seeing the picture of another scene; nothing: seeing none
  form             percent of replies that have the form of one: what reinforcement may teach without a better answer
  no_reasons       percent of replies whose rationale says nothing: that form has, too
  majority         percent for the most frequent training answer of a question's family and form: knowing no picture
  clauses, whole_chains   of right answers: clauses that hold; answers all of whose clauses hold
  one, pass, majority_of_8   of 8 sampled replies: right ones; problems with some right one; the majority's answer
  follows, stays   answers that follow an edit of the rationale's last object; that stay as they were
  truncated_none, _half, _all, pasted   right after a part of the own rationale, and after one of another picture
  where_*          boxes of things in scenes with others (evaluation/reasoning.py, box_measures); where_mean IoU is no
                   percentage, but a mean from 0 to 1, without an interval. where_described: of whole pictures that are
                   described, things named with a right box; where_described rightly: of the named ones, those there

Train the arms first (docs/reasoning.md has the commands), then
  python benchmarks/reasoning.py --arm rationale=checkpoints/stage2_scenes --arm direct=checkpoints/stage2_direct"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from bitgen.data.questions.marked_text import Reply
from bitgen.data.questions.shown import NOTHING, OTHER
from bitgen.data.scenes.descriptions import scene_rng
from bitgen.data.scenes.questions import TRAINED_HOPS, SceneQuestion, draw_question
from bitgen.data.scenes.rationales import write_rationale
from bitgen.data.scenes.tables import table_scene
from bitgen.evaluation.asking import answers_questions
from bitgen.evaluation.faithfulness import follow_rate, pasted, sampled, truncation
from bitgen.evaluation.reasoning import (
    SPLITS,
    Answerer,
    Judged,
    Problem,
    Split,
    accuracy,
    by_family,
    by_hops,
    clause_measures,
    judged,
    problems,
    things_asked,
)
from bitgen.evaluation.replies import Decoding
from bitgen.trained import Trained, open_model

SEED = 77
# In distribution few questions are chains, for which rationales are meant: here all are.
ASKED = (*SPLITS, Split("2 and 3 hops", hops=(2, TRAINED_HOPS), families=("chain",)))
# Of these no interval is given: a mean, and shares of the things of a picture, which are right or wrong together.
_NO_SHARES_OF_QUESTIONS = ("mean IoU", "described", "described rightly")
_TRAINED_ON = 20_000  # questions that the majority is taken of


def report(arm: str, way: str, split: str, name: str, value: float, count: int, share: bool = True) -> None:
    """One line; the interval (Wilson's, which does not lie evenly about the value) is that of a share of ``count`` in
    percent, and null where the value is no such share. The value is null where there was nothing to measure."""
    known = math.isfinite(value)
    part = min(max(value / 100, 0.0), 1.0) if known else 0.0
    n, z = max(count, 1), 1.96
    centre = 100 * (part + z**2 / (2 * n)) / (1 + z**2 / n)
    half = 100 * z / (1 + z**2 / n) * (part * (1 - part) / n + (z / (2 * n)) ** 2) ** 0.5
    ends = (half, centre - half, centre + half) if share and known else (None, None, None)
    line = {"arm": arm, "way": way, "split": split, "name": name, "value": value if known else None}
    line |= dict(zip(("interval", "low", "high"), ends, strict=True))
    print(json.dumps(line | {"questions": count}), flush=True)


def form(question: SceneQuestion) -> tuple:
    """What the words alone tell of a question's answer: its family, last operator, and what that takes."""
    program = question.program
    return question.family, program.name, program.words, tuple(one.name for one in program.inputs)


def known_answers() -> dict[tuple, Counter]:
    """How often each answer is right in training, by the form of the question."""
    seen: dict[tuple, Counter] = defaultdict(Counter)
    index = count = 0
    while count < _TRAINED_ON:
        scene, rng = table_scene((SEED, "majority", index)), scene_rng("majority", SEED, index)
        index += 1
        for _ in range(4):
            question = draw_question(scene, rng)
            if question is not None:
                seen[form(question)][question.answer] += 1
                count += 1
    return seen


def majority(given: list[Problem], seen: dict[tuple, Counter]) -> float:
    """Percent right for who knows the answers of training and sees nothing."""
    guesses = (seen[form(one.question)].most_common(1) for one in given)
    right = sum(bool(guess) and guess[0][0] == one.question.answer for guess, one in zip(guesses, given, strict=True))
    return 100 * right / len(given)


def answers_with_dots(answerer: Answerer, given: list[Problem]) -> list[Judged]:
    """After as many dots as the rationale has tokens."""
    tokens = answerer.tokens
    prompts = []
    for one in given:
        why = tokens.marked(write_rationale(one.scene, one.question.steps, 0))
        prompts.append([*tokens.prompt(one.question.text, True), *tokens.dots(len(why)), tokens.ids["<answer>"]])
    replies = answerer.replies(given, prompts, False, Decoding(8))
    return [judged(one, Reply(None, reply.answer)) for one, reply in zip(given, replies, strict=True)]


def ways_of(trained: Trained) -> list[str]:
    """How an arm can be asked, by what it was trained with."""
    rationale = trained.config.reasoning.rationale
    return ["direct", *({"clauses": ["rationale"], "dots": ["dots"]}.get(rationale, []))]


def answered(answerer: Answerer, given: list[Problem], way: str) -> list[Judged]:
    """The replies in one of the ways."""
    return answers_with_dots(answerer, given) if way == "dots" else answerer.answer(given, way == "rationale")


def measure(arm: str, trained: Trained, count: int, samples: int) -> None:
    """All lines of an arm."""
    answerer = Answerer(trained.model, trained.processor, trained.config.reasoning.picture_shown)
    for split in ASKED:
        given = problems(split, count, SEED)
        for way in ways_of(trained):
            replies = answered(answerer, given, way)
            report(arm, way, split.name, "accuracy", accuracy(replies), count)
            with_form = 100 * sum(one.reply.answer is not None for one in replies) / count
            report(arm, way, split.name, "form", with_form, count)
            for hops, value in by_hops(replies).items():
                asked = sum(one.problem.question.hops == hops for one in replies)
                report(arm, way, split.name, f"accuracy_{hops}_hops", value, asked)
            for family, value in by_family(replies).items():
                asked = sum(one.problem.question.family == family for one in replies)
                report(arm, way, split.name, f"accuracy_{family}", value, asked)
            for name, shown in (("other_picture", OTHER), (NOTHING, NOTHING)):
                seen = Answerer(trained.model, trained.processor, shown)
                report(arm, way, split.name, name, accuracy(answered(seen, given, way)), count)
            if way == "rationale":
                _rationales(arm, split.name, answerer, replies, given, samples)
    for pair in (False, True):
        name = "held-out pairs" if pair else "in distribution"
        for measure_name, value in answerer.where(count, SEED, pair).items():
            asked, share = things_asked(measure_name, count), measure_name not in _NO_SHARES_OF_QUESTIONS
            report(arm, "direct", name, f"where_{measure_name}", value, asked, share)


def _rationales(
    arm: str, split: str, answerer: Answerer, replies: list[Judged], given: list[Problem], samples: int
) -> None:
    right = sum(one.right for one in replies)
    unreasoned = 100 * sum(not one.reply.rationale for one in replies) / len(replies)
    report(arm, "rationale", split, "no_reasons", unreasoned, len(replies))
    for name, value in clause_measures(replies).items():
        # Clauses of one rationale hold or fail together, so that an interval of a share would be too narrow.
        report(arm, "rationale", split, name.replace(" ", "_"), value, right, share=False)
    followed = follow_rate(answerer, replies)
    for name in ("follows", "stays"):
        report(arm, "rationale", split, name, followed[name], int(followed["edited"]))
    for name, value in truncation(answerer, replies).items():
        report(arm, "rationale", split, f"truncated_{name}", value, len(replies))
    report(arm, "rationale", split, "pasted", pasted(answerer, replies), len(replies))
    asked = given[:samples]
    if asked:
        names = {"one": "one", "pass": "pass", "majority": "majority_of_8"}
        for name, value in sampled(answerer, asked, thinks=True).items():
            report(arm, "rationale", split, names[name], value, len(asked))


def main(argv: list[str] | None = None) -> None:
    """Measure the arms that the command line names."""
    layout: Any = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument(
        "--arm", action="append", required=True, metavar="NAME=DIR", help="a trained model, and its name"
    )
    parser.add_argument("--questions", type=int, default=600, help="of each split (default: 600)")
    parser.add_argument(
        "--samples", type=int, default=200, help="questions with 8 sampled replies (default: 200; 0: none)"
    )
    flags = parser.parse_args(argv)
    if flags.questions < 1 or flags.samples < 0:
        parser.error("--questions needs 1 or more, and --samples 0 or more")
    arms = [checked(arm, parser) for arm in flags.arm]  # before hours of the first
    counts = known_answers()
    for split in ASKED:
        given = problems(split, flags.questions, SEED)
        report("", "", split.name, "majority", majority(given, counts), flags.questions)
    for name, path in arms:
        measure(name, open_model(path), flags.questions, flags.samples)


def checked(arm: str, parser: argparse.ArgumentParser) -> tuple[str, str]:
    """Name and folder of an arm whose model can be opened and asked; else the program ends, and says why."""
    name, named, path = arm.partition("=")
    if not named:
        parser.error(f"--arm {arm}: write NAME=DIR, as longer=checkpoints/stage2_longer")
    try:
        if not answers_questions(open_model(path)):
            parser.error(f"--arm {arm}: {path} was not trained to answer questions (src/train_stage2_reasoning.py)")
    except ValueError as error:
        parser.error(f"--arm {arm}: {error}")
    return name, path


if __name__ == "__main__":
    main()
