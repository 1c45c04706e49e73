"""Image-text matching over a split: re-ranking the nearest candidates, and accuracy on hard pairs.

A pair's score is the ITM head's logit difference, match minus no match: positive when the model says "match". For
re-ranking, other evidence of the same model can be added: cosine, and how much likelier the image makes the caption.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from bitgen.evaluation.calibration import cross_fitted
from bitgen.evaluation.encode import EncodedSplit, Runner
from bitgen.evaluation.retrieval import Ranking, pair_cosines, recall_metrics


class HardPairs(NamedTuple):
    """Pairs (texts[s], images[s]) of rows of a split and whether they belong together, [S] each."""

    texts: Tensor
    images: Tensor
    labels: Tensor


class RerankWeights(NamedTuple):
    """Added to what matching says: `cosine * cos + text * (log p(caption | image) - log p(caption))`.

    The last term is the captioner's log-likelihood ratio (in nats). Among the images of one caption log p(caption) is
    the same for all, so that there the likelihood alone decides.
    """

    cosine: float = 0.0
    text: float = 0.0


class Captioner(NamedTuple):
    """Another model that learned to write, and the same split as it sees it."""

    runner: Runner
    encoded: EncodedSplit


MATCHING_ALONE = RerankWeights()


def default_cosine_weight(by_likelihood: bool, temperature: float, itm_temperature: float) -> float:
    """What a cosine is worth in re-ranking, in nats.

    Beside a likelihood ratio: what the contrastive loss says, whose learned `temperature` turns cosines into log odds.
    Beside a logit: what drawing negatives in proportion to exp(cosine / itm_temperature) has taken out of it.
    """
    return 1 / (temperature if by_likelihood else itm_temperature)


def score_candidates(
    runner: Runner,
    encoded: EncodedSplit,
    ranking: Ranking,
    weights: RerankWeights = MATCHING_ALONE,
    captioner: Captioner | None = None,
    captions: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Scores of the kept candidates: [M, k] for each caption's images, [N, k] for each image's captions.

    `captions`: the rows whose images `ranking.text_candidates` are; None: all in their order.

    A pair that is a candidate in both directions passes the model once. Without a captioner, the likelihood ratio is
    the model's own.
    """
    rows = _repeat_rows(ranking.text_candidates)
    texts = torch.cat([rows if captions is None else captions[rows], ranking.image_candidates.flatten()])
    images = torch.cat([ranking.text_candidates.flatten(), _repeat_rows(ranking.image_candidates)])
    pairs, where = torch.unique(texts * encoded.num_images + images, return_inverse=True)
    pair_texts, pair_images = pairs // encoded.num_images, pairs % encoded.num_images
    scores = runner.order(encoded, pair_texts, pair_images)
    if weights.cosine:
        scores += weights.cosine * pair_cosines(encoded, pair_texts, pair_images)
    if weights.text:
        judge, seen = captioner or (runner, encoded)
        scores += weights.text * judge.text_evidence(seen, pair_texts, pair_images)
    scores = scores[where]
    split = ranking.text_candidates.numel()
    return scores[:split].view_as(ranking.text_candidates), scores[split:].view_as(ranking.image_candidates)


def _repeat_rows(candidates: Tensor) -> Tensor:
    return torch.arange(len(candidates)).repeat_interleave(candidates.shape[1])


def reranked(ranks: Tensor, scores: Tensor, right: Tensor) -> Tensor:
    """Ranks [Q] after ordering each query's k candidates anew by scores [Q, k]; right [Q, k] marks the right ones.

    The rank of the best-scored right candidate; a wrong one with the same or a NaN score comes before it. A query whose
    right candidate is not among the k keeps its rank by cosine, which is then behind all of them.
    """
    best = scores.masked_fill(~right, -math.inf).amax(dim=1, keepdim=True)
    above = (~(scores < best) & ~right).sum(dim=1)
    return torch.where(right.any(dim=1), above + 1, ranks)


def rerank_metrics(
    runner: Runner,
    encoded: EncodedSplit,
    ranking: Ranking,
    weights: RerankWeights = MATCHING_ALONE,
    bootstrap: int = 0,
    captioner: Captioner | None = None,
) -> dict[str, float | list[float]]:
    """Recall after re-ranking the candidates that `ranking` kept, under `reranked_t2i_*` and `reranked_i2t_*`."""
    text_scores, image_scores = score_candidates(runner, encoded, ranking, weights, captioner)
    own_image = encoded.caption_image[:, None] == ranking.text_candidates
    own_text = encoded.caption_image[ranking.image_candidates] == torch.arange(encoded.num_images)[:, None]
    text_ranks = reranked(ranking.text_ranks, text_scores, own_image)
    image_ranks = reranked(ranking.image_ranks, image_scores, own_text)
    return {
        **recall_metrics(text_ranks, encoded.caption_image, "reranked_t2i", bootstrap),
        **recall_metrics(image_ranks, torch.arange(encoded.num_images), "reranked_i2t", bootstrap),
    }


def hard_pairs(encoded: EncodedSplit, ranking: Ranking) -> HardPairs:
    """All true pairs, and for each image and each caption its most similar wrong partner in the whole split.

    Raises ValueError for a split of one image, where no pair is wrong.
    """
    texts, images = torch.arange(encoded.num_texts), torch.arange(encoded.num_images)
    if encoded.num_images < 2:
        raise ValueError("matching needs at least two images: one alone has no wrong caption")
    return HardPairs(
        torch.cat([texts, texts, ranking.hardest_text]),
        torch.cat([encoded.caption_image, ranking.hardest_image, images]),
        torch.arange(2 * len(texts) + len(images)) < len(texts),
    )


def balanced_accuracy(accepted: Tensor, rejected: Tensor, labels: Tensor) -> float:
    """Mean, in percent, of the share of true pairs accepted and of wrong pairs rejected; NaN scores are neither."""
    return 50.0 * (accepted[labels].double().mean() + rejected[~labels].double().mean()).item()


def best_threshold_accuracy(scores: Tensor, labels: Tensor) -> float:
    """Highest balanced accuracy (percent) that any threshold on scores [S] reaches, by an exact sweep.

    Accepts `score >= threshold`. Equal scores fall on the same side of every threshold, so only thresholds at distinct
    values count; accepting nothing gives 50.
    """
    ordered, order = scores.sort(descending=True)
    sorted_labels = labels[order].double()
    true_rate = sorted_labels.cumsum(0) / sorted_labels.sum()
    false_rate = (1 - sorted_labels).cumsum(0) / (1 - sorted_labels).sum()
    last_of_value = torch.cat([ordered[1:] != ordered[:-1], torch.ones(1, dtype=torch.bool)])
    best = (true_rate - false_rate)[last_of_value].max().clamp_min(0.0)
    return 50.0 * (1.0 + best.item())


def matching_metrics(
    runner: Runner, encoded: EncodedSplit, ranking: Ranking, captioner: Captioner | None = None
) -> dict[str, float]:
    """Balanced accuracy on `hard_pairs`, in percent.

    `itm_acc` is the head's at its own threshold, `itm_acc_cosine` cosine's at its best threshold. `itm_acc_calibrated`
    is that of logit, cosine and a captioner's evidence (where one is given) weighed by a regression on the pairs of
    other images, `itm_acc_cosine_calibrated` that of cosine alone in the same way; NaN where a split is too small.
    The wrong pairs are those of the highest cosine, so such a regression counts a high cosine against a pair: only what
    the first is above the second tells of the matching head and the captioner.
    """
    pairs = hard_pairs(encoded, ranking)
    logits = runner.match(encoded, pairs.texts, pairs.images)
    cosines = pair_cosines(encoded, pairs.texts, pairs.images)
    scores = [cosines, logits]
    if captioner is not None:
        scores.append(captioner.runner.text_evidence(captioner.encoded, pairs.texts, pairs.images))
    return {
        "itm_acc": balanced_accuracy(logits > 0, logits <= 0, pairs.labels),
        "itm_acc_cosine": best_threshold_accuracy(cosines, pairs.labels),
        "itm_acc_calibrated": _calibrated_accuracy(encoded, pairs, scores),
        "itm_acc_cosine_calibrated": _calibrated_accuracy(encoded, pairs, [cosines]),
    }


def _calibrated_accuracy(encoded: EncodedSplit, pairs: HardPairs, scores: list[Tensor]) -> float:
    owners = encoded.caption_image[pairs.texts]
    odds = cross_fitted(torch.stack([part.double() for part in scores], dim=1), pairs.labels, owners, pairs.images)
    return math.nan if odds.isnan().any() else balanced_accuracy(odds > 0, odds <= 0, pairs.labels)
