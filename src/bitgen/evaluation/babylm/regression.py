"""Ordinary least squares with all pairwise interactions of the controls."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from scipy.stats import t as student_t


class Fit(NamedTuple):
    """Share of variance explained, Akaike's criterion (of the Gaussian likelihood, intercept counted, variance not),
    and of the last predictor its coefficient, t value and two-sided p value."""

    r2: float
    aic: float
    coefficient: float
    t: float
    p_value: float


def fit_with_interactions(
    outcome: np.ndarray, controls: Sequence[np.ndarray], predictor: np.ndarray | None = None
) -> Fit:
    """``outcome [N] ~ 1 + controls + products of each two controls + predictor``; rows with a NaN are left out.

    Solved on standardised columns, so that products of large numbers lose no digits. A column that the others already
    explain counts for nothing.

    Raises:
        ValueError: fewer rows than terms.
    """
    columns = [*controls, *(left * right for left, right in combinations(controls, 2))]
    if predictor is not None:
        columns.append(predictor)
    terms = np.stack(columns, axis=1)
    whole = np.isfinite(terms).all(axis=1) & np.isfinite(outcome)
    terms, outcome = terms[whole], outcome[whole]
    count = len(outcome)
    if count <= terms.shape[1] + 1:
        raise ValueError(f"a regression on {terms.shape[1] + 1} terms needs more rows than the {count} without a gap")

    # Centred, the intercept drops out; the coefficients and the residuals are the same.
    centred, deviation = terms - terms.mean(axis=0), outcome - outcome.mean()
    scale = centred.std(axis=0)
    scale[scale == 0] = 1
    basis, triangle = np.linalg.qr(centred / scale)
    rank = int(np.linalg.matrix_rank(triangle, rtol=1e-12))
    inverse = np.linalg.pinv(triangle, rtol=1e-12)
    projected = basis.T @ deviation
    weights = inverse @ projected
    residual = float(np.square(deviation - basis @ (triangle @ weights)).sum())
    rank += 1  # the intercept

    likelihood = -count / 2 * (np.log(2 * np.pi * residual / count) + 1)
    error = np.sqrt(residual / (count - rank) * np.square(inverse[-1]).sum())
    t = float(weights[-1] / error)
    return Fit(
        r2=1 - residual / float(np.square(deviation).sum()),
        aic=float(2 * rank - 2 * likelihood),
        coefficient=float(weights[-1] / scale[-1]),
        t=t,
        p_value=float(2 * student_t.sf(abs(t), count - rank)),
    )
