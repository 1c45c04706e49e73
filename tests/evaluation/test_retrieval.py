import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitgen.evaluation.retrieval import bootstrap_ci95, rank_split, recall_metrics, retrieval_metrics
from support.splits import split_of, tied_splits


def brute_force_ranks(encoded):
    """Ranks by a plain loop over Python numbers: the definition, written as slowly as possible."""
    images = encoded.image_features.double().numpy()
    texts = encoded.text_features.double().numpy()
    owner = encoded.caption_image.tolist()
    text_ranks, image_ranks = [], []
    for caption, text in enumerate(texts):
        target = float(text @ images[owner[caption]])
        wrong = [float(text @ image) for row, image in enumerate(images) if row != owner[caption]]
        text_ranks.append(1 + sum(score >= target for score in wrong))
    for row, image in enumerate(images):
        scores = [float(text @ image) for text in texts]
        best = max(score for caption, score in enumerate(scores) if owner[caption] == row)
        image_ranks.append(1 + sum(score >= best for caption, score in enumerate(scores) if owner[caption] != row))
    return text_ranks, image_ranks


@settings(max_examples=150, deadline=None)
@given(data=st.data(), chunk=st.integers(1, 9))
def test_ranks_equal_brute_force_with_ties_and_several_captions(data, chunk):
    encoded = data.draw(tied_splits())
    ranking = rank_split(encoded, chunk=chunk)
    text_ranks, image_ranks = brute_force_ranks(encoded)
    assert ranking.text_ranks.tolist() == text_ranks
    assert ranking.image_ranks.tolist() == image_ranks


@settings(max_examples=100, deadline=None)
@given(data=st.data(), chunk=st.integers(1, 9), top_k=st.integers(1, 6))
def test_candidates_and_hardest_partners_equal_brute_force(data, chunk, top_k):
    encoded = data.draw(tied_splits(min_images=2))
    ranking = rank_split(encoded, top_k=top_k, chunk=chunk)
    owner = encoded.caption_image
    scores = encoded.text_features.double() @ encoded.image_features.double().T
    right = owner[:, None] == torch.arange(encoded.num_images)
    for table, is_right, candidates, hardest in (
        (scores, right, ranking.text_candidates, ranking.hardest_image),
        (scores.T, right.T, ranking.image_candidates, ranking.hardest_text),
    ):
        for query in range(len(table)):
            kept = candidates[query].tolist()
            assert len(set(kept)) == len(kept) == min(top_k, table.shape[1])
            # Best first, and among equal scores the wrong ones come first.
            order = [(-table[query, c].item(), bool(is_right[query, c])) for c in kept]
            everything = sorted((-s.item(), bool(r)) for s, r in zip(table[query], is_right[query], strict=True))
            assert order == everything[: len(order)]
            wrong = table[query][~is_right[query]]
            assert not is_right[query, hardest[query]]
            assert table[query, hardest[query]] == wrong.max()


def test_results_do_not_depend_on_the_chunk_for_real_numbers():
    generator = torch.Generator().manual_seed(0)
    images = torch.nn.functional.normalize(torch.randn(67, 24, generator=generator), dim=-1)
    images[40:50] = images[0:10]  # equal images far apart, in other blocks: exact ties on irrational-looking numbers
    texts = torch.nn.functional.normalize(torch.randn(201, 24, generator=generator), dim=-1)
    encoded = split_of(images, texts, [row % 67 for row in range(201)])
    one_block = rank_split(encoded, top_k=5, chunk=1000)
    for chunk in (7, 64):
        blocks = rank_split(encoded, top_k=5, chunk=chunk)
        assert torch.equal(blocks.text_ranks, one_block.text_ranks)
        assert torch.equal(blocks.image_ranks, one_block.image_ranks)
    # A caption of a doubled image cannot be ranked first: its twin ties, whatever the order of summation.
    twins = (encoded.caption_image < 10) | ((encoded.caption_image >= 40) & (encoded.caption_image < 50))
    assert (one_block.text_ranks[twins] > 1).all()


def test_all_equal_features_rank_last():
    encoded = split_of(torch.ones(4, 2), torch.ones(8, 2), [0, 0, 1, 1, 2, 2, 3, 3])
    metrics = retrieval_metrics(encoded)
    assert metrics["t2i_R@1"] == metrics["i2t_R@1"] == 0.0
    assert metrics["t2i_median_rank"] == 4
    assert metrics["i2t_median_rank"] == 7  # six wrong captions before the best right one


def test_nan_scores_count_against_the_model():
    images, texts = torch.eye(3), torch.eye(3)
    images[1] = math.nan
    ranking = rank_split(split_of(images, texts, [0, 1, 2]), top_k=2)
    assert ranking.text_ranks.tolist() == [2, 3, 2]
    assert ranking.image_ranks[1] == 3
    assert (ranking.text_candidates >= 0).all() and (ranking.hardest_image >= 0).all()


def test_percentages_and_median():
    metrics = recall_metrics(torch.tensor([1, 3, 6, 11]), torch.arange(4), "t2i")
    assert metrics == {"t2i_R@1": 25.0, "t2i_R@5": 50.0, "t2i_R@10": 75.0, "t2i_median_rank": 4.5}


def test_bootstrap_resamples_images_not_captions():
    """Five copies of each hit carry no more information than one: the interval must not shrink by sqrt(5)."""
    generator = torch.Generator().manual_seed(0)
    hits = 100.0 * (torch.rand(300, generator=generator) < 0.3)
    alone = bootstrap_ci95(hits, torch.arange(300))
    copied = bootstrap_ci95(hits.repeat_interleave(5), torch.arange(300).repeat_interleave(5))
    as_if_independent = bootstrap_ci95(hits.repeat_interleave(5), torch.arange(1500))
    assert alone == pytest.approx(copied)
    assert as_if_independent[1] - as_if_independent[0] < 0.6 * (alone[1] - alone[0])
    assert alone[0] < hits.mean() < alone[1]
    # The normal approximation of the standard error, within the bootstrap's own noise.
    half = 1.96 * hits.std().item() / math.sqrt(300)
    assert (alone[1] - alone[0]) / 2 == pytest.approx(half, rel=0.15)


def test_bootstrap_of_uneven_clusters_matches_a_plain_loop():
    values, clusters = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 0.0]), torch.tensor([2, 0, 2, 1, 0, 2])
    groups = [values[clusters == row].numpy() for row in range(3)]
    for statistic, reduce in (("mean", np.mean), ("median", np.median)):
        rng = np.random.default_rng(1)
        drawn = [reduce(np.concatenate([groups[i] for i in rng.integers(0, 3, 3)])) for _ in range(4000)]
        expected = np.percentile(drawn, [2.5, 97.5])
        assert bootstrap_ci95(values, clusters, statistic, 4000) == pytest.approx(expected, abs=0.02)


def test_bootstrap_needs_two_images():
    assert all(math.isnan(bound) for bound in bootstrap_ci95(torch.ones(5), torch.zeros(5, dtype=torch.int64)))


def test_every_recall_gets_its_interval():
    encoded = split_of(torch.eye(6), torch.eye(6), list(range(6)))
    metrics = retrieval_metrics(encoded, bootstrap=50)
    assert metrics["t2i_R@1"] == 100.0 and metrics["t2i_R@1_ci95"] == [100.0, 100.0]
    names = [name for name in metrics if not name.endswith("_ci95")]
    assert len(names) == 8 and all(f"{name}_ci95" in metrics for name in names)


def test_an_image_without_captions_is_named():
    with pytest.raises(ValueError, match="image 1 of the split has no caption"):
        split_of(torch.eye(3), torch.eye(3), [0, 2, 2])


def test_nonsense_sizes_are_refused():
    with pytest.raises(ValueError, match="chunk"):
        rank_split(split_of(torch.eye(2), torch.eye(2), [0, 1]), chunk=0)
