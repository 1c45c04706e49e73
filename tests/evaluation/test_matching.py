import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitgen.evaluation.matching import (
    RerankWeights,
    best_threshold_accuracy,
    hard_pairs,
    matching_metrics,
    rerank_metrics,
    reranked,
    score_candidates,
)
from bitgen.evaluation.retrieval import rank_split
from support.splits import TableRunner as table_runner
from support.splits import split_of, tied_splits


@settings(max_examples=150, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=25).filter(
        lambda pairs: len({label for _, label in pairs}) == 2
    )
)
def test_best_threshold_equals_brute_force(pairs):
    scores = torch.tensor([score for score, _ in pairs], dtype=torch.float64)
    labels = torch.tensor([label for _, label in pairs])
    best = 0.0
    for threshold in [-100.0, *(score - 0.5 for score in range(-3, 5)), 100.0]:
        accepted = scores >= threshold
        balanced = (accepted[labels].double().mean() + (~accepted)[~labels].double().mean()) / 2
        best = max(best, 100 * balanced.item())
    assert best_threshold_accuracy(scores, labels) == pytest.approx(best)


@settings(max_examples=60, deadline=None)
@given(top_k=st.integers(1, 4), data=st.data())
def test_reranking_equals_brute_force(top_k, data):
    encoded = data.draw(tied_splits(min_images=2))
    shape = (encoded.num_texts, encoded.num_images)
    value = st.sampled_from([-1.0, 0.0, 1.0])
    flat = data.draw(st.lists(value, min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]))
    table = torch.tensor(flat).view(shape)
    ranking = rank_split(encoded, top_k=top_k)
    text_scores, image_scores = score_candidates(table_runner(table), encoded, ranking)
    own = encoded.caption_image[:, None] == torch.arange(encoded.num_images)
    for itm, is_right, candidates, scores, ranks in (
        (table, own, ranking.text_candidates, text_scores, ranking.text_ranks),
        (table.T, own.T, ranking.image_candidates, image_scores, ranking.image_ranks),
    ):
        right = is_right.gather(1, candidates)
        new = reranked(ranks, scores, right)
        for query in range(len(itm)):
            kept = candidates[query].tolist()
            assert scores[query].tolist() == [itm[query, c].item() for c in kept]
            best = max((itm[query, c].item() for c in kept if is_right[query, c]), default=None)
            if best is None:
                assert new[query] == ranks[query] > len(kept)
            else:
                worse = sum(itm[query, c].item() >= best for c in kept if not is_right[query, c])
                assert new[query] == 1 + worse


def test_reranking_repairs_what_cosine_confuses():
    """Cosine puts the neighbour first for every caption; the head knows better, but only among the candidates."""
    size = 6
    images = torch.eye(size)
    texts = 0.5 * torch.eye(size) + 0.6 * torch.eye(size).roll(1, dims=1)
    encoded = split_of(images, texts, list(range(size)))
    runner = table_runner(torch.where(torch.eye(size) > 0, 2.0, -2.0))
    for top_k, expected in ((1, 0.0), (2, 100.0)):
        metrics = rerank_metrics(runner, encoded, rank_split(encoded, top_k=top_k))
        assert metrics["reranked_t2i_R@1"] == metrics["reranked_i2t_R@1"] == expected
    # Enough weight on the cosine brings its order back.
    metrics = rerank_metrics(runner, encoded, rank_split(encoded, top_k=2), weights=RerankWeights(cosine=1e3))
    assert metrics["reranked_t2i_R@1"] == metrics["reranked_i2t_R@1"] == 0.0


def test_a_pair_that_is_a_candidate_both_ways_is_scored_once():
    encoded = split_of(torch.eye(4), torch.eye(4), [0, 1, 2, 3])
    runner = table_runner(torch.zeros(4, 4))
    score_candidates(runner, encoded, rank_split(encoded, top_k=4))
    assert len(runner.pairs) == len(set(runner.pairs)) == 16


def test_hard_pairs_of_a_constructed_split():
    # Caption 3 belongs to image 0, and looks more like image 1.
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    texts = torch.tensor([[1.0, 0.1], [0.2, 1.0], [0.4, 0.9], [0.3, 0.8]])
    encoded = split_of(images, texts, [0, 1, 1, 0])
    pairs = hard_pairs(encoded, rank_split(encoded))
    rows = list(zip(pairs.texts.tolist(), pairs.images.tolist(), pairs.labels.tolist(), strict=True))
    true = [(0, 0, True), (1, 1, True), (2, 1, True), (3, 0, True)]
    of_captions = [(0, 1, False), (1, 0, False), (2, 0, False), (3, 1, False)]
    of_images = [(2, 0, False), (3, 1, False)]
    assert rows == true + of_captions + of_images


def test_itm_acc_is_balanced_and_independent_of_cosine():
    generator = torch.Generator().manual_seed(0)
    owner = [row // 5 for row in range(40)]
    encoded = split_of(torch.randn(8, 4, generator=generator), torch.randn(40, 4, generator=generator), owner)
    right = encoded.caption_image[:, None] == torch.arange(8)
    ranking = rank_split(encoded)
    perfect = matching_metrics(table_runner(torch.where(right, 1.0, -1.0)), encoded, ranking)
    always_yes = matching_metrics(table_runner(torch.ones(40, 8)), encoded, ranking)
    undecided = matching_metrics(table_runner(torch.zeros(40, 8)), encoded, ranking)
    broken = matching_metrics(table_runner(torch.full((40, 8), torch.nan)), encoded, ranking)
    assert perfect["itm_acc"] == 100.0
    assert always_yes["itm_acc"] == undecided["itm_acc"] == 50.0
    assert broken["itm_acc"] == 0.0 and math.isnan(broken["itm_acc_calibrated"])
    assert perfect["itm_acc_cosine"] == always_yes["itm_acc_cosine"] < 80.0


def test_calibration_tells_a_head_that_knows_from_one_that_does_not():
    """Hubs as in a real split: each caption is near its own image, and nearer to the image of its neighbour."""
    size = 40
    generator = torch.Generator().manual_seed(0)
    images = torch.eye(size)
    texts = 0.5 * images + 0.6 * images.roll(1, dims=1) + 0.05 * torch.randn(size, size, generator=generator)
    encoded = split_of(images, texts, list(range(size)))
    ranking = rank_split(encoded)
    right = torch.where(images > 0, 1.0, -1.0)
    noise = torch.randn(size, size, generator=generator)
    knows = matching_metrics(table_runner(right - 5), encoded, ranking)
    guesses = matching_metrics(table_runner(noise), encoded, ranking)
    assert knows["itm_acc"] == 50.0  # it orders the pairs without error, and its threshold is elsewhere
    assert knows["itm_acc_calibrated"] == 100.0
    assert guesses["itm_acc_calibrated"] == pytest.approx(guesses["itm_acc_cosine_calibrated"], abs=5)
    # Of pairs that cosine chose, a high cosine is evidence against one: it is right the wrong way round.
    assert guesses["itm_acc_cosine"] < 60 < 80 < guesses["itm_acc_cosine_calibrated"] < 100


def test_calibration_of_a_split_too_small_for_it_is_undefined():
    encoded = split_of(torch.eye(3), torch.eye(3), [0, 1, 2])
    metrics = matching_metrics(table_runner(torch.eye(3)), encoded, rank_split(encoded))
    assert math.isnan(metrics["itm_acc_calibrated"]) and math.isnan(metrics["itm_acc_cosine_calibrated"])
    assert metrics["itm_acc"] == 100.0


def test_matching_needs_two_images():
    encoded = split_of(torch.ones(1, 2), torch.ones(3, 2), [0, 0, 0])
    with pytest.raises(ValueError, match="at least two images"):
        hard_pairs(encoded, rank_split(encoded))
