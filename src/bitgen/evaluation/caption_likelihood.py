"""Retrieval by a model that writes: how likely each caption is, given each image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from bitgen.evaluation.answers import evaluating
from bitgen.evaluation.retrieval import recall_metrics
from bitgen.model.likelihood import IGNORED
from bitgen.vlm.modeling import VisionLanguageModel

Autocast = Callable[[], AbstractContextManager]


@torch.no_grad()
def log_likelihoods(
    model: VisionLanguageModel,
    samples: Sequence[dict[str, Any]],
    collate: Callable[[Sequence[dict]], dict[str, Any]],
    batch_size: int,
    autocast: Autocast = nullcontext,
    show_progress: bool = False,
) -> Tensor:
    """``[N, N]`` float32: entry (m, n) is log p(answer of sample m | its question, image of sample n), in nats.

    The sum over the answer's tokens and the end of the turn, by teacher forcing: N x N forward passes of the language
    model, and one of the encoder for each image.

    Args:
        model: on its device; gets its train or eval mode back.
        samples: each with one visual, all of as many pictures.
    """
    texts = [{name: t for name, t in sample.items() if name not in _PICTURES} for sample in samples]
    found = torch.empty(len(samples), len(samples))
    rows = tqdm(range(len(samples)), desc="images", leave=False, disable=None if show_progress else True)
    with evaluating(model):
        for image in rows:
            pictures = _to(collate([samples[image]]), model.device)
            with autocast():
                features = model.features(pictures)
            for start in range(0, len(samples), batch_size):
                inputs = _to(collate(texts[start : start + batch_size]), model.device)
                inputs["features"] = features.repeat(len(inputs["input_ids"]), 1, 1, 1)
                with autocast():
                    logits, targets = model(inputs)
                tokens = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")
                of_row = (inputs["labels"][:, 1:] != IGNORED).nonzero()[:, 0]
                sums = tokens.new_zeros(len(inputs["input_ids"])).index_add_(0, of_row, -tokens)
                found[start : start + batch_size, image] = sums.cpu()
    return found


_PICTURES = ("pixel_values", "vision_features")


def _to(batch: dict[str, Any], device: torch.device) -> dict[str, Tensor]:
    return {name: t.to(device) for name, t in batch.items() if isinstance(t, Tensor)}


def likelihood_retrieval(scores: Tensor, bootstrap: int = 0) -> dict[str, float | list[float]]:
    """R@1, 5, 10 and median rank of ``[N, N]`` log-likelihoods, captions by images, right on the diagonal.

    ``t2i``: a caption ranks the images by how likely each makes it. ``i2t``: an image ranks the captions by their
    likelihood, in which short and common captions come first. ``i2t_gain``: by the likelihood over the mean
    likelihood given any of the images, which is what seeing this one adds. Ties count against the model.
    """
    gain = scores - torch.logsumexp(scores.double(), dim=1, keepdim=True)
    metrics: dict[str, float | list[float]] = {}
    for name, table in (("t2i", scores), ("i2t", scores.T), ("i2t_gain", gain.T)):
        right = table.diagonal()[:, None]
        ranks = (~(table < right)).sum(dim=1)  # the right one is not below itself, so that the best rank is 1
        metrics |= recall_metrics(ranks, torch.arange(len(table)), name, bootstrap)
    return metrics
