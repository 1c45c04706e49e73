"""Singular values, effective rank and energy, against closed forms and full decompositions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitgen.show.spectra import spectra_picture
from bitgen.vlm.spectra import effective_rank, energy_kept, gaussian_values, product_singular_values, singular_values


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 12), st.integers(0, 1000))
def test_of_a_product_they_are_those_of_the_whole(out: int, into: int, rank: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    up, down = torch.randn(out, rank, generator=generator), torch.randn(rank, into, generator=generator)
    found = product_singular_values(up, down, 0.5)
    whole = torch.linalg.svdvals(0.5 * up.double() @ down.double()).float()
    count = min(len(found), len(whole))
    torch.testing.assert_close(found[:count], whole[:count], rtol=1e-5, atol=1e-5)
    assert all(value < 1e-5 for rest in (found[count:], whole[count:]) for value in rest)


def test_effective_rank_is_the_entropy_of_the_values() -> None:
    assert effective_rank(torch.ones(7)) == pytest.approx(7)
    assert effective_rank(torch.tensor([3.0, 0.0, 0.0])) == pytest.approx(1)
    shares = (0.5, 0.25, 0.25)
    expected = math.exp(-sum(share * math.log(share) for share in shares))
    assert effective_rank(torch.tensor(shares) * 11) == pytest.approx(expected)
    assert effective_rank(torch.zeros(4)) == 0.0


def test_energy_is_what_the_best_approximation_keeps() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(20, 12, dtype=torch.float64)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    for rank in (1, 3, 12, 20):
        best = left[:, :rank] * values[:rank] @ right[:rank]
        lost = ((matrix - best) ** 2).sum() / (matrix**2).sum()
        assert energy_kept(singular_values(matrix), rank) == pytest.approx(1 - lost.item(), abs=1e-6)
    assert energy_kept(torch.zeros(3), 1) == 1.0


def test_gaussian_values_lie_where_theory_puts_them() -> None:
    """Between sqrt(n) - sqrt(m) and sqrt(n) + sqrt(m) (Marchenko and Pastur, 1967), and the same at every call."""
    values = gaussian_values(400, 100)
    assert 0.95 * 10 < values[-1] and values[0] < 1.05 * 30
    assert torch.equal(values, gaussian_values(400, 100))


def test_the_picture_shows_a_line_for_each_name() -> None:
    groups = {"q_proj": [gaussian_values(40, 30), gaussian_values(30, 30)], "$v_1$ proj": [torch.tensor([1.0, 0.0])]}
    picture = spectra_picture(groups, "title with $ and _", {"q_proj": gaussian_values(40, 30)})
    assert picture.dtype == torch.uint8 and picture.shape[0] == 3
    alone = spectra_picture({"q_proj": groups["q_proj"]}, "title with $ and _")
    assert picture.shape == alone.shape and (picture != alone).float().mean() > 0.002
