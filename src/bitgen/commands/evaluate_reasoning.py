"""`src/evaluate.py --task reasoning,grounding`: answers and boxes of a model of stage 2."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from bitgen.config import ConfigError
from bitgen.config.sources import SCENES, SORT_OF_CLEVR
from bitgen.data.questions import QuestionFolder
from bitgen.data.sampler import SampleKey
from bitgen.data.sort_of_clevr import SortOfClevr
from bitgen.evaluation.asked import Model, boxes_of_folder, score_folder, score_pictures
from bitgen.evaluation.asking import answers_questions
from bitgen.evaluation.flags import GROUNDING, REASONING
from bitgen.evaluation.reasoning import (
    SPLITS,
    Answerer,
    Judged,
    accuracy,
    by_family,
    by_hops,
    clause_measures,
    problems,
)
from bitgen.evaluation.results import Results
from bitgen.show.tables import format_table
from bitgen.trained import Trained

_QUESTIONS = 1000  # of each kind; one standard error is at most 1.6 points


def evaluate_reasoning(
    loaded: Trained, flags: argparse.Namespace, device: torch.device
) -> tuple[Results, list[dict[str, Any]], str]:
    """All figures asked for, the answers behind them, and tables.

    Raises:
        ConfigError: the model was not trained to answer, or the data cannot be used.
    """
    if not answers_questions(loaded):
        raise ConfigError(
            f"{loaded.folder}: this model was not trained to answer questions. Train one with "
            "src/train_stage2_reasoning.py."
        )
    loaded.model.to(device)
    count = flags.max_images or _QUESTIONS
    if flags.data == SORT_OF_CLEVR:
        return _sort_of_clevr(loaded, flags)
    if flags.data != SCENES:
        return _of_folder(loaded, flags, count)
    results: Results = {}
    answers: list[dict[str, Any]] = []
    tables = []
    answerer, seed = Answerer(loaded.model, loaded.processor), loaded.config.training.seed
    if REASONING in flags.task:
        results[REASONING] = _reasoning(loaded, answerer, count, seed, answers)
        tables.append(reasoning_table(results[REASONING]))
    if GROUNDING in flags.task:
        found = {"scenes": answerer.where(count, seed), "held-out pairs": answerer.where(count, seed, pair=True)}
        results[GROUNDING] = dict(found)
        names = list(found["scenes"])
        rows = [[name, *(f"{of.get(name, float('nan')):.3g}" for of in found.values())] for name in names]
        tables.append(format_table(["where a thing is, in scenes with others", *found], rows))
    return results, answers, "\n\n".join(tables)


def _reasoning(
    loaded: Trained, answerer: Answerer, count: int, seed: int, answers: list[dict[str, Any]]
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    blind = Answerer(loaded.model, loaded.processor, blind="other")
    for split in SPLITS:
        asked = problems(split, count, seed)
        ways = {"direct": answerer.answer(asked, False), "rationale": answerer.answer(asked, True)}
        figures: dict[str, Any] = {name: accuracy(replies) for name, replies in ways.items()}
        figures["rationale_of_another_picture"] = accuracy(blind.answer(asked, True))
        for name, replies in ways.items():
            figures |= {f"{name}_{hops}_hops": value for hops, value in by_hops(replies).items()}
            figures |= {f"{name}_{family}": value for family, value in by_family(replies).items()}
        figures |= {name.replace(" ", "_"): value for name, value in clause_measures(ways["rationale"]).items()}
        found[split.name] = figures
        answers += [_as_record(split.name, way, one) for way, replies in ways.items() for one in replies]
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


def reasoning_table(found: dict[str, Any]) -> str:
    """Splits against ways of answering, and hops."""
    columns = ("direct", "rationale", "rationale_of_another_picture", "clauses")
    heads = ("answered right, %", "at once", "after a rationale", "... of another picture", "clauses that hold")
    rows = [[split, *(f"{figures[name]:.1f}" for name in columns)] for split, figures in found.items()]
    first = next(iter(found.values()))
    hops = sorted(int(name.split("_")[1]) for name in first if name.startswith("direct_") and name.endswith("_hops"))
    by = [
        [f"{hop} hops", f"{first[f'direct_{hop}_hops']:.1f}", f"{first[f'rationale_{hop}_hops']:.1f}"] for hop in hops
    ]
    return "\n\n".join(
        (format_table(list(heads), rows), format_table([next(iter(found)), "at once", "after a rationale"], by))
    )


def _sort_of_clevr(loaded: Trained, flags: argparse.Namespace) -> tuple[Results, list[dict[str, Any]], str]:
    if GROUNDING in flags.task:
        raise ConfigError(f"--task {GROUNDING} has no questions in {SORT_OF_CLEVR}. Write --task {REASONING}.")
    source = SortOfClevr(loaded.processor, loaded.config.training.seed, "test")
    pictures = [source[SampleKey(index)] for index in range(min(len(source), flags.max_images or len(source)))]
    model = Model(loaded.model, loaded.processor)
    scored = {name: score_pictures(model, pictures, name == "rationale") for name in ("direct", "rationale")}
    answers = [one | {"way": way} for way, (_, said) in scored.items() for one in said]
    rows = [[family, *(f"{figures[family]:.1f}" for figures, _ in scored.values())] for family in scored["direct"][0]]
    results: Results = {REASONING: {way: figures for way, (figures, _) in scored.items()}}
    return results, answers, format_table(["answered right, %", "at once", "after a rationale"], rows)


def _of_folder(loaded: Trained, flags: argparse.Namespace, count: int) -> tuple[Results, list[dict[str, Any]], str]:
    try:
        folder = QuestionFolder(flags.data)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    model = Model(loaded.model, loaded.processor)
    results: Results = {}
    answers: list[dict[str, Any]] = []
    tables = []
    if REASONING in flags.task:
        scored = [score_folder(model, folder, count, thinks) for thinks in (False, True)]
        results[REASONING] = {"direct": scored[0][0], "rationale": scored[1][0]}
        answers += [
            one | {"way": way} for way, (_, said) in zip(("direct", "rationale"), scored, strict=True) for one in said
        ]
        rows = [[name, *(f"{figures[name]:.1f}" for figures, _ in scored)] for name in scored[0][0]]
        tables.append(format_table(["answers, %", "at once", "after a rationale"], rows))
    if GROUNDING in flags.task:
        results[GROUNDING] = boxes_of_folder(model, folder, count)
        rows = [[name, f"{value:.3g}"] for name, value in results[GROUNDING].items()]
        tables.append(format_table(["boxes", ""], rows))
    return results, answers, "\n\n".join(tables)
