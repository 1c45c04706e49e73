"""What several scores of a pair tell together: a logistic regression on them, fitted on pairs of other images.

The matching head is fitted in training, on pairs that the model has overfitted, and so are its threshold and the weight
of the cosine next to it. This asks how well the same scores decide once weights and threshold
are those of held-out pairs.
"""

import math
from itertools import combinations_with_replacement

import numpy as np
import torch
from scipy import optimize
from torch import Tensor

# Images in four groups: a pair touches two at most, and is judged by what was fitted on the rest.
GROUPS = 4
# Keeps the weights finite where the scores separate the labels without error; far too small to move them elsewhere.
_RIDGE = 1e-6


def fit_logistic(scores: Tensor, labels: Tensor) -> tuple[Tensor, float]:
    """Weights [F] and bias of the logistic regression on scores [S, F] of labels [S], float64.

    True and wrong pairs weigh the same in sum, so that a log-odds of 0 is the threshold of balanced accuracy.
    """
    values, true = scores.double().numpy(), labels.numpy()
    shift, scale = values.mean(axis=0), values.std(axis=0)
    scale[scale == 0] = 1.0
    design = np.column_stack([(values - shift) / scale, np.ones(len(values))])
    share = np.where(true, 0.5 / true.sum(), 0.5 / (~true).sum())
    sign = np.where(true, -1.0, 1.0)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        wrong = sign * (design @ weights)
        probability = np.exp(-np.logaddexp(0.0, -wrong))
        value = share @ np.logaddexp(0.0, wrong) + 0.5 * _RIDGE * weights @ weights
        return value, (share * sign * probability) @ design + _RIDGE * weights

    found = optimize.minimize(loss, np.zeros(design.shape[1]), jac=True, method="BFGS", options={"gtol": 1e-8}).x
    weights = found[:-1] / scale
    return torch.from_numpy(weights), float(found[-1] - shift @ weights)


def cross_fitted(scores: Tensor, labels: Tensor, first_image: Tensor, second_image: Tensor) -> Tensor:
    """Log-odds [S] of pairs from scores [S, F], each by a regression on pairs that share none of its images' groups.

    first_image, second_image [S]: rows of the two images that a pair is about, its caption's own and the one shown;
    every fourth row is of the same group. NaN where the other groups have no true or no wrong pair, and for scores that
    are not finite.
    """
    odds = torch.full((len(labels),), math.nan, dtype=torch.float64)
    known = scores.isfinite().all(dim=1)
    group = torch.stack([first_image % GROUPS, second_image % GROUPS], dim=1).sort(dim=1).values
    for pair in combinations_with_replacement(range(GROUPS), 2):
        judged = (group == torch.tensor(pair)).all(dim=1)
        fitted = known & ~torch.isin(group, torch.tensor(pair)).any(dim=1)
        if judged.any() and labels[fitted].any() and not labels[fitted].all():
            weights, bias = fit_logistic(scores[fitted], labels[fitted])
            odds[judged] = scores[judged].double() @ weights + bias
    return odds
