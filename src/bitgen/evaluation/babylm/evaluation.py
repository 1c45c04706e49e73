"""All folders of a BabyLM evaluation at once: one tokenization, one tree of sentences, one sweep of the model."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bitgen.evaluation.babylm.encoding import ProcessorEncoder
from bitgen.evaluation.babylm.items import Item, read_items, task_of
from bitgen.evaluation.babylm.reading import ReadingQueries, read_reading_data, reading_metrics
from bitgen.evaluation.babylm.scoring import Scorer
from bitgen.evaluation.babylm.zero_shot import (
    accuracies,
    candidate_scores,
    choose,
    entity_accuracies,
    first_probability,
    rank_correlation,
    sequences_of,
)

logger = logging.getLogger(__name__)

READING = "reading"


class Evaluation(NamedTuple):
    """``results`` by folder, and ``predictions`` by folder in the layout of the official ``predictions.json``."""

    results: dict[str, dict]
    predictions: dict[str, dict]


class EvaluationData(NamedTuple):
    """What an evaluation folder holds: items by folder name, and the folder of reading times if there is one."""

    items: dict[str, list[Item]]
    reading: Path | None


def read_evaluation_data(eval_dir: str | Path) -> EvaluationData:
    """Reads every folder of a kind that is known here; others are left out, and named.

    Raises:
        ValueError: no such folder, none of a known kind in it, or a damaged file.
    """
    eval_dir = Path(eval_dir)
    if not eval_dir.is_dir():
        raise ValueError(f"{eval_dir}: there is no such folder. Give the one that holds blimp_fast, reading ...")
    items, reading = {}, None
    for folder in sorted(path for path in eval_dir.iterdir() if path.is_dir()):
        if folder.name == READING:
            reading = folder
        elif task_of(folder.name) is not None:
            items[folder.name] = read_items(folder)
        else:
            logger.warning("%s is left out: not a kind of data that is evaluated here", folder)
    if not items and reading is None:
        raise ValueError(
            f"{eval_dir} holds none of blimp*, supplement*, entity_tracking*, ewok*, wug_adj*, wug_past*, reading; "
            "give the folder that they are in"
        )
    return EvaluationData(items, reading)


def evaluate_babylm(data: EvaluationData, encoder: ProcessorEncoder, scorer: Scorer) -> Evaluation:
    """Scores everything.

    Raises:
        ValueError: a text that tokenizer or model cannot take; the message names file and line.
    """
    queries = None
    if data.reading is not None:
        queries = ReadingQueries(read_reading_data(data.reading), encoder)
    every_item = [item for items in data.items.values() for item in items]
    texts = list(dict.fromkeys(sentence for item in every_item for sentence in item.sentences))
    encoded = dict(zip(texts, encoder.encode(texts), strict=True))
    sequences = [part for item in every_item for part in sequences_of(item, [encoded[s] for s in item.sentences])]
    words = queries.sequences if queries is not None else []
    logger.info("scoring %d sentences of %d items, and %d words", len(sequences), len(every_item), len(words))
    log_probs = iter(scorer.score([*sequences, *words]))

    evaluation = Evaluation({}, {})
    for name, items in data.items.items():
        scores = [candidate_scores([next(log_probs) for _ in item.sentences]) for item in items]
        task = task_of(name)
        assert task is not None, name
        evaluation.results[name], evaluation.predictions[name] = _zero_shot(task, items, scores)
    if queries is not None:
        surprisal, previous = queries.surprisals(list(log_probs))
        evaluation.results[READING] = reading_metrics(queries.data, surprisal, previous)
        pairs = enumerate(zip(surprisal.tolist(), previous.tolist(), strict=True))
        rows = [{"id": row, "pred": pred, "prev_pred": before} for row, (pred, before) in pairs]
        evaluation.predictions[READING] = {READING: {"predictions": rows}}
    return evaluation


def _zero_shot(task: str, items: Sequence[Item], scores: Sequence[np.ndarray]) -> tuple[dict, dict]:
    choices = [choose(candidates) for candidates in scores]
    if task.startswith("wug"):
        probabilities = [first_probability(candidates) for candidates in scores]
        predictions = _predictions(items, choices, [task] * len(items))
        for prediction, probability in zip(predictions[task]["predictions"], probabilities, strict=True):
            prediction["prob"] = float(probability)
        return rank_correlation(items, probabilities), predictions
    metrics = (entity_accuracies if task == "entity_tracking" else accuracies)(items, choices)
    return metrics, _predictions(items, choices, [item.groups["UID"] for item in items])


def _predictions(items: Sequence[Item], choices: Sequence[int], uids: Sequence[str]) -> dict:
    predictions: dict[str, dict] = {}
    seen: Counter[str] = Counter()
    for item, choice, uid in zip(items, choices, uids, strict=True):
        entry = {"id": f"{uid}_{seen[uid]}", "pred": item.completions[choice]}
        predictions.setdefault(uid, {"predictions": []})["predictions"].append(entry)
        seen[uid] += 1
    return predictions


def summary_rows(results: dict[str, dict]) -> Iterator[list[str]]:
    """The figure or figures of each folder, for a table: name and value."""
    for name, metrics in results.items():
        if name == READING:
            yield ["reading: eye tracking, % explained", f"{metrics['eye_tracking']:.2f}"]
            yield ["reading: self-paced, % explained", f"{metrics['self_paced_reading']:.2f}"]
        elif "accuracy" in metrics:
            yield [f"{name}: accuracy, %", f"{metrics['accuracy']:.2f}"]
        else:
            yield [f"{name}: Spearman's rho", f"{metrics['spearman']:.2f}"]
