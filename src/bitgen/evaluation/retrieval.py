"""Retrieval over a whole split, in blocks: ranks, recall at K, confidence intervals, ITM re-ranking.

The full texts x images matrix never exists: one pass over blocks of it gives both directions' ranks, the candidates to
re-rank and the hardest wrong partners, so that 100k candidates need megabytes.

Scores are exact. Features are rounded to multiples of 2^-24 (float32's own resolution at 1) and multiplied in float64:
every product is a multiple of 2^-48 and every partial sum fits into 53 bits, so no rounding happens and the order of
summation does not matter. Ties are therefore true ties, and results do not depend on the size of the blocks.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bitgen.evaluation.encode import EncodedSplit

RECALL_AT = (1, 5, 10)
_FIXED_POINT = 2.0**24
# Smaller than the smallest difference of two exact scores (2^-48): orders equal scores without changing unequal ones.
_TIE = 2.0**-50
# Stands for NaN among the candidates: after every number, before "nothing here" (-inf).
_LOWEST = -1e300


class Ranking(NamedTuple):
    """What one pass over all pairs of a split yields; N images, M captions, k candidates kept a query.

    text_ranks [M], image_ranks [N]: rank (from 1) of the right image of a caption, of the best-ranked right caption of
    an image; ties count against the model.
    text_candidates [M, k] image rows, image_candidates [N, k] caption rows: the most similar ones, best first.
    hardest_image [M], hardest_text [N]: the most similar wrong partner; -1 when the split has one image.
    """

    text_ranks: Tensor
    image_ranks: Tensor
    text_candidates: Tensor
    image_candidates: Tensor
    hardest_image: Tensor
    hardest_text: Tensor


def exact(features: Tensor) -> Tensor:
    """Features [*, D] as float64 fixed-point numbers, whose products and sums need no rounding (module docstring)."""
    return torch.round(features.double() * _FIXED_POINT) / _FIXED_POINT


def pair_cosines(encoded: EncodedSplit, texts: Tensor, images: Tensor) -> Tensor:
    """Exact scores [S] of the pairs (texts[s], images[s])."""
    return (exact(encoded.text_features[texts]) * exact(encoded.image_features[images])).sum(dim=-1)


def _blocks(rows: int, columns: int, chunk: int) -> Iterator[tuple[slice, slice]]:
    for row in range(0, rows, chunk):
        for column in range(0, columns, chunk):
            yield slice(row, min(row + chunk, rows)), slice(column, min(column + chunk, columns))


def _keep_best(values: Tensor, rows: Tensor, new_values: Tensor, first_row: int) -> None:
    """Merge a block's scores [Q, c] into the running best values/rows [Q, k] in place; c's rows start at first_row."""
    block_values, block_rows = new_values.topk(min(values.shape[1], new_values.shape[1]), dim=1)
    merged = torch.cat([values, block_values], dim=1)
    merged_rows = torch.cat([rows, block_rows + first_row], dim=1)
    best, position = merged.topk(values.shape[1], dim=1)
    values.copy_(best)
    rows.copy_(merged_rows.gather(1, position))


def _keep_highest(values: Tensor, rows: Tensor, new_values: Tensor, first_row: int) -> None:
    """`_keep_best` of one, values/rows [Q]; -inf never replaces anything. A maximum costs far less than a top-1."""
    block_values, block_rows = new_values.max(dim=1)
    better = block_values > values
    values.copy_(torch.where(better, block_values, values))
    rows.copy_(torch.where(better, block_rows + first_row, rows))


@torch.no_grad()
def rank_split(
    encoded: EncodedSplit, top_k: int = 16, chunk: int = 1024, device: torch.device | str = "cpu"
) -> Ranking:
    """Rank every caption against every image and the other way round, `chunk` x `chunk` scores at a time.

    Text to image: the rank of the caption's image. Image to text: the rank of the best-ranked right caption. A wrong
    candidate that ties with the right one, or whose score is NaN, ranks before it, also among the top_k candidates.
    """
    if top_k < 1 or chunk < 1:
        raise ValueError(f"top_k and chunk must be at least 1, got {top_k} and {chunk}")
    images, texts = exact(encoded.image_features.to(device)), exact(encoded.text_features.to(device))
    owner = encoded.caption_image.to(device)
    num_images, num_texts = len(images), len(texts)

    pair = (texts * images[owner]).sum(dim=-1)
    best = torch.full((num_images,), -math.inf, dtype=pair.dtype, device=device).scatter_reduce(0, owner, pair, "amax")

    # "Not below" instead of "at least": a NaN score must never look like a good rank.
    text_above = torch.zeros(num_texts, dtype=torch.int64, device=device)
    image_above = torch.zeros(num_images, dtype=torch.int64, device=device)
    keep_images, keep_texts = min(top_k, num_images), min(top_k, num_texts)
    text_values = pair.new_full((num_texts, keep_images), -math.inf)
    text_rows = torch.full((num_texts, keep_images), -1, dtype=torch.int64, device=device)
    image_values = pair.new_full((num_images, keep_texts), -math.inf)
    image_rows = torch.full((num_images, keep_texts), -1, dtype=torch.int64, device=device)
    wrong_image_value = pair.new_full((num_texts,), -math.inf)
    wrong_text_value = pair.new_full((num_images,), -math.inf)
    wrong_image = torch.full((num_texts,), -1, dtype=torch.int64, device=device)
    wrong_text = torch.full((num_images,), -1, dtype=torch.int64, device=device)

    columns = torch.arange(num_images, device=device)
    for t, i in _blocks(num_texts, num_images, chunk):
        scores = texts[t] @ images[i].T
        right = owner[t, None] == columns[None, i]
        text_above[t] += (~(scores < pair[t, None]) & ~right).sum(dim=1)
        image_above[i] += (~(scores < best[None, i]) & ~right).sum(dim=0)
        scores = scores.nan_to_num(nan=_LOWEST)
        pessimistic = scores - right * _TIE
        _keep_best(text_values[t], text_rows[t], pessimistic, i.start)
        _keep_best(image_values[i], image_rows[i], pessimistic.T, t.start)
        wrong = scores.masked_fill(right, -math.inf)
        _keep_highest(wrong_image_value[t], wrong_image[t], wrong, i.start)
        _keep_highest(wrong_text_value[i], wrong_text[i], wrong.T, t.start)
    ranked = (text_above + 1, image_above + 1, text_rows, image_rows, wrong_image, wrong_text)
    return Ranking(*(tensor.cpu() for tensor in ranked))


def bootstrap_ci95(
    values: Tensor, clusters: Tensor, statistic: str = "mean", resamples: int = 1000, seed: int = 0
) -> list[float]:
    """95% percentile-bootstrap interval (scipy) of the mean or median of values [Q], resampling whole clusters.

    clusters [Q] is the image of each query: five captions of one image are not five independent observations, so images
    are drawn with replacement and bring all their captions along. Fewer than two images say
    nothing about their spread: [nan, nan].
    """
    from scipy import stats  # half a second, for those who want an interval

    _, row, counts = np.unique(clusters.numpy(), return_inverse=True, return_counts=True)
    if len(counts) < 2:
        return [math.nan, math.nan]
    # [clusters, most queries in one], NaN where a cluster has fewer.
    order = np.argsort(row, kind="stable")
    column = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    table = np.full((len(counts), counts.max()), np.nan)
    table[row[order], column] = values.numpy()[order]
    samples: tuple[np.ndarray, ...]
    estimate: Callable[..., np.ndarray]
    if statistic == "mean":
        samples = (np.nansum(table, axis=1), counts.astype(float))

        def mean(total: np.ndarray, count: np.ndarray, axis: int) -> np.ndarray:
            return total.sum(axis=axis) / count.sum(axis=axis)

        estimate = mean

    elif statistic == "median":
        samples = (np.arange(len(counts)),)

        def median(chosen: np.ndarray, axis: int) -> np.ndarray:
            chosen = np.moveaxis(chosen, axis, -1).astype(int)
            return np.nanmedian(table[chosen].reshape(*chosen.shape[:-1], -1), axis=-1)

        estimate = median

    else:
        raise ValueError(f"statistic must be 'mean' or 'median', got {statistic!r}")
    # At most 32 MB of resampled values at a time, whatever the size of the split.
    batch = max(1, 2**22 // table.size)
    interval = stats.bootstrap(
        samples,
        estimate,
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        batch=batch,
        method="percentile",
        confidence_level=0.95,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return [float(interval.low), float(interval.high)]


def recall_metrics(ranks: Tensor, clusters: Tensor, name: str, bootstrap: int = 0) -> dict[str, float | list[float]]:
    """R@1, 5, 10 in percent and the median rank, under `name`_R@K and `name`_median_rank.

    With `bootstrap` > 0 resamples, each also has its confidence interval under *_ci95.
    """
    metrics: dict[str, float | list[float]] = {}
    for k in RECALL_AT:
        hits = (ranks <= k).double() * 100.0
        metrics[f"{name}_R@{k}"] = hits.mean().item()
        if bootstrap:
            metrics[f"{name}_R@{k}_ci95"] = bootstrap_ci95(hits, clusters, "mean", bootstrap)
    metrics[f"{name}_median_rank"] = float(np.median(ranks.numpy()))
    if bootstrap:
        metrics[f"{name}_median_rank_ci95"] = bootstrap_ci95(ranks.double(), clusters, "median", bootstrap)
    return metrics


def retrieval_metrics(
    encoded: EncodedSplit, ranking: Ranking | None = None, bootstrap: int = 0, chunk: int = 1024
) -> dict[str, float | list[float]]:
    """Text-to-image and image-to-text recall of the cosine similarities, in percent; see `recall_metrics`."""
    ranking = ranking or rank_split(encoded, chunk=chunk)
    return {
        **recall_metrics(ranking.text_ranks, encoded.caption_image, "t2i", bootstrap),
        **recall_metrics(ranking.image_ranks, torch.arange(encoded.num_images), "i2t", bootstrap),
    }
