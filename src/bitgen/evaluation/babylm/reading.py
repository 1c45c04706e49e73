"""Reading times: how much of them a model's surprisal at each word explains, beyond the word's frequency and length."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bitgen.evaluation.babylm.encoding import ProcessorEncoder
from bitgen.evaluation.babylm.packing import TokenSequence
from bitgen.evaluation.babylm.regression import Fit, fit_with_interactions
from bitgen.guards.csv_files import BadCsv, read_csv
from bitgen.guards.numbers import finite_float
from bitgen.guards.printable import printable

EYE_TRACKING = ("RTfirstfix", "RTfirstpass", "RTgopast", "RTrightbound")
SELF_PACED = "self_paced_reading_time"
MEASURES = (*EYE_TRACKING, SELF_PACED, "ELAN", "LAN", "N400", "P600", "EPNP", "PNP")
CONTROLS = ("Subtlex_log10", "length", "context_length")
# What a word inherits from the word before it.
SPILLOVER = ("prev_length", "prev_pred")
FILE = "reading_data.csv"

# Cells that pandas, with which the official pipeline reads the file, takes for missing values.
_MISSING = frozenset(
    "|#N/A|#N/A N/A|#NA|-1.#IND|-1.#QNAN|-NaN|-nan|1.#IND|1.#QNAN|<NA>|N/A|NA|NULL|NaN|None|n/a|nan|null".split("|")
)


@dataclass(frozen=True)
class Word:
    """A word in its context, and where it stands in the file. ``context`` is all that was read before it."""

    origin: str
    context: str
    word: str


@dataclass(frozen=True)
class ReadingData:
    """The file: each row's word, the word before it (None at a sentence's start), and the columns of numbers
    ``[rows]``, NaN where a cell is empty."""

    words: list[Word]
    previous: list[Word | None]
    columns: dict[str, np.ndarray]


def read_reading_data(folder: Path) -> ReadingData:
    """Reads ``reading_data.csv``.

    Raises:
        ValueError: it is missing, or lacks a column, or a cell that must be a number or a word is not; the message
            names line and column.
    """
    path = folder / FILE
    try:
        rows = [row for _, row in read_csv(path)]
    except (OSError, UnicodeDecodeError, BadCsv) as error:
        raise ValueError(f"{path} cannot be read ({error}); download it again, or remove {folder}") from error
    numbers = (*MEASURES, *CONTROLS, "prev_length")
    for name in ("item", "word", "prev_item", "prev_word", *numbers):
        if not rows or name not in rows[0]:
            raise ValueError(f"{path} has no column {name!r} with rows below it; download it again")

    words, previous = [], []
    columns = {name: np.empty(len(rows)) for name in numbers}
    for index, row in enumerate(rows):
        origin = f"{path} row {index + 1}"
        words.append(Word(origin, _text(row, "item") or "None", _word(row, "word", origin)))
        before = _text(row, "prev_item")
        previous.append(None if before is None else Word(origin, before, _word(row, "prev_word", origin)))
        for name in numbers:
            columns[name][index] = _number(row, name, origin)
    return ReadingData(words, previous, columns)


def _text(row: dict[str, str], name: str) -> str | None:
    return None if row[name] in _MISSING else row[name]


def _word(row: dict[str, str], name: str, origin: str) -> str:
    word = _text(row, name)
    if word is None:
        raise ValueError(f"{origin}: {name!r} is empty; it must be a word. Download the file again")
    return word


def _number(row: dict[str, str], name: str, origin: str) -> float:
    cell = _text(row, name)
    try:
        return math.nan if cell is None else finite_float(cell)
    except ValueError as error:
        shown = printable(repr(cell), 60)
        raise ValueError(f"{origin}: {name!r} is {shown}; it must be a number. Download the file again") from error


def word_parts(word: Word, encoder: ProcessorEncoder) -> list[tuple[str, int]]:
    """What to score for a word: contexts, and the token that follows each.

    A word of several tokens is read piece by piece, each context being the text so far, tokenized anew.

    Raises:
        ValueError: the tokenizer makes nothing of the word, or of a piece of it.
    """
    tokens = encoder.encode_word(word.word)
    if not tokens:
        raise ValueError(f"{word.origin}: the tokenizer makes no token of {word.word!r}")
    parts, context = [(word.context, tokens[0])], word.context
    for before, token in zip(tokens, tokens[1:], strict=False):
        # The official pipeline asks for the first token of this token's own text.
        context += encoder.decode(before)
        again = encoder.encode_word(encoder.decode(token))
        if not again:
            raise ValueError(
                f"{word.origin}: {word.word!r} has a token without a text, which the pipeline cannot read either. Take "
                "a tokenizer whose tokens all have one"
            )
        parts.append((context, again[0]))
    return parts


class ReadingQueries:
    """The distinct predictions that a reading file needs, and the surprisals that come of them."""

    def __init__(self, data: ReadingData, encoder: ProcessorEncoder) -> None:
        self.data = data
        parts: dict[tuple[str, str], list[tuple[str, int]]] = {}
        origins: dict[tuple[str, int], str] = {}
        for word in (*data.words, *(word for word in data.previous if word is not None)):
            key = (word.context, word.word)
            if key not in parts:
                parts[key] = word_parts(word, encoder)
            for part in parts[key]:
                origins.setdefault(part, word.origin)
        self._parts, self._order = parts, {part: index for index, part in enumerate(origins)}
        self.sequences = []
        encoded = encoder.encode([context for context, _ in origins])
        for ((context, token), origin), tokens in zip(origins.items(), encoded, strict=True):
            if not tokens.ids:
                raise ValueError(f"{origin}: the tokenizer makes no token of the context {context!r}")
            self.sequences.append(TokenSequence([*tokens.ids, token], [len(tokens.ids)], origin))

    def surprisals(self, log_probs: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """From the log-probabilities of ``sequences``: surprisal in nats of each row's word and of the one before it,
        float64 ``[rows]``; NaN where there is none before."""

        def of(word: Word | None) -> float:
            if word is None:
                return math.nan
            return -sum(float(log_probs[self._order[part]][0]) for part in self._parts[word.context, word.word])

        return np.array([of(word) for word in self.data.words]), np.array([of(word) for word in self.data.previous])


def reading_metrics(data: ReadingData, surprisal: np.ndarray, previous: np.ndarray) -> dict:
    """The scores of the official report, and what they come from.

    ``eye_tracking`` and ``self_paced_reading``: the percentage of the variance left by the controls that surprisal
    explains, for the mean of the four eye-tracking measures, and for self-paced reading times with the word before
    among the controls. ``correlations``: Pearson's with each measure. ``predictive_power`` and
    ``predictive_power_spillover``: the regressions.
    """
    columns = data.columns | {"prev_pred": previous}
    alone = {name: _predictive_power(columns, surprisal, name, CONTROLS) for name in MEASURES}
    spillover = {name: _predictive_power(columns, surprisal, name, (*CONTROLS, *SPILLOVER)) for name in MEASURES}
    return {
        "eye_tracking": float(np.mean([_explained(alone[name]) for name in EYE_TRACKING])),
        "self_paced_reading": _explained(spillover[SELF_PACED]),
        "correlations": {name: _correlation(surprisal, columns[name]) for name in MEASURES},
        "predictive_power": alone,
        "predictive_power_spillover": spillover,
    }


def _predictive_power(
    columns: dict[str, np.ndarray], surprisal: np.ndarray, measure: str, controls: tuple[str, ...]
) -> dict[str, float]:
    baseline = fit_with_interactions(columns[measure], [columns[name] for name in controls])
    model: Fit = fit_with_interactions(columns[measure], [columns[name] for name in controls], surprisal)
    return {
        "coefficient": model.coefficient,
        "t": model.t,
        "p_value": model.p_value,
        "r2": model.r2,
        "r2_change": model.r2 - baseline.r2,
        "aic": model.aic,
        "aic_change": model.aic - baseline.aic,
    }


def _explained(power: dict[str, float]) -> float:
    baseline = power["r2"] - power["r2_change"]
    return 100 * power["r2_change"] / (1 - baseline)


def _correlation(left: np.ndarray, right: np.ndarray) -> float:
    both = np.isfinite(left) & np.isfinite(right)
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.corrcoef(left[both], right[both])[0, 1])
