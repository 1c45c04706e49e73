"""Rotary attention against rotation matrices written out, and what it promises about distances."""

from __future__ import annotations

import math

import pytest
import torch

from bitgen.model.rotary import rotate, rotations


def rotated_by_hand(heads: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """``[B, H, T, d]``, ``[B, T]``: each pair of channels times its 2 x 2 matrix, one at a time."""
    result = torch.empty_like(heads)
    width = heads.shape[-1]
    for row in range(positions.shape[0]):
        for step, position in enumerate(positions[row].tolist()):
            for pair in range(width // 2):
                angle = position * 10000 ** (-2 * pair / width)
                matrix = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
                channels = slice(2 * pair, 2 * pair + 2)
                turned = heads[row, :, step, channels] @ torch.tensor(matrix, dtype=heads.dtype).mT
                result[row, :, step, channels] = turned
    return result


def random_heads(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(2, 3, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-5), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_rotating_is_the_matrix_product(dtype, tolerance):
    positions = torch.tensor([[0, 1, 2, 0, 1], [7, 300, 2, 511, 40]])
    heads = random_heads(dtype)
    turned = rotate(heads, rotations(positions, 6))
    assert turned.dtype == dtype
    expected = rotated_by_hand(heads.double(), positions)
    torch.testing.assert_close(turned.double(), expected, atol=tolerance, rtol=tolerance)


def test_positions_of_all_rows_alike_may_be_given_once():
    heads, positions = random_heads(), torch.arange(3, 8)
    once, each = rotations(positions, 6), rotations(positions.expand(2, -1), 6)
    assert once.shape == (5, 3) and each.shape == (2, 1, 5, 3)
    assert torch.equal(rotate(heads, once), rotate(heads, each))


def test_products_depend_on_distances_alone():
    query, key = random_heads(), random_heads().flip(2)
    positions = torch.arange(5)
    products = [
        rotate(query, rotations(positions + shift, 6)) @ rotate(key, rotations(positions + shift, 6)).mT
        for shift in (0, 1, 500)
    ]
    torch.testing.assert_close(products[1], products[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(products[2], products[0], atol=5e-4, rtol=0)  # float32 angles near 500
    assert (products[0] - query @ key.mT).abs().max() > 0.1


def test_angles_stay_exact_under_autocast():
    positions = torch.arange(2000)
    exact = torch.outer(positions.double(), 10000 ** (-torch.arange(0, 32, 2).double() / 32))
    with torch.autocast("cpu", torch.bfloat16):
        turns = rotations(positions, 32)
    assert turns.dtype == torch.complex64
    assert (turns - torch.polar(torch.ones_like(exact), exact)).abs().max() < 1e-3


def test_gradients_turn_back():
    heads = random_heads().requires_grad_()
    turns = rotations(torch.arange(5), 6)
    rotate(heads, turns).backward(rotate(random_heads(), turns))
    torch.testing.assert_close(heads.grad, random_heads(), atol=1e-6, rtol=0)
