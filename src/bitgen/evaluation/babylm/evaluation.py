"""Folders of a BabyLM evaluation, all at once (one tokenization, one tree of sentences, one sweep of the model), or one
after the other, each of which is then kept."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bitgen.evaluation.babylm.encoding import ProcessorEncoder
from bitgen.evaluation.babylm.folders import READING, nothing_found, report_folders
from bitgen.evaluation.babylm.items import LATEST, read_items, task_of
from bitgen.evaluation.babylm.kept import EDITION, KeptResults, fingerprint
from bitgen.evaluation.babylm.reading import ReadingQueries, read_reading_data, reading_metrics
from bitgen.evaluation.babylm.records import Item
from bitgen.evaluation.babylm.scoring import Scorer
from bitgen.evaluation.babylm.zero_shot import (
    accuracies,
    candidate_scores,
    choose,
    entity_accuracies,
    first_probability,
    is_tied,
    rank_correlation,
    sequences_of,
)
from bitgen.guards.printable import printable

logger = logging.getLogger(__name__)

# Of equal candidates the official pipeline of 2026 draws one, unseeded; ours always draws the same.
_DRAWN_SINCE = 2026
TIES_SEED = 0


class Evaluation(NamedTuple):
    """``results`` by folder, and ``predictions`` by folder in the layout of the official ``predictions.json``."""

    results: dict[str, dict]
    predictions: dict[str, dict]


class EvaluationData(NamedTuple):
    """What an evaluation folder holds: items by folder name, the folder of reading times if there is one, and by which
    year's rules the items are decided."""

    items: dict[str, list[Item]]
    reading: Path | None
    year: int = LATEST


def read_evaluation_data(eval_dir: str | Path, year: int = LATEST) -> EvaluationData:
    """Reads every folder of a kind that is known here; others are left out, and named.

    Args:
        year: whose rules hold; see :mod:`bitgen.evaluation.babylm.items`.

    Raises:
        ValueError: no such folder, none of a known kind in it, a damaged file, or no rules of such a year.
    """
    eval_dir = Path(eval_dir)
    if not eval_dir.is_dir():
        raise ValueError(f"{eval_dir}: there is no such folder. Give the one that holds blimp_fast, reading ...")
    items, reading, left_out = {}, None, []
    folders = sorted(path for path in eval_dir.iterdir() if path.is_dir())
    for folder in folders:
        if folder.name == READING:
            read_reading_data(folder)  # its turn comes last, and hours may lie before it
            reading = folder
        elif task_of(folder.name, year) is not None:
            items[folder.name] = read_items(folder, year)
        else:
            left_out.append(folder)
    if not items and reading is None:
        raise ValueError(nothing_found(eval_dir, year))
    report_folders(eval_dir, left_out, [folder.name for folder in folders], year)
    return EvaluationData(items, reading, year)


def evaluate_babylm(
    data: EvaluationData, encoder: ProcessorEncoder, scorer: Scorer, kept: KeptSets | None = None
) -> Evaluation:
    """Scores everything.

    Args:
        kept: keeps the results of each folder once it is scored, and gives those of an earlier call that was
            interrupted. Folders are then scored one after the other, without what they have in common.

    Raises:
        ValueError: a text that tokenizer or model cannot take; the message names file and line.
    """
    _warn_without_bos(encoder)
    if kept is None:
        return _evaluate(data, encoder, scorer)
    whole = Evaluation({}, {})
    for part in _by_folder(data):
        name = next(iter(part.items), READING)
        results, file = kept.of(name)
        found = results.get(file)
        if found is None:
            evaluation = _evaluate(part, encoder, scorer)
            found = [evaluation.results[name], evaluation.predictions[name]]
            try:
                results.put(file, found)
            except ValueError as error:  # what was scored must not be lost by this
                logger.warning("%s: an interruption would lose this result", error)
        else:
            logger.info("%s was scored before: taken from %s", printable(name), results.folder)
        whole.results[name], whole.predictions[name] = found
    return whole


class KeptSets:
    """Where :func:`evaluate_babylm` keeps a model's result of each set: a small file, named by the set and by what the
    result depends on. Those of other models, settings or files may be beside it, and count for nothing."""

    def __init__(self, folder: str | Path, of_model: str, eval_dir: str | Path, year: int = LATEST) -> None:
        """``of_model``: identity of model, tokenizer and code, as :func:`identity` gives it."""
        self.folder, self.of_model, self.eval_dir, self.year = folder, of_model, Path(eval_dir), year

    def of(self, name: str) -> tuple[KeptResults, str]:
        """Where the result of a set is kept, and under which name.

        Raises:
            ValueError: the set cannot be read.
        """
        mark = fingerprint(self.of_model, self.eval_dir / name, f"zero-shot {self.year}, form {EDITION}")
        return KeptResults(self.folder, mark), f"{name}-{mark[:16]}"

    def remove(self, names: Iterable[str]) -> None:
        """The files of these sets, and the folder if nothing else is in it."""
        for name in names:
            with suppress(ValueError):  # a set that is gone by now
                results, file = self.of(name)
                results.remove(file)


def _by_folder(data: EvaluationData) -> Iterator[EvaluationData]:
    for name, items in data.items.items():
        yield EvaluationData({name: items}, None, data.year)
    if data.reading is not None:
        yield EvaluationData({}, data.reading, data.year)


def _warn_without_bos(encoder: ProcessorEncoder) -> None:
    if not encoder.begins_with_special():
        logger.warning(
            "the tokenizer puts no BOS before a text: the first token of each sentence is never scored, as in the "
            "official pipeline"
        )


def _evaluate(data: EvaluationData, encoder: ProcessorEncoder, scorer: Scorer) -> Evaluation:
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
        scores = [candidate_scores([next(log_probs) for _ in item.sentences], item.per_token) for item in items]
        task = task_of(name, data.year)
        assert task is not None, name
        evaluation.results[name], evaluation.predictions[name] = _zero_shot(task, items, scores, data.year)
    if queries is not None:
        surprisal, previous = queries.surprisals(list(log_probs))
        evaluation.results[READING] = reading_metrics(queries.data, surprisal, previous)
        pairs = enumerate(zip(surprisal.tolist(), previous.tolist(), strict=True))
        rows = [{"id": row, "pred": pred, "prev_pred": before} for row, (pred, before) in pairs]
        evaluation.predictions[READING] = {READING: {"predictions": rows}}
    return evaluation


def _zero_shot(task: str, items: Sequence[Item], scores: Sequence[np.ndarray], year: int) -> tuple[dict, dict]:
    draw = np.random.default_rng(TIES_SEED) if year >= _DRAWN_SINCE else None
    choices = [choose(candidates, draw) for candidates in scores]
    ties = {"ties": sum(map(is_tied, scores))}
    if task.startswith("wug"):
        probabilities = [first_probability(candidates) for candidates in scores]
        predictions = _predictions(items, choices, [task] * len(items))
        for prediction, probability in zip(predictions[task]["predictions"], probabilities, strict=True):
            prediction["prob"] = float(probability)
        return rank_correlation(items, probabilities) | ties, predictions
    metrics = (entity_accuracies if task == "entity_tracking" else accuracies)(items, choices)
    return metrics | ties, _predictions(items, choices, [item.groups["UID"] for item in items])


def _predictions(items: Sequence[Item], choices: Sequence[int], uids: Sequence[str]) -> dict:
    predictions: dict[str, dict] = {}
    seen: Counter[str] = Counter()
    for item, choice, uid in zip(items, choices, uids, strict=True):
        entry = {"id": f"{uid}_{seen[uid]}", "pred": item.answers[choice]}
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
            yield [f"{name}: accuracy, %", f"{metrics['accuracy']:.2f}{_ties(metrics)}"]
        else:
            yield [f"{name}: Spearman's rho", f"{metrics['spearman']:.2f}{_ties(metrics)}"]


def _ties(metrics: dict) -> str:
    """What is added to a figure; results of earlier versions have no ties."""
    count = metrics.get("ties")
    return "" if count is None else f" ({count} {'tie' if count == 1 else 'ties'})"
