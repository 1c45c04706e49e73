"""When a word is learned: S-shaped curves through what children say and through a model's surprisal (Chang and Bergen,
2022, as the BabyLM challenge computes it)."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import OptimizeWarning, curve_fit

logger = logging.getLogger(__name__)

_FEWEST = 3  # points of a curve, and words of a correlation


def rising(x: np.ndarray, height: float, slope: float, middle: float, floor: float) -> np.ndarray:
    """A logistic curve that rises from ``floor`` by ``height``, with ``middle`` halfway."""
    return floor + height / (1 + np.exp(slope * (middle - x)))


@dataclass(frozen=True)
class CurveRules:
    """How a model's curve is fitted.

    Attributes:
        averaged: one point a checkpoint, the mean over contexts; else every context is a point.
        ceiling_bits: surprisal of a guess where it is the same for all words; None: tokens of the word times the
            logarithm of the vocabulary, in nats.
        bounded: the fit has bounds.
        evaluations: the fit gives up after so many.
        least: height and slope must be greater.
        significance: a correlation of a larger p counts as 0; None: every correlation counts.
    """

    averaged: bool
    ceiling_bits: float | None
    bounded: bool
    evaluations: int
    least: float
    significance: float | None


RULES = {
    2025: CurveRules(False, math.log2(300_000), False, 1000, 0.0, None),
    2026: CurveRules(True, None, True, 20_000, 1e-6, 0.1),
}


def _crossing(level: float, height: float, slope: float, middle: float, floor: float) -> float | None:
    """Where the curve passes a level; None: it stays above or below."""
    share = (level - floor) / height
    if not 0 < share < 1:
        return None
    return float(middle - np.log(1 / share - 1) / slope)


def child_age(ages: np.ndarray, shares: np.ndarray) -> float | None:
    """The month at which half of the children say a word.

    Args:
        ages: months ``[A]``; ``shares``: of the children, ``[A]``, NaN where nobody was asked.

    Returns:
        None: too few points, no fit, or an age outside those that were asked.
    """
    asked = ~np.isnan(shares)
    ages, shares = ages[asked], shares[asked]
    if len(ages) < _FEWEST:
        return None
    start = [1.0, 0.1, float(np.mean(ages)), 0.0]
    bounds = ([0.0, 0.0, ages[0], -0.5], [2.0, 1.0, ages[-1], 0.5])
    found = _fit(ages, shares, start, bounds, 1000)
    if found is None or found[0] <= 0 or found[1] <= 0:
        return None
    age = _crossing(0.5, *found)
    return age if age is not None and ages[0] <= age <= ages[-1] else None


def model_age(words: Sequence[float], surprisals: Sequence[float], ceiling: float, rules: CurveRules) -> float | None:
    """The logarithm (base 10) of the words seen when a word's surprisal is halfway from a guess to its lowest.

    Args:
        words: words seen at each point; ``surprisals``: there, NaN where there is none. ``ceiling``: that of a guess.

    Returns:
        None: too few points, no fit, or a time before the first or after the last point.
    """
    if len(surprisals) < _FEWEST:
        return None
    seen, falling = np.array(words, dtype=np.float64), np.array(surprisals, dtype=np.float64)
    there = ~np.isnan(falling)
    seen, falling = seen[there], falling[there]
    if not len(seen):
        return None
    lowest = falling.min()
    level = -(ceiling - 0.5 * (ceiling - lowest))
    heights, times = -falling, np.log10(seen + 1)
    reach = float(np.ptp(heights))
    start = [reach, 1.0, float(np.mean(times)), float(heights.min())]
    bounds = None
    if rules.bounded:
        below = [0.0, 0.0, times.min() - 1, heights.min() - 2 * reach - 1]
        bounds = (below, [10 * reach + 1, 100.0, times.max() + 1, heights.max() + 1])
    found = _fit(times, heights, start, bounds, rules.evaluations)
    if found is None or found[0] <= rules.least or found[1] <= rules.least:
        return None
    time = _crossing(level, *found)
    if time is None or not times[0] <= time <= times[-1]:  # of an almost flat curve 10**time is beyond every number
        return None
    return time


def _fit(
    x: np.ndarray, y: np.ndarray, start: list[float], bounds: tuple[list, list] | None, evaluations: int
) -> tuple[float, float, float, float] | None:
    """Height, slope, middle and floor of the curve of least squares; None: none was found."""
    limits = {} if bounds is None else {"bounds": bounds}
    try:
        with np.errstate(over="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", OptimizeWarning)  # of the errors of the parameters, which nobody asks for
            found, _ = curve_fit(rising, x, y, p0=start, maxfev=evaluations, **limits)
    except (RuntimeError, ValueError, TypeError) as error:  # no convergence; bounds that leave no room; too few points
        logger.debug("no curve was found: %s", error)
        return None
    return tuple(found)
