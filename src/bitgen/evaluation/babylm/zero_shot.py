"""From scores of candidates to decisions and accuracies, as the official pipeline counts them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from scipy.special import softmax
from scipy.stats import spearmanr

from bitgen.evaluation.babylm.encoding import Encoded, completion_positions
from bitgen.evaluation.babylm.items import ENTITY_SPLITS
from bitgen.evaluation.babylm.packing import TokenSequence
from bitgen.evaluation.babylm.records import Item


def sequences_of(item: Item, encoded: Sequence[Encoded]) -> list[TokenSequence]:
    """What the model has to score of an item's candidates."""
    candidates = zip(encoded, item.sentences, item.completions, strict=True)
    return [
        TokenSequence(tokens.ids, completion_positions(tokens, sentence, completion), item.origin)
        for tokens, sentence, completion in candidates
    ]


def candidate_scores(log_probs: Sequence[np.ndarray], per_token: bool = False) -> np.ndarray:
    """Summed log-probabilities of each candidate, float32 ``[C]``; with ``per_token`` divided by the tokens scored."""
    sums = np.array([candidate.sum(dtype=np.float64) for candidate in log_probs], dtype=np.float32)
    if not per_token:
        return sums
    return sums / np.array([max(len(candidate), 1) for candidate in log_probs], dtype=np.float32)


def is_tied(scores: np.ndarray) -> bool:
    """Whether the best candidate has an equal."""
    return int((scores == scores.max()).sum()) > 1


def choose(scores: np.ndarray, draw: np.random.Generator | None = None) -> int:
    """The most probable candidate; of equal ones a drawn one, and without ``draw`` the first."""
    if draw is None or not is_tied(scores):
        return int(scores.argmax())
    return int(draw.choice(np.flatnonzero(scores == scores.max())))


def accuracies(items: Sequence[Item], choices: Sequence[int]) -> dict:
    """Percentages: ``accuracy``, the mean over subtasks, and each group's own below the name of its kind (``UID``...).

    Entity tracking's subtasks are averaged within each of its splits first, and the splits stand among them.
    """
    right: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for item, choice in zip(items, choices, strict=True):
        for kind, group in item.groups.items():
            right[kind][group].append(choice == item.label)
    shares = {
        kind: {group: 100.0 * sum(flags) / len(flags) for group, flags in groups.items()}
        for kind, groups in right.items()
    }
    return {"accuracy": float(np.mean(list(shares["UID"].values()))), **shares}


def entity_accuracies(items: Sequence[Item], choices: Sequence[int]) -> dict:
    """As :func:`accuracies`, with the mean over splits, of which ``read_items`` has seen one at least."""
    results = accuracies(items, choices)
    subtasks = results["UID"]
    splits = {}
    for split in ENTITY_SPLITS:
        if own := [share for name, share in subtasks.items() if name.startswith(split)]:
            splits[split] = float(np.mean(own))
    return {"accuracy": float(np.mean(list(splits.values()))), "UID": subtasks | splits}


def first_probability(scores: np.ndarray) -> np.float32:
    """How probable the first candidate is among all, in float32: where it rounds to 1, the official ranks tie too."""
    return softmax(scores.astype(np.float32))[0]


def rank_correlation(items: Sequence[Item], probabilities: Sequence[np.float32]) -> dict:
    """Spearman's rho between the model's and people's preference for the first candidate; NaN where one is constant."""
    ratios, preferred = [item.ratio for item in items], np.array(probabilities, dtype=np.float32)
    if len(set(ratios)) < 2 or np.ptp(preferred) == 0:  # of which scipy would warn the user
        return {"spearman": float("nan")}
    return {"spearman": float(spearmanr(preferred, ratios)[0])}
