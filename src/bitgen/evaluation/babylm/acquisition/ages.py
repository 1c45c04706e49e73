"""Ages of acquisition: does a model learn words in the order in which children do? Asked of its checkpoints."""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import pearsonr

from bitgen.evaluation.babylm.acquisition.curves import RULES, child_age, model_age
from bitgen.evaluation.babylm.encoding import Encoded, ProcessorEncoder
from bitgen.evaluation.babylm.items import LATEST
from bitgen.evaluation.babylm.kept import EDITION, KeptResults, fingerprint, fingerprint_of_files
from bitgen.evaluation.babylm.models import open_language_model
from bitgen.evaluation.babylm.packing import TokenSequence
from bitgen.evaluation.babylm.scoring import Scorer
from bitgen.guards.csv_files import BadCsv, read_csv
from bitgen.guards.json_files import BadJson, parse_json
from bitgen.guards.numbers import finite_float
from bitgen.guards.printable import printable

logger = logging.getLogger(__name__)

CONTEXTS_FILE, CHILDREN_FILE = "cdi_childes.json", "cdi_human.csv"
AGES = range(16, 31)  # months
MILLION = 10**6
_MISSING = frozenset(("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None"))
_FEWEST_WORDS = 3


@dataclass(frozen=True)
class AcquisitionData:
    """Contexts ``(word, text before it)`` in the order of the file, and of each word that children were asked about the
    share who say it at each age, ``[A]``, NaN where unknown."""

    path: Path
    contexts: list[tuple[str, str]]
    ages: np.ndarray
    shares: dict[str, np.ndarray]


class AgeOfAcquisition(NamedTuple):
    """``results``: ``aoa`` (Pearson's correlation of ages, -1 to 1, 0 where it counts for nothing), ``correlation``
    and ``p_value`` as they are, ``n_words`` (words with an age of both), ``words``, ``checkpoints`` (words seen), and
    the ages by word; NaN where there are too few words.
    ``surprisal``: what the official ``surprisal.json`` holds. ``score``: what ``aoa_score.json`` holds."""

    results: dict[str, Any]
    surprisal: dict[str, Any]
    score: dict[str, float]


def read_acquisition_data(folder: str | Path) -> AcquisitionData:
    """Reads ``cdi_childes.json`` (contexts of each word) and ``cdi_human.csv`` (what children say).

    Raises:
        ValueError: a file is missing or damaged; the message names it, and the word or row.
    """
    folder = Path(folder)
    ages, shares = _read_children(folder / CHILDREN_FILE)
    return AcquisitionData(folder, _read_contexts(folder / CONTEXTS_FILE), ages, shares)


def _read_contexts(path: Path) -> list[tuple[str, str]]:
    try:
        found = parse_json(path.read_bytes(), dict)
    except (OSError, BadJson) as error:
        raise ValueError(f"{path} cannot be read ({error}); download the evaluation's aoa folder again") from error
    contexts = []
    for word, entries in found.items():
        if not isinstance(entries, list) or not all(
            isinstance(entry, dict) and isinstance(entry.get("context"), str) for entry in entries
        ):
            raise ValueError(
                f"{path}: {printable(repr(word), 40)} is no list of objects with a text 'context'; download it again"
            )
        if len(word) > 1:  # the official pipeline leaves out words of one letter
            contexts += [(word, entry["context"]) for entry in entries]
    if not contexts:
        raise ValueError(f"{path} holds no contexts; download it again")
    return contexts


def _read_children(path: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    try:
        rows = [row for _, row in read_csv(path)]
    except (OSError, UnicodeDecodeError, BadCsv) as error:
        raise ValueError(f"{path} cannot be read ({error}); download the evaluation's aoa folder again") from error
    ages = [age for age in AGES if rows and str(age) in rows[0]]
    if not ages or "word" not in rows[0]:
        raise ValueError(f"{path} needs a column 'word' and one for an age of {AGES[0]} to {AGES[-1]} months")
    shares: dict[str, np.ndarray] = {}
    for number, row in enumerate(rows, start=1):
        try:
            own = [math.nan if row[str(age)] in _MISSING else finite_float(row[str(age)]) for age in ages]
        except ValueError as error:
            raise ValueError(f"{path} row {number}: {error}; a share of children, or nothing, must be there") from error
        shares.setdefault(row["word"], np.array(own))  # of rows with the same word the first counts
    return np.array(ages), shares


def word_surprisals(data: AcquisitionData, encoder: ProcessorEncoder, scorer: Scorer) -> list[float]:
    """Surprisal in nats of each word after its context, summed over its tokens; NaN where no token has one before it.

    Raises:
        ValueError: a text that tokenizer or model cannot take.
    """
    texts = [f"{context.strip()} {word.strip()}" for word, context in data.contexts]
    distinct = list(dict.fromkeys(texts))
    encoded = dict(zip(distinct, encoder.encode(distinct), strict=True))
    sequences = []
    for (word, context), text in zip(data.contexts, texts, strict=True):
        origin = f"{data.path / CONTEXTS_FILE}: {printable(repr(word), 40)} after {printable(repr(context), 60)}"
        sequences.append(TokenSequence(encoded[text].ids, _positions(encoded[text], text, word.strip()), origin))
    log_probs = scorer.score(sequences)
    return [-float(part.sum(dtype=np.float64)) if len(part) else math.nan for part in log_probs]


def _positions(encoded: Encoded, text: str, word: str) -> list[int]:
    border = len(text) - len(word)
    return [position for position, (_, end) in enumerate(encoded.offsets) if position and end > border]


class Vocabulary(NamedTuple):
    """What the curves need of a tokenizer: its size, and the tokens of each word within a sentence."""

    size: int
    lengths: dict[str, int]


def word_vocabulary(words: Sequence[str], encoder: ProcessorEncoder) -> Vocabulary:
    """Lengths after "The", whose own tokens are taken off."""
    tokenizer = encoder.tokenizer

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    before = count("The")
    return Vocabulary(int(tokenizer.vocab_size), {word: max(1, count(f"The {word}") - before) for word in words})


def acquisition_scores(
    data: AcquisitionData, by_checkpoint: Mapping[int, Sequence[float]], vocabulary: Vocabulary, year: int = LATEST
) -> dict[str, Any]:
    """The figures, from the surprisals of :func:`word_surprisals` by words seen; see :class:`AgeOfAcquisition`."""
    rules, seen = RULES[year], sorted(by_checkpoint)
    cloud = np.array([by_checkpoint[words] for words in seen])  # (checkpoints, contexts)
    places: dict[str, list[int]] = {}
    for place, (word, _) in enumerate(data.contexts):
        places.setdefault(word, []).append(place)
    ages: dict[str, dict[str, float]] = {}
    for word, own in places.items():
        shares = data.shares.get(word)
        child = None if shares is None else child_age(data.ages, shares)
        if child is None:
            continue
        points = cloud[:, own]
        if rules.averaged:
            times, surprisals = list(seen), points.mean(axis=1).tolist()
        else:
            times, surprisals = np.repeat(seen, len(own)).tolist(), points.ravel().tolist()
        if rules.ceiling_bits is None:
            ceiling = vocabulary.lengths[word] * math.log(vocabulary.size)
        else:
            ceiling = rules.ceiling_bits
        model = model_age(times, surprisals, ceiling, rules)
        if model is not None:
            ages[word] = {"child": child, "model": model}
    correlation = p_value = math.nan
    if len(ages) >= _FEWEST_WORDS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # constant ages have no correlation: NaN
            pair = pearsonr([age["model"] for age in ages.values()], [age["child"] for age in ages.values()])
        correlation, p_value = float(pair[0]), float(pair[1])
    # Where one side is constant both are NaN, and nothing is shown.
    counts = math.isfinite(correlation) and (rules.significance is None or p_value <= rules.significance)
    return {
        "aoa": correlation if counts else 0.0,
        "correlation": correlation,
        "p_value": p_value,
        "n_words": len(ages),
        "words": len(places),
        "checkpoints": seen,
        "ages": ages,
    }


def age_of_acquisition(
    folders_by_words: Mapping[int, Path],
    data: str | Path,
    device: torch.device | None = None,
    *,
    year: int = LATEST,
    trust_remote_code: bool = False,
    kept: str | Path | None = None,
    model_name: str = "",
    batch_tokens: int = 4096,
) -> AgeOfAcquisition:
    """Scores the words after their contexts at each checkpoint, fits curves, compares with children.

    Args:
        folders_by_words: the folder of each checkpoint (``chck_1M`` ...) by the words seen, whole millions.
        data: the ``aoa`` folder of the evaluation data.
        kept: a folder where the surprisals of each finished checkpoint are kept: an interrupted call goes on there.
        model_name: what ``surprisal.json`` says.

    Raises:
        ValueError: data or a checkpoint cannot be read, words that are no whole millions, or checkpoints whose
            vocabularies differ.
    """
    if year not in RULES:
        raise ValueError(f"the rules of {year} are not known; give one of {', '.join(map(str, RULES))}")
    if not folders_by_words:
        raise ValueError("there are no checkpoints: ages of acquisition need chck_1M, chck_2M ...")
    if odd := [words for words in folders_by_words if words <= 0 or words % MILLION]:
        raise ValueError(f"{folders_by_words[odd[0]]}: {odd[0]} words seen; checkpoints stand at whole millions")
    found, device = read_acquisition_data(data), device or torch.device("cpu")
    if len(folders_by_words) < _FEWEST_WORDS:
        logger.warning("%d checkpoints: a curve needs %d, so the score is 0", len(folders_by_words), _FEWEST_WORDS)
    words = list(dict.fromkeys(word for word, _ in found.contexts))
    by_checkpoint: dict[int, list[float]] = {}
    vocabularies: dict[int, Vocabulary] = {}
    for seen in sorted(folders_by_words):
        folder, name = Path(folders_by_words[seen]), step_name(seen)
        store = None
        if kept is not None:
            of_model = fingerprint_of_files(folder)
            store = KeptResults(kept, fingerprint(of_model, found.path / CONTEXTS_FILE, f"surprisal {EDITION}"))
        known = store.get(f"aoa_{name}") if store is not None else None
        if known is None:
            logger.info("ages of acquisition: %s", folder)
            model, encoder = open_language_model(folder, device, trust_remote_code)
            surprisals = word_surprisals(found, encoder, Scorer(model, device, batch_tokens))
            known = {"surprisals": surprisals, "vocabulary": list(word_vocabulary(words, encoder))}
            if store is not None:
                store.put(f"aoa_{name}", known)
        by_checkpoint[seen], vocabularies[seen] = known["surprisals"], Vocabulary(*known["vocabulary"])
    last = max(vocabularies)
    for seen, vocabulary in vocabularies.items():
        if vocabulary != vocabularies[last]:
            raise ValueError(
                f"{folders_by_words[seen]} has another vocabulary than {folders_by_words[last]}: their surprisals do "
                "not make a curve. Give checkpoints of one run"
            )
    results = acquisition_scores(found, by_checkpoint, vocabularies[last], year)
    logger.info("ages of acquisition: %s", json.dumps({key: results[key] for key in ("aoa", "p_value", "n_words")}))
    return AgeOfAcquisition(results, _official(found, by_checkpoint, model_name), {"aoa": results["aoa"]})


def step_name(words: int) -> str:
    """The official name of the checkpoint at so many words: ``chck_1M``."""
    return f"chck_{words // MILLION}M"


def _official(data: AcquisitionData, by_checkpoint: Mapping[int, Sequence[float]], model_name: str) -> dict[str, Any]:
    rows = []
    for seen in sorted(by_checkpoint):
        number: dict[str, int] = {}
        for (word, context), surprisal in zip(data.contexts, by_checkpoint[seen], strict=True):
            number[word] = number.get(word, -1) + 1
            rows.append(
                {
                    "step": step_name(seen),
                    "word_count": seen,
                    "target_word": word,
                    "context_id": number[word],
                    "context": context,
                    "surprisal": surprisal,
                }
            )
    steps = len(by_checkpoint)
    about = {"model_name": model_name, "use_bos_only": False, "total_steps": steps, "completed_steps": steps}
    return {"metadata": about, "results": rows}
