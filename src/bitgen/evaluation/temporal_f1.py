"""Temporal F1: does a radiology report speak of change as its reference does?

Libra (X-iZhang/Libra, libra/eval/temporal_f1.py), after the temporal entity score of BioViL-T (arXiv 2301.04558).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

TEMPORAL_WORDS = frozenset(
    "bigger change cleared constant decrease decreased decreasing elevated elevation enlarged enlargement enlarging "
    "expanded greater growing improved improvement improving increase increased increasing larger new persistence "
    "persistent persisting progression progressive reduced removal resolution resolved resolving smaller stability "
    "stable stably unaltered unchanged unfolded worse worsen worsened worsening".split()
)
_EPSILON = 1e-10
_PATTERN = re.compile(rf"\b(?:{'|'.join(sorted(TEMPORAL_WORDS))})\b")


def temporal_words(text: str) -> set[str]:
    """Which of the words for change a text has, as whole words in any case."""
    return set(_PATTERN.findall(text.lower()))


def temporal_f1(candidate: str, reference: str) -> float:
    """F1 in [0, 1] of the two sets of words for change: 1 where both are empty, 1e-10 where the reference's alone is.

    Precision and recall have 1e-10 in numerator and denominator, F1 in its denominator.
    """
    found, wanted = temporal_words(candidate), temporal_words(reference)
    if not wanted:
        return _EPSILON if found else 1.0
    shared = len(found & wanted) + _EPSILON
    precision, recall = shared / (len(found) + _EPSILON), shared / (len(wanted) + _EPSILON)
    return 2 * precision * recall / (precision + recall + _EPSILON)


def mean_temporal_f1(candidates: Sequence[str], references: Sequence[str | Sequence[str]]) -> float:
    """Mean over samples, in [0, 1]; of several references the best counts.

    Raises:
        ValueError: no samples, not as many candidates as references, or a sample without a reference.
    """
    if not candidates:
        raise ValueError("no texts to score; write some first")
    if len(candidates) != len(references):
        raise ValueError(f"{len(candidates)} candidates for {len(references)} lists of references")
    total = 0.0
    for row, (candidate, found) in enumerate(zip(candidates, references, strict=True)):
        texts = [found] if isinstance(found, str) else found
        if not texts:
            raise ValueError(f"sample {row} has no reference; remove such samples")
        total += max(temporal_f1(candidate, text) for text in texts)
    return total / len(candidates)
