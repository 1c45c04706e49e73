"""The Newton-Schulz inverse against the singular value decomposition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitgen.model.episodic_memory import pseudo_inverse


def with_spectrum(rows: int, columns: int, singular_values: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """A random ``[rows, columns]`` matrix with the given non-zero singular values."""
    generator = torch.Generator().manual_seed(seed)
    rank = len(singular_values)
    left = torch.linalg.qr(torch.randn(rows, rank, generator=generator, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(columns, rank, generator=generator, dtype=torch.float64)).Q
    return left * singular_values.double() @ right.mT


@given(
    rows=st.integers(1, 10),
    columns=st.integers(1, 10),
    rank=st.integers(1, 10),
    seed=st.integers(0, 10_000),
    magnitude=st.sampled_from([-4, -1, 0, 1, 4]),
)
def test_equals_the_exact_inverse_for_any_shape_rank_and_scale(rows, columns, rank, seed, magnitude):
    spectrum = torch.linspace(0.1, 1, min(rank, rows, columns), dtype=torch.float64)
    matrix = 10.0**magnitude * with_spectrum(rows, columns, spectrum, seed)
    exact = torch.linalg.pinv(matrix, rtol=1e-8)
    error = torch.linalg.matrix_norm(pseudo_inverse(matrix, 60, 1e-10) - exact) / torch.linalg.matrix_norm(exact)
    assert error < 1e-7


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (12, 12), (1, 9), (9, 1)])
def test_fulfils_the_four_moore_penrose_conditions(shape):
    matrix = with_spectrum(*shape, torch.linspace(0.2, 2, min(shape)))
    inverse = pseudo_inverse(matrix, 60, 1e-12)
    product, reverse = matrix @ inverse, inverse @ matrix
    torch.testing.assert_close(product @ matrix, matrix)
    torch.testing.assert_close(reverse @ inverse, inverse)
    torch.testing.assert_close(product, product.mT)
    torch.testing.assert_close(reverse, reverse.mT)


@pytest.mark.parametrize("condition", [1e1, 1e2, 1e3])
def test_float32_error_stays_within_what_the_tolerance_allows(condition):
    """A direction of size s may miss by 1 - x with (1 - x) s <= tolerance |A|, that is (1 - x) / s in the inverse."""
    tolerance = 1e-5
    spectrum = torch.logspace(0, -torch.log10(torch.tensor(condition)), 32, dtype=torch.float64)
    matrix = with_spectrum(32, 128, spectrum)
    exact = torch.linalg.pinv(matrix)
    error = torch.linalg.matrix_norm(pseudo_inverse(matrix.float(), 30, tolerance).double() - exact)
    allowed = tolerance * spectrum.norm() * (1 / spectrum.square()).norm()
    assert error / torch.linalg.matrix_norm(exact) < max(1.5 * allowed / torch.linalg.matrix_norm(exact), 1e-4)


@pytest.mark.parametrize("rank", [1, 8, 16, 31])
def test_rank_deficient_inverse_stays_bounded_in_float32(rank):
    """Without the stop, rounding in A's null space doubles at every step; with it more steps change nothing."""
    matrix = with_spectrum(32, 128, torch.linspace(1, 10, rank)).float()
    exact = torch.linalg.pinv(matrix, rtol=1e-4)
    stopped = pseudo_inverse(matrix, 200, 1e-5)
    assert torch.linalg.matrix_norm(stopped - exact) / torch.linalg.matrix_norm(exact) < 1e-3
    torch.testing.assert_close(stopped, pseudo_inverse(matrix, 30, 1e-5), rtol=0, atol=0)
    unstopped = pseudo_inverse(matrix, 70, 0.0)
    assert not torch.linalg.matrix_norm(unstopped - exact) < 1e3 * torch.linalg.matrix_norm(exact)


@pytest.mark.parametrize("matrix", [torch.zeros(3, 5), torch.full((3, 5), 1e-20), torch.full((4, 4), 1e15)])
def test_extreme_matrices_give_finite_inverses(matrix):
    inverse = pseudo_inverse(matrix)
    assert torch.isfinite(inverse).all()
    if matrix.any():
        exact = matrix.double()  # 1e-20 squared is a denormal number: three digits are left
        torch.testing.assert_close(exact @ inverse.double() @ exact, exact, rtol=1e-3, atol=0)


def test_gradient_is_that_of_the_exact_inverse():
    matrix = with_spectrum(5, 9, torch.linspace(0.5, 2, 5)).requires_grad_()
    direction = torch.randn(9, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (iterated,) = torch.autograd.grad((pseudo_inverse(matrix, 60, 1e-12) * direction).sum(), matrix)
    (exact,) = torch.autograd.grad((torch.linalg.pinv(matrix) * direction).sum(), matrix)
    torch.testing.assert_close(iterated, exact, rtol=1e-6, atol=1e-8)
