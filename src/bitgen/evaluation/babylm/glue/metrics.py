"""Accuracy, F1 and Matthews' correlation of predicted classes, from their table of counts; in percent."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from bitgen.evaluation.babylm.glue.data import ACCURACY, F1, MCC, GlueTask


def counts_of(predictions: Sequence[int], labels: Sequence[int], classes: int) -> Tensor:
    """How often each label (rows) got each prediction (columns): int64 ``[classes, classes]``."""
    cells = torch.tensor(labels) * classes + torch.tensor(predictions)
    return cells.bincount(minlength=classes * classes).reshape(classes, classes)


def accuracy(counts: Tensor) -> float:
    """The share of right predictions."""
    return 100 * int(counts.trace()) / int(counts.sum())


def f1(counts: Tensor) -> float:
    """Of label 1 against the rest: 2 TP / (2 TP + FP + FN); 0 where nothing is or is called 1."""
    hits = int(counts[1, 1])
    either = int(counts[1].sum() + counts[:, 1].sum())
    return 100 * 2 * hits / either if either else 0.0


def mcc(counts: Tensor) -> float:
    """Matthews' correlation for any number of classes (Gorodkin 2004, R_K); 0 where labels or predictions are all
    alike."""
    total, right = int(counts.sum()), int(counts.trace())
    labelled, predicted = counts.sum(dim=1).tolist(), counts.sum(dim=0).tolist()
    both = total * right - sum(a * b for a, b in zip(labelled, predicted, strict=True))
    spread = (total**2 - sum(a * a for a in labelled)) * (total**2 - sum(b * b for b in predicted))
    return 100 * both / math.sqrt(spread) if spread else 0.0


_METRICS = {ACCURACY: accuracy, F1: f1, MCC: mcc}


def task_metrics(task: GlueTask, predictions: Sequence[int], labels: Sequence[int]) -> dict[str, float]:
    """The metrics of a task, by name."""
    counts = counts_of(predictions, labels, task.labels)
    return {name: _METRICS[name](counts) for name in task.metrics}
