"""The closed-form memory, against brute force and against memories that never held what was forgotten."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from bitgen.memory.address_space import IMAGE, TEXT, AddressSpace
from bitgen.memory.associative import AssociativeMemory
from support.memories import pairs

HALF = 16


def memory_of(pairs: torch.Tensor, slots: int, cue_noise: float = 0.1, **settings) -> AssociativeMemory:
    space = AddressSpace(pairs.shape[1] // 2, slots, **settings)
    return AssociativeMemory.empty(space, cue_noise).written(pairs)


def relative(read: torch.Tensor, stored: torch.Tensor) -> torch.Tensor:
    return (read - stored).norm(dim=1) / stored.norm(dim=1)


def assert_same(one: AssociativeMemory, other: AssociativeMemory, tolerance: float = 1e-6) -> None:
    """The same posterior, to a part of its size."""
    for left, right in zip(one.precision.solve(), other.precision.solve(), strict=True):
        assert (left - right).abs().max() <= tolerance * right.abs().max().clamp_min(1e-30)


# ---------------------------------------------------------------- addresses


@pytest.mark.parametrize("slots, widen", [(5, False), (32, False), (70, False), (9, True), (40, True)])
def test_addresses_come_from_the_priors_pseudo_inverse(slots, widen) -> None:
    space = AddressSpace(HALF, slots, widen)
    codes = space.code(pairs(6))
    torch.testing.assert_close(space.address(codes), codes @ torch.linalg.pinv(space.gpm.prior_mean))
    # The class of the model's layer gets there by its iteration.
    torch.testing.assert_close(space.address(codes), space.gpm.address(codes), atol=1e-4, rtol=1e-4)


def test_a_prior_made_in_blocks_is_orthonormal_too() -> None:
    keys = AddressSpace(HALF, 600, widen=True).gpm.prior_mean
    torch.testing.assert_close(keys @ keys.mT, torch.eye(600, dtype=torch.float64))
    assert (keys != 0).sum(dim=1).unique().tolist() == [616]


def test_building_one_draws_no_random_number_of_the_program() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    AddressSpace(HALF, 8, widen=True)
    assert torch.equal(torch.get_rng_state(), before)


def test_random_features_make_a_gaussian_kernel() -> None:
    halves = pairs(5)[:, :HALF]
    waves = AddressSpace(HALF, 1024, widen=True).cue(halves, IMAGE)[:, HALF:]
    kernel = torch.exp(-2.0 * torch.cdist(halves, halves).square())
    torch.testing.assert_close(waves @ waves.mT, kernel, atol=0.15, rtol=0)


# ---------------------------------------------------------------- capacity


@pytest.mark.parametrize("slots, widen", [(8, False), (16, False), (24, False), (100, False), (8, True), (64, True)])
@pytest.mark.parametrize("part", [IMAGE, TEXT])
@pytest.mark.parametrize("seed", range(3))
def test_up_to_capacity_exact_cues_read_exactly_and_others_read_nothing_true(slots, widen, part, seed) -> None:
    space_size = min(slots, HALF + slots if widen else HALF)
    written, unwritten = pairs(space_size, seed=seed), pairs(40, seed=seed + 100)
    memory = memory_of(written, slots, widen=widen, seed=seed)
    assert memory.space.capacity == space_size
    reading = memory.read(memory.halves(part), part)
    stored = memory.halves(1 - part)
    assert relative(reading.halves, stored).max() <= 1e-3 and reading.is_known.all()
    ranked = F.normalize(reading.halves, dim=1) @ stored.mT
    assert ranked.argmax(dim=1).tolist() == list(range(space_size))
    cue, missing = (
        (unwritten[:, :HALF], unwritten[:, HALF:]) if part == IMAGE else (unwritten[:, HALF:], unwritten[:, :HALF])
    )
    reading = memory.read(cue, part)
    assert relative(reading.halves, missing).min() >= 0.5 and not reading.is_known.any()


def test_the_real_width_at_every_setting_of_the_issue() -> None:
    for slots, widen in ((32, False), (128, False), (512, False), (512, True)):
        capacity = slots if widen else min(slots, 128)
        codes = pairs(capacity + 64, half=128)
        memory = memory_of(codes[:capacity], slots, widen=widen)
        for part in (IMAGE, TEXT):
            assert relative(memory.read(memory.halves(part), part).halves, memory.halves(1 - part)).max() <= 1e-3
            other = codes[capacity:].unflatten(1, (2, 128))
            assert relative(memory.read(other[:, part], part).halves, other[:, 1 - part]).min() >= 0.5


def test_sparse_codes_do_not_share_addresses() -> None:
    codes = torch.zeros(12, 2 * HALF, dtype=torch.float64)
    codes[range(12), range(12)] = codes[range(12), range(2 * HALF - 12, 2 * HALF)] = 1
    for seed in range(20):
        memory = memory_of(codes, 12, seed=seed)
        assert relative(memory.read(codes[:, :HALF], IMAGE).halves, codes[:, HALF:]).max() <= 1e-3


@pytest.mark.parametrize("sigma", [1e-4, 1e-2, 1.0])
def test_sigma_cancels_from_the_exact_read(sigma) -> None:
    codes = pairs(12)
    memory = memory_of(codes, 16, sigma=sigma)
    assert relative(memory.read(codes[:, :HALF], IMAGE).halves, codes[:, HALF:]).max() <= 1e-6


@pytest.mark.parametrize("noise", [1e-3, 0.1, 3.0])
@pytest.mark.parametrize("twice", [False, True])
def test_other_cues_are_read_by_ridge_regression_on_the_episodes(noise, twice) -> None:
    """Brute force from the codes themselves: ``x X^T (X X^T + noise)^-1 Y``."""
    codes, cue = pairs(9), pairs(4, seed=5)[:, :HALF]
    if twice:
        codes[4, :HALF] = codes[7, :HALF]
    images = codes[:, :HALF]
    shares = cue @ images.mT @ torch.linalg.inv(images @ images.mT + noise * torch.eye(9, dtype=torch.float64))
    reading = memory_of(codes, 12, cue_noise=noise).read(cue, IMAGE)
    assert not reading.is_known.any()
    torch.testing.assert_close(reading.halves, shares @ codes[:, HALF:])


@pytest.mark.parametrize("widen", [False, True])
def test_an_image_written_twice_reads_both_and_leaves_the_others_exact(widen) -> None:
    codes = pairs(HALF)
    codes[3, :HALF] = codes[7, :HALF]
    read = memory_of(codes, HALF, widen=widen).read(codes[:, :HALF], IMAGE).halves
    others = [row for row in range(HALF) if row not in (3, 7)]
    assert relative(read[others], codes[others, HALF:]).max() <= 1e-3
    torch.testing.assert_close(read[[3, 7]], codes[[3, 7], HALF:].mean(dim=0).expand(2, -1))


def test_rounding_of_the_features_does_not_matter() -> None:
    codes = pairs(HALF)
    codes[3, :HALF] = codes[7, :HALF] + 1e-7 * pairs(1, seed=5)[0, :HALF]  # encoded in another batch
    cues = codes[:, :HALF] + 1e-7 * pairs(HALF, seed=6)[:, :HALF]
    reading = memory_of(codes, HALF).read(cues, IMAGE)
    others = [row for row in range(HALF) if row not in (3, 7)]
    assert relative(reading.halves[others], codes[others, HALF:]).max() <= 1e-3 and reading.is_known.all()


def test_more_than_its_slots_are_read_from_the_posterior_mean() -> None:
    """What any cue reads is an address times the mean: it lies in the span of the mean's rows."""
    memory = memory_of(pairs(30), 8)
    rows = memory.precision.solve().mean[:, HALF:]
    read = memory.read(pairs(5, seed=2)[:, :HALF], IMAGE).halves
    torch.testing.assert_close(read @ torch.linalg.pinv(rows) @ rows, read)


def test_beyond_its_slots_a_memory_still_reads_what_is_likely() -> None:
    """More episodes than slots and than cue columns: nothing is exact, half are still recalled first, none is known."""
    codes = pairs(24)
    memory = memory_of(codes, HALF)
    reading = memory.read(codes[:, :HALF], IMAGE)
    found = (F.normalize(reading.halves, dim=1) @ codes[:, HALF:].mT).argmax(dim=1) == torch.arange(24)
    assert found.double().mean() >= 0.5 and not reading.is_known.any()


def test_a_nearly_exact_cue_of_a_full_memory_is_not_blown_up() -> None:
    codes = pairs(HALF)
    memory = memory_of(codes, HALF)
    cues = codes[:, :HALF] + 0.2 * pairs(HALF, seed=8)[:, :HALF]
    assert memory.read(cues, IMAGE).halves.norm(dim=1).max() < 1.5
    assert (cues @ torch.linalg.pinv(codes[:, :HALF]) @ codes[:, HALF:]).norm(dim=1).max() > 1.5


# ---------------------------------------------------------------- forgetting


@given(
    st.lists(st.tuples(st.sampled_from(["write", "forget", "edit"]), st.integers(0, 1000)), min_size=1, max_size=25),
    st.sampled_from([1e-4, 1e-2, 0.1, 1.0]),
    st.sampled_from([(4, False), (20, False), (40, False), (10, True)]),
)
def test_any_order_of_writes_and_forgets_equals_never_having_held_it(operations, sigma, shape) -> None:
    supply = pairs(60)
    space = AddressSpace(HALF, shape[0], shape[1], sigma)
    memory, held, used = AssociativeMemory.empty(space), [], 0
    assert len(memory.weights) == 0  # its sums are asked for: each change adds to them, or takes away
    for name, number in operations:
        if name == "write" or not held:
            rows = list(range(used, used + 1 + number % 3))[: 60 - used]
            if rows:
                memory, held, used = memory.written(supply[rows]), held + rows, used + len(rows)
        elif name == "forget":
            row = number % len(held)
            memory = memory.without(row)
            del held[row]
        elif used < 60:
            row = number % len(held)
            memory, held[row], used = memory.replaced(row, supply[used]), used, used + 1
    fresh = AssociativeMemory.empty(space)
    if held:
        fresh = fresh.written(supply[sorted(held)])
    assert_same(memory, fresh)
    assert torch.equal(memory.pairs, supply[held])
    if held:
        cue = pairs(3, seed=9)[:, :HALF]
        torch.testing.assert_close(memory.read(cue, IMAGE).halves, fresh.read(cue, IMAGE).halves, atol=1e-5, rtol=1e-5)


def test_one_by_one_or_together_gives_the_posterior_of_the_kalman_form() -> None:
    codes = pairs(7)
    together, space = memory_of(codes, 10), AddressSpace(HALF, 10)
    one_by_one = AssociativeMemory.empty(space)
    for code in codes:
        one_by_one = one_by_one.written(code[None])
    assert_same(one_by_one, together)
    mean, covariance = torch.zeros(10, 2 * HALF, dtype=torch.float64), torch.eye(10, dtype=torch.float64)
    for weight, code in zip(together.weights[:, None], codes[:, None], strict=True):
        projected = weight @ covariance
        gain = projected / (projected @ weight.mT + space.sigma**2)
        mean, covariance = mean + gain.mT @ (code - weight @ mean), covariance - gain.mT @ projected
    torch.testing.assert_close(together.precision.solve().mean, mean, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(together.precision.solve().covariance, covariance, atol=1e-6, rtol=1e-6)


def test_the_last_forgotten_leaves_the_prior_to_the_bit() -> None:
    memory = memory_of(pairs(1), 10).without(0)
    assert torch.equal(memory.precision.precision, memory.space.nothing().precision)
    assert not memory.precision.information.any() and len(memory) == 0


def test_the_old_memory_stays_as_it_was() -> None:
    memory, cue = memory_of(pairs(5), 10), pairs(2, seed=4)[:, :HALF]
    before = memory.read(cue, IMAGE).halves
    memory.replaced(2, pairs(1, seed=6)[0]), memory.without(1), memory.written(pairs(3, seed=7))
    assert torch.equal(memory_of(pairs(5), 10).read(cue, IMAGE).halves, before)
    assert torch.equal(memory.read(cue, IMAGE).halves, before)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_codes_that_are_not_finite_are_refused(bad) -> None:
    memory, codes = memory_of(pairs(3), 8), pairs(2, seed=1)
    codes[1, 4] = bad
    for attempt in (lambda: memory.written(codes), lambda: memory.replaced(0, codes[1])):
        with pytest.raises(ValueError, match="NaN or infinity"):
            attempt()
    with pytest.raises(ValueError, match="without NaN"):
        memory.read(codes[:, :HALF], IMAGE)


def test_codes_and_cues_of_another_width_are_refused() -> None:
    memory = memory_of(pairs(3), 8)
    with pytest.raises(ValueError, match=r"\[2, 16\]; this memory takes \[episodes, 32\]"):
        memory.written(pairs(2, half=8))
    with pytest.raises(ValueError, match=r"\[cues, 16\]"):
        memory.read(pairs(2, half=6), IMAGE)


def test_an_empty_memory_cannot_be_read() -> None:
    with pytest.raises(ValueError, match="empty"):
        AssociativeMemory.empty(AddressSpace(HALF, 4)).read(pairs(1)[:, :HALF], IMAGE)


@pytest.mark.parametrize(
    "settings", [{"slots": 0}, {"slots": 4097}, {"sigma": 0.0}, {"sigma": 9e-5}, {"sigma": math.nan}]
)
def test_settings_out_of_range_are_refused(settings) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        AddressSpace(HALF, **settings)
    with pytest.raises(ValueError, match="cue_noise"):
        AssociativeMemory.empty(AddressSpace(HALF, 4), cue_noise=0.0)
