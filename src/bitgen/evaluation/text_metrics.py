"""Scores of generated text against one or several references, in any language: BLEU, ROUGE-L, METEOR, CIDEr-D, chrF.

All read the same words; see :func:`words`. No score needs Java or a download.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import zip_longest
from typing import Any

import numpy as np
import sacrebleu
from pycocoevalcap.cider.cider import Cider

from bitgen.data.scripts import split_words
from bitgen.evaluation.temporal_f1 import mean_temporal_f1
from bitgen.guards.printable import printable

METRICS = ("bleu", "rouge_l", "meteor", "cider")
_ROUGE_BETA = 1.2  # COCO's

# A candidate's and its references' words, one space between them.
Scorer = Callable[[Sequence[str], Sequence[Sequence[str]]], dict[str, float]]


def words(text: str) -> list[str]:
    """The words of a text in any script, in compatibility form (NFKC): full-width letters are letters like others.

    Latin and other scripts with spaces: words in lower case, without punctuation. Chinese, Japanese and Thai:
    characters. Korean: what stands between spaces (eojeol), not syllables. Korean does write spaces between words, and
    four syllables are one or two words, so that BLEU-4 over them would be a BLEU-2 of another name. An eojeol with
    another particle is another word, though; the metric "chrf", of characters, counts the stem that the two share.
    """
    return split_words(unicodedata.normalize("NFKC", text))


@dataclass(frozen=True)
class TextScores:
    """Scores by name, what they were computed from, and how the text was decoded.

    ``scores``: ``bleu1`` to ``bleu4``, ``rouge_l``, ``rouge_l_f1``, ``meteor``, ``chrf``, ``temporal_f1`` in percent;
    ``cider`` times 100, as papers print it, NaN for a single sample, over which no document frequency says anything.
    """

    scores: dict[str, float]
    samples: int
    references: int
    empty_candidates: int
    distinct_candidates: int
    mean_words: float
    mean_reference_words: float
    decoding: str | None = None

    def to_rows(self) -> list[list[str]]:
        """Rows of name and value for ``show.tables.format_table``."""
        rows = [
            [_NAMES[key], "undefined" if math.isnan(value) else f"{value:.1f}"] for key, value in self.scores.items()
        ]
        rows.append(["words (of a reference)", f"{self.mean_words:.1f} ({self.mean_reference_words:.1f})"])
        rows.append(["different texts", f"{self.distinct_candidates:,} of {self.samples:,}"])
        if self.empty_candidates:
            rows.append(["texts without a word", f"{self.empty_candidates:,}"])
        if self.decoding is not None:
            rows.append(["decoding", self.decoding])
        return rows

    def to_dict(self) -> dict[str, float | int | str | None]:
        """For JSON, which has no NaN: what is undefined is None."""
        values: dict[str, Any] = {key: None if math.isnan(value) else value for key, value in self.scores.items()}
        return values | {key: value for key, value in vars(self).items() if key != "scores"}


def score_texts(
    candidates: Sequence[str],
    references: Sequence[str | Sequence[str]],
    metrics: Sequence[str] = METRICS,
    temporal: bool = False,
    decoding: str | None = None,
) -> TextScores:
    """Scores of one candidate a sample, which may be empty and then scores 0, against its reference or references.

    Args:
        metrics: of "bleu", "rouge_l", "meteor", "cider", "chrf".
        temporal: also Libra's temporal F1, of the words for change in English radiology reports.
        decoding: as of :func:`describe_decoding`; shown with the scores.

    Raises:
        ValueError: no candidates, not as many as references, an unknown metric, something that is no text, a sample
            without a reference that has a word, or METEOR without nltk.
    """
    texts = [[found] if isinstance(found, str) else list(found) for found in references]
    if unknown := [name for name in metrics if name not in SCORERS]:
        raise ValueError(f"{printable(unknown[0])} is no metric of text; there are {', '.join(SCORERS)}")
    for row, (candidate, found) in enumerate(zip(candidates, texts, strict=False)):
        if not all(isinstance(text, str) for text in (candidate, *found)):
            raise ValueError(f"sample {row}: candidate or reference is no text; write a string, '' for an empty one")
    written, wanted = with_words(candidates, texts, words)
    scores: dict[str, float] = {}
    for name in metrics:
        scores |= SCORERS[name](written, wanted)
    if temporal:
        scores["temporal_f1"] = 100 * mean_temporal_f1(candidates, texts)
    return TextScores(
        scores,
        samples=len(written),
        references=sum(map(len, wanted)),
        empty_candidates=sum(not text for text in written),
        distinct_candidates=len(set(written)),
        mean_words=mean_length(written),
        mean_reference_words=mean_length([text for found in wanted for text in found]),
        decoding=decoding,
    )


def with_words(
    candidates: Sequence[str],
    references: Sequence[Sequence[str]],
    split: Callable[[str], list[str]],
    text: str = "text",
    sample: str = "sample",
) -> tuple[list[str], list[list[str]]]:
    """Candidates and references as words with one space between them, without the references that have no word.

    Args:
        text, sample: what messages call a candidate, and what it was written for.

    Raises:
        ValueError: no candidates, not as many as lists of references, or a list in which no reference has a word.
    """
    if not candidates:
        raise ValueError(f"no {text}s to score; write some first")
    if len(candidates) != len(references):
        raise ValueError(f"{len(candidates)} {text}s for {len(references)} lists of references")
    found = []
    for row, texts in enumerate(references):
        found.append([one for one in (" ".join(split(text)) for text in texts) if one])
        if not found[-1]:
            said = printable(repr(list(texts)), 200)
            raise ValueError(f"{sample} {row} has no reference with a word in it: {said}; remove such {sample}s")
    return [" ".join(split(text)) for text in candidates], found


def mean_length(texts: Sequence[str]) -> float:
    """Mean number of words of texts whose words are separated by spaces."""
    return sum(len(text.split()) for text in texts) / len(texts)


def _streams(references: Sequence[Sequence[str]]) -> Sequence[Sequence[str]]:
    """One stream of references after the other, None where a sample has fewer."""
    return [list(stream) for stream in zip_longest(*references)]


def _bleu(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """BLEU over 1 to n words, n = 1 to 4: of the corpus, unsmoothed, brevity by the closest reference (sacrebleu)."""
    # Words stand apart already, so no tokenizer of theirs; "force" silences a warning about full stops that stand so.
    found = sacrebleu.corpus_bleu(candidates, _streams(references), smooth_method="none", tokenize="none", force=True)
    scores = {
        f"bleu{n}": sacrebleu.BLEU.compute_bleu(
            found.counts, found.totals, found.sys_len, found.ref_len, smooth_method="none", max_ngram_order=n
        ).score
        for n in (1, 2, 3)
    }
    return scores | {"bleu4": found.score}


def _chrf(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """chrF: character n-grams of 1 to 6, beta 2; the best reference of each sample counts (sacrebleu)."""
    return {"chrf": sacrebleu.corpus_chrf(candidates, _streams(references)).score}


def _rouge_l(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """ROUGE-L, sentences as one sequence (Lin 2004), means over samples.

    ``rouge_l``: as COCO has it, F with beta 1.2 of the best precision and the best recall over the references.
    ``rouge_l_f1``: as the package rouge-score has it, and reports are scored: the best reference's F1.
    """
    coco, best = [], []
    for candidate, texts in zip(candidates, references, strict=True):
        mine, theirs = candidate.split(), [text.split() for text in texts]
        common = [longest_common(mine, one) for one in theirs]
        precision = max(common) / max(len(mine), 1)
        recall = max(length / len(one) for length, one in zip(common, theirs, strict=True))
        share = _ROUGE_BETA**2
        coco.append((1 + share) * precision * recall / (recall + share * precision) if max(common) else 0.0)
        best.append(max(2 * length / (len(mine) + len(one)) for length, one in zip(common, theirs, strict=True)))
    return {"rouge_l": 100 * float(np.mean(coco)), "rouge_l_f1": 100 * float(np.mean(best))}


def longest_common(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence, a row of the table in one integer's bits (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for place, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << place
    full = row = (1 << len(first)) - 1
    for word in second:
        matched = row & places.get(word, 0)
        row = ((row + matched) | (row - matched)) & full
    return len(first) - row.bit_count()


class _PorterStems:
    """Porter's stems, each word's computed once."""

    def __init__(self) -> None:
        from nltk.stem.porter import PorterStemmer  # type: ignore[import-untyped]  # nltk has no types

        self.stem = cache(PorterStemmer().stem)


class _NoSynonyms:
    """In place of WordNet, whose files would have to be downloaded."""

    def synsets(self, word: str) -> tuple[()]:
        return ()


def _meteor(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """METEOR of exact words and Porter's English stems, without synonyms: alpha 0.9, beta 3, gamma 0.5 (nltk).

    Lavie and Agarwal 2007 with the alignment of nltk; the best reference counts, mean over samples. Not comparable with
    METEOR 1.5, the Java program, which knows synonyms and paraphrases and has other parameters.
    """
    try:
        # Here, because it takes a second to import.
        from nltk.translate.meteor_score import meteor_score  # type: ignore[import-untyped]  # nltk has no types
    except ImportError as error:
        raise ValueError("METEOR needs the package nltk: `pip install nltk`, or leave meteor out") from error
    stems, synonyms = _PorterStems(), _NoSynonyms()
    scores = [
        meteor_score([text.split() for text in texts], candidate.split(), str, stems, synonyms)
        for candidate, texts in zip(candidates, references, strict=True)
    ]
    return {"meteor": 100 * float(np.mean(scores))}


def _cider(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """CIDEr-D as COCO has it, with document frequencies of these references, times 100; NaN for one sample."""
    if len(candidates) == 1:
        return {"cider": math.nan}
    of_sample = {row: list(texts) for row, texts in enumerate(references)}
    by_sample = {row: [text] for row, text in enumerate(candidates)}
    return {"cider": 100 * float(Cider().compute_score(of_sample, by_sample)[0])}


SCORERS: dict[str, Scorer] = {"bleu": _bleu, "rouge_l": _rouge_l, "meteor": _meteor, "cider": _cider, "chrf": _chrf}
_NAMES = {
    **{f"bleu{n}": f"BLEU-{n}, %" for n in (1, 2, 3, 4)},
    "rouge_l": "ROUGE-L (COCO's, beta 1.2), %",
    "rouge_l_f1": "ROUGE-L (F1), %",
    "meteor": "METEOR (exact and stem, no synonyms), %",
    "cider": "CIDEr-D x 100",
    "chrf": "chrF, %",
    "temporal_f1": "temporal F1, %",
}


def describe_decoding(settings: Mapping[str, Any]) -> str:
    """How text was decoded, as a sentence to stand beside every score: "10 beams, length penalty 2, ...".

    Args:
        settings: by the names of transformers' ``GenerationConfig``; ``max_new_tokens`` must be there, what else is
            missing or None has transformers' default.

    Raises:
        ValueError: no ``max_new_tokens``; the score could not be reproduced.
    """

    def value(name: str, default: float) -> float:
        found = settings.get(name)
        return default if found is None else found

    if settings.get("max_new_tokens") is None:
        raise ValueError("decode settings name no max_new_tokens; scores depend on it, so set it")
    beams, parts = int(value("num_beams", 1)), []
    if settings.get("do_sample"):
        parts.append(f"sampled at temperature {value('temperature', 1):g}")
        parts += [f"{name} {settings[name]:g}" for name in ("top_k", "top_p") if settings.get(name) is not None]
        parts += [f"{beams} beams"] if beams > 1 else []
    else:
        parts.append(f"{beams} beams" if beams > 1 else "greedy")
    if beams > 1:
        parts.append(f"length penalty {value('length_penalty', 1):g}")
    for name, what in (("repetition_penalty", "repetition penalty"), ("no_repeat_ngram_size", "no repeated n-gram of")):
        if value(name, 0) not in (0, 1):
            parts.append(f"{what} {settings[name]:g}")
    parts.append(f"at most {int(settings['max_new_tokens'])} new tokens")
    return ", ".join(parts)
