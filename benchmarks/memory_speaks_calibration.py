"""Whether the probability that is shown with what was recalled means what it says."""

from __future__ import annotations

from collections.abc import Sequence

from bitgen.memory.answering import Answer

EDGES = (0.0, 0.6, 0.8, 0.9, 0.99, 1.0)
"""Of the bins of probabilities; a question recalls above 0.6, a picture above 0.8."""


def calibration(answers: Sequence[Answer]) -> dict[tuple[float, float], tuple[float, float, int]]:
    """Answers by the probability of their surest fact: ``{(from, to): (mean probability, percent right, answers)}``.

    Right is what recalls the facts that are asked for and no others, or nothing where nothing was taught; below the
    level it is that nothing which was asked for was held back.
    """
    found = {}
    for low, high in zip(EDGES, EDGES[1:], strict=False):
        last = high == EDGES[-1]
        held = [one for one in answers if low <= one.confidence < high or (last and one.confidence == high)]
        if held:
            right = sum(set(one.facts) == set(one.query.facts) for one in held)
            mean = sum(one.confidence for one in held) / len(held)
            found[low, high] = (mean, 100 * right / len(held), len(held))
    return found
