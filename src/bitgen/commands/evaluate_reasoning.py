"""`src/evaluate.py --task reasoning,grounding`: answers and boxes of a model of stage 2."""

from __future__ import annotations

import argparse
import logging
import os
from typing import Any

import torch

from bitgen.config import ConfigError
from bitgen.config.sources import SCENES, SORT_OF_CLEVR
from bitgen.data.questions.records import QuestionFolder
from bitgen.data.questions.shown import OTHER, OWN
from bitgen.data.sampler import SampleKey
from bitgen.data.scenes.sort_of_clevr import SortOfClevr
from bitgen.data.scenes.tables import FEWEST
from bitgen.evaluation.asked import Model, boxes_of_folder, check_questions, score_folder, score_pictures
from bitgen.evaluation.asking import answers_questions, thinks_by_default
from bitgen.evaluation.flags import GROUNDING, REASONING
from bitgen.evaluation.reasoning import (
    SPLITS,
    Answerer,
    Judged,
    Split,
    accuracy,
    by_family,
    by_hops,
    clause_measures,
    problems,
)
from bitgen.evaluation.results import Results
from bitgen.show.tables import format_table
from bitgen.trained import Trained

logger = logging.getLogger(__name__)

_QUESTIONS = 1000  # of each kind, each about a picture of its own; one standard error is at most 1.6 points
DIRECT, RATIONALE = "direct", "rationale"
_COUNTS = ("questions", "no_answer")  # among figures that are percentages
_HEADS = {
    DIRECT: "at once",
    f"{DIRECT}_of_another_picture": "... of another picture",
    RATIONALE: "after a rationale",
    f"{RATIONALE}_of_another_picture": "... of another picture",
    "clauses": "clauses that hold",
}
_Found = tuple[Results, list[dict[str, Any]], str]


def evaluate_reasoning(loaded: Trained, flags: argparse.Namespace, device: torch.device) -> _Found:
    """All figures asked for, the answers behind them, and tables.

    Raises:
        ConfigError: the model was not trained to answer, the data cannot be used, or a precision that answers are not
            written in.
    """
    if flags.precision in ("bf16", "fp16"):
        raise ConfigError(f"--precision {flags.precision}: reasoning and grounding are in fp32. Leave --precision out.")
    if not answers_questions(loaded):
        raise ConfigError(
            f"{loaded.folder}: this model was not trained to answer questions. Train one with "
            "src/train_stage2_reasoning.py."
        )
    loaded.model.to(device)
    if loaded.config.reasoning.picture_shown != OWN:
        how = loaded.config.reasoning.picture_shown
        logger.info("a control, trained with picture_shown %s: it is asked as it was trained", how)
    if flags.data == SORT_OF_CLEVR:
        return _sort_of_clevr(loaded, flags)
    count = flags.max_images or _QUESTIONS
    return _of_scenes(loaded, flags, count) if flags.data == SCENES else _of_folder(loaded, flags, count)


def _seeing(loaded: Trained) -> Model:
    """The model, and what it was trained to see with a question."""
    return Model(loaded.model, loaded.processor, loaded.config.reasoning.picture_shown)


def _ways(loaded: Trained) -> list[str]:
    """How a model can be asked, by what it was trained for."""
    return [DIRECT, RATIONALE] if thinks_by_default(loaded) else [DIRECT]


def _splits(loaded: Trained) -> list[Split]:
    """What is asked: of a model that was trained on smaller scenes first what it was trained for."""
    settings = loaded.config.reasoning
    own = Split("as in training", objects=(FEWEST, settings.max_objects), hops=(0, settings.max_hops))
    is_smaller = settings.question_data == SCENES and (own.objects, own.hops) != (SPLITS[0].objects, SPLITS[0].hops)
    return [own, *SPLITS] if is_smaller else list(SPLITS)


# ---- scenes ----


def _of_scenes(loaded: Trained, flags: argparse.Namespace, count: int) -> _Found:
    results: Results = {}
    answers: list[dict[str, Any]] = []
    tables = []
    answerer, seed = Answerer(*_seeing(loaded)), loaded.config.training.seed
    if REASONING in flags.task:
        results[REASONING] = _reasoning(loaded, answerer, count, seed, answers)
        tables += _reasoning_tables(results[REASONING])
    if GROUNDING in flags.task:
        own = _splits(loaded)[0]
        found = {} if own == SPLITS[0] else {own.name: answerer.where(count, seed, split=own)}
        found |= {"scenes": answerer.where(count, seed), "held-out pairs": answerer.where(count, seed, pair=True)}
        results[GROUNDING] = dict(found)
        rows = [[name, *(f"{of[name]:.3g}" if name in of else "" for of in found.values())] for name in found["scenes"]]
        tables.append(format_table(["where a thing is, in scenes with others", *found], rows))
    return results, answers, "\n\n".join(tables)


def _reasoning(
    loaded: Trained, answerer: Answerer, count: int, seed: int, answers: list[dict[str, Any]]
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    blind = Answerer(loaded.model, loaded.processor, OTHER)
    for split in _splits(loaded):
        asked = problems(split, count, seed)
        figures: dict[str, Any] = {}
        for way in _ways(loaded):
            replies = answerer.answer(asked, way == RATIONALE)
            figures[way] = accuracy(replies)
            figures[f"{way}_of_another_picture"] = accuracy(blind.answer(asked, way == RATIONALE))
            figures |= {f"{way}_{hops}_hops": value for hops, value in by_hops(replies).items()}
            figures |= {f"{way}_{family}": value for family, value in by_family(replies).items()}
            if way == RATIONALE:
                figures |= {name.replace(" ", "_"): value for name, value in clause_measures(replies).items()}
            answers += [_as_record(split.name, way, one) for one in replies]
        found[split.name] = figures
    return found


def _as_record(split: str, way: str, one: Judged) -> dict[str, Any]:
    question = one.problem.question
    return {
        "split": split,
        "way": way,
        "question": question.text,
        "program": str(question.program),
        "rationale": one.reply.rationale,
        "answer": one.reply.answer,
        "right_answer": question.answer,
        "clauses_that_hold": list(one.clauses),
    }


def _reasoning_tables(found: dict[str, Any]) -> list[str]:
    """Splits against ways of answering, and hops."""
    name, first = next(iter(found.items()))
    columns = {column: head for column, head in _HEADS.items() if column in first}
    rows = [[split, *(f"{figures[column]:.1f}" for column in columns)] for split, figures in found.items()]
    ways = [way for way in (DIRECT, RATIONALE) if way in first]
    hops = sorted(int(one.split("_")[1]) for one in first if one.startswith(f"{DIRECT}_") and one.endswith("_hops"))
    by = [[f"{hop} hops", *(f"{first[f'{way}_{hop}_hops']:.1f}" for way in ways)] for hop in hops]
    return [
        format_table(["answered right, %", *columns.values()], rows),
        format_table([name, *(_HEADS[way] for way in ways)], by),
    ]


# ---- other data ----


def _sort_of_clevr(loaded: Trained, flags: argparse.Namespace) -> _Found:
    if GROUNDING in flags.task:
        raise ConfigError(f"--task {GROUNDING} has no questions in {SORT_OF_CLEVR}. Write --task {REASONING}.")
    source = SortOfClevr(loaded.processor, loaded.config.training.seed, "test")
    pictures = [source[SampleKey(index)] for index in range(min(len(source), flags.max_images or len(source)))]
    model = _seeing(loaded)
    scored = {way: score_pictures(model, pictures, way == RATIONALE) for way in _ways(loaded)}
    return _tabled(scored)


def _tabled(scored: dict[str, tuple[dict[str, float], list[dict[str, Any]]]]) -> _Found:
    results: Results = {REASONING: {way: figures for way, (figures, _) in scored.items()}}
    answers = [one | {"way": way} for way, (_, said) in scored.items() for one in said]
    names = next(iter(results[REASONING].values()))
    rows = [[name, *(_shown(name, figures[name]) for figures, _ in scored.values())] for name in names]
    head = "answered right, %" if not set(names) & set(_COUNTS) else "answered right, %, and counts"
    return results, answers, format_table([head, *(_HEADS[way] for way in scored)], rows)


def _shown(name: str, value: float) -> str:
    return f"{value:,.0f}" if name in _COUNTS else f"{value:.1f}"


def _of_folder(loaded: Trained, flags: argparse.Namespace, count: int) -> _Found:
    try:
        folder = QuestionFolder(flags.data)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    trained_on = loaded.config.reasoning.question_data
    if trained_on is not None and os.path.realpath(trained_on) == os.path.realpath(flags.data):
        logger.warning("--data %s is what this model was trained on: it has seen these answers", flags.data)
    if flags.max_images is None and len(folder) > count:
        says = "of the %d questions of %s the first %d of each kind are asked; --max_images takes more"
        logger.info(says, len(folder), flags.data, count)
    check_questions(folder, words=REASONING in flags.task, boxes=GROUNDING in flags.task)
    model = _seeing(loaded)
    results: Results = {}
    answers: list[dict[str, Any]] = []
    tables = []
    if REASONING in flags.task:
        ways = _ways(loaded) if folder.has_rationales else [DIRECT]
        results, answers, table = _tabled({way: score_folder(model, folder, count, way == RATIONALE) for way in ways})
        tables.append(table)
    if GROUNDING in flags.task:
        results[GROUNDING] = boxes_of_folder(model, folder, count)
        rows = [[name, f"{value:.3g}"] for name, value in results[GROUNDING].items()]
        tables.append(format_table(["boxes", ""], rows))
    return results, answers, "\n\n".join(tables)
