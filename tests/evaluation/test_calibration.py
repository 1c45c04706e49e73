import math

import pytest
import torch

from bitgen.evaluation import calibration
from bitgen.evaluation.calibration import GROUPS, cross_fitted, fit_logistic


@pytest.mark.parametrize("true_share", [0.5, 0.1])
def test_the_fit_finds_the_known_weights_of_two_gaussians(true_share):
    """Of two normal distributions with one covariance the log-odds are linear, with weights in closed form."""
    generator = torch.Generator().manual_seed(0)
    wrong_mean = torch.tensor([0.5, -10.0], dtype=torch.float64)
    true_mean = torch.tensor([1.0, -4.0], dtype=torch.float64)
    root = torch.tensor([[1.0, 0.0], [2.0, 5.0]], dtype=torch.float64)
    labels = torch.rand(60_000, generator=generator) < true_share
    noise = torch.randn(60_000, 2, generator=generator, dtype=torch.float64) @ root.T
    weights, bias = fit_logistic(noise + torch.where(labels[:, None], true_mean, wrong_mean), labels)
    expected = torch.linalg.solve(root @ root.T, true_mean - wrong_mean)
    assert weights.tolist() == pytest.approx(expected.tolist(), abs=0.05)
    # Both kinds count the same however many there are: the odds are even half-way between the means.
    assert bias == pytest.approx(-(expected @ (true_mean + wrong_mean) / 2).item(), abs=0.08)


def test_separable_and_constant_scores_give_finite_weights():
    scores = torch.tensor([[0.0, 7.0], [1.0, 7.0], [2.0, 7.0], [3.0, 7.0]])
    weights, bias = fit_logistic(scores, torch.tensor([False, False, True, True]))
    assert math.isfinite(bias) and weights[1] == 0
    assert (scores.double() @ weights + bias > 0).tolist() == [False, False, True, True]


def test_no_pair_is_judged_by_what_was_fitted_on_its_images(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    rows = 300
    first, second = (torch.randint(0, 30, (rows,), generator=generator) for _ in range(2))
    labels = first == second
    labels[:40] = True
    second[:40] = first[:40]
    scores = torch.stack([first, second], dim=1).double()  # a pair's scores name its images
    fits = []

    def spy(fitted, fitted_labels):
        fits.append({int(image) % GROUPS for image in fitted.flatten()})
        return torch.ones(2, dtype=torch.float64), 1000.0 * len(fits)

    monkeypatch.setattr(calibration, "fit_logistic", spy)
    odds = cross_fitted(scores, labels, first, second)
    assert not odds.isnan().any()
    for row in range(rows):
        fitted_groups = fits[int(odds[row] // 1000) - 1]
        assert not fitted_groups & {int(first[row]) % GROUPS, int(second[row]) % GROUPS}
        assert len(fitted_groups) >= GROUPS - 2  # and on all the rest
    assert len(fits) == GROUPS * (GROUPS + 1) // 2


def test_a_rule_that_holds_for_each_group_alone_is_not_found():
    """Scores that tell the label by another rule in every group: what is fitted on the others must fail."""
    image = torch.arange(400)
    labels = (image // GROUPS) % 2 == 0
    per_group = torch.where(labels, 1.0, -1.0)[:, None] * (image[:, None] % GROUPS == torch.arange(GROUPS))
    own, _ = fit_logistic(per_group, labels)
    assert (own > 1).all()  # fitted on everything, all of them are seen through
    odds = cross_fitted(per_group, labels, image, image)
    assert (odds.abs() < 1e-6).all()


def test_scores_that_are_not_numbers_get_no_odds_and_spoil_no_others():
    image = torch.arange(80)
    labels = (image // GROUPS) % 2 == 0
    scores = torch.where(labels, 1.0, -1.0)[:, None].clone()
    scores[5] = math.nan
    odds = cross_fitted(scores, labels, image, image)
    assert odds.isnan().nonzero().flatten().tolist() == [5]
    right = (odds > 0) == labels
    right[5] = True
    assert right.all()
