"""The layer around the memory: codes, gated reading, read weights' KL and utilisation, the running state."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence

from bitgen.model.episodic_memory import MemoryLayer, MemoryReader, readback_error, slot_utilization
from support.models import tiny_config


def layer(**changes) -> MemoryLayer:
    torch.manual_seed(0)
    memory = MemoryLayer(tiny_config(**changes)).eval()
    with torch.no_grad():
        memory.gate.copy_(torch.linspace(0.5, 1.5, len(memory.gate)))
    return memory


# --- slot utilisation --------------------------------------------------------------------------------------------


@given(slots=st.integers(1, 12), rows=st.integers(1, 6), seed=st.integers(0, 999), power=st.integers(0, 6))
def test_utilisation_lies_between_one_slot_and_all(slots, rows, seed, power):
    weights = torch.randn(rows, slots, generator=torch.Generator().manual_seed(seed)) ** power
    utilization = slot_utilization(weights).item()
    assert 1 / slots - 1e-5 <= utilization <= 1 + 1e-5


@pytest.mark.parametrize("used", [1, 2, 5, 8])
def test_utilisation_of_equally_used_slots_is_their_share(used):
    weights = torch.zeros(2, 3, 8)
    weights[..., :used] = torch.tensor([1.0, -1.0]).repeat(4)[:used]  # signs do not matter
    assert slot_utilization(weights).item() == pytest.approx(used / 8, rel=1e-5)


def test_utilisation_averages_before_the_entropy_and_leaves_masked_positions_out():
    weights = torch.tensor([[[2.0, 0.0], [0.0, 1.0], [0.0, 1e3]]])
    mask = torch.tensor([[1, 1, 0]])
    shares = (0.8, 0.2)
    expected = math.exp(-sum(p * math.log(p) for p in shares)) / 2
    assert slot_utilization(weights, mask).item() == pytest.approx(expected, rel=1e-5)


def test_utilisation_of_unused_weights_is_finite():
    assert math.isfinite(slot_utilization(torch.zeros(2, 4)).item())


# --- reading -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory_dim", [16, 8])
def test_eval_read_out_is_the_projection_onto_the_state(memory_dim):
    """z M+ M is the orthogonal projection of the code onto the rows of the state."""
    memory = layer(memory_dim=memory_dim)
    hidden = torch.randn(2, 5, 16)
    with torch.no_grad():
        output, weights = memory(hidden)
        code = memory.to_code(hidden)
        code = (code - code.mean(-1, keepdim=True)) / (code.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        rows = torch.linalg.qr(memory.state.mT).Q
        expected = hidden + memory.gate * memory.from_code(code @ rows @ rows.mT)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(weights @ memory.state, code @ rows @ rows.mT, rtol=0, atol=1e-4)


def test_eval_reading_is_repeatable_and_training_reads_a_sample():
    memory = layer()
    hidden = torch.randn(2, 5, 16)
    quiet = memory(hidden)[0]
    assert torch.equal(quiet, memory(hidden)[0])
    memory.train()
    torch.manual_seed(1)
    first, weights = memory(hidden)
    second, same_weights = memory(hidden)
    assert not torch.equal(first, second)
    torch.testing.assert_close(weights, same_weights)  # the reported ones are the means


def test_read_noise_has_the_learned_variance():
    memory = layer().train()
    with torch.no_grad():
        memory.read_logvar.copy_(torch.tensor([-9.0, -2.0, 0.0, 5.0]))  # the outer two beyond the clamp
        memory.gate.fill_(1)
    reader = MemoryReader(torch.eye(4, 16), torch.eye(16, 4))
    hidden = torch.zeros(1, 40_000, 16)
    torch.manual_seed(0)
    noise = memory(hidden, reader)[0][0, :, :4]
    expected = torch.tensor([-6.0, -2.0, 0.0, 2.0]).exp()
    torch.testing.assert_close(noise.var(dim=0), expected, rtol=0.05, atol=0)


def test_a_closed_gate_adds_nothing_but_still_learns():
    memory = MemoryLayer(tiny_config()).train()
    hidden = torch.randn(2, 5, 16)
    output, _ = memory(hidden)
    assert torch.equal(output, hidden)
    output.square().sum().backward()
    assert memory.gate.grad.abs().min() > 0


def test_reader_is_a_snapshot_without_gradient():
    memory = layer()
    reader = memory.reader()
    before = reader.mean.clone()
    memory.consolidate_(torch.ones(4, 16), 0.5)
    assert torch.equal(reader.mean, before)
    assert not reader.mean.requires_grad and not reader.inverse.requires_grad
    torch.testing.assert_close(reader.inverse, torch.linalg.pinv(before), rtol=1e-3, atol=1e-5)
    other = torch.randn(4, 16)
    assert torch.equal(memory.reader(other).mean, other)


def test_state_moves_by_alpha_and_is_checkpointed():
    memory = layer()
    start, target = memory.state.clone(), torch.randn(4, 16)
    memory.consolidate_(target, 0.2)
    torch.testing.assert_close(memory.state, 0.8 * start + 0.2 * target)
    assert "state" in memory.state_dict()
    assert not memory.state.requires_grad
    torch.testing.assert_close(start, memory.gpm.prior_mean.detach())


def test_read_kl_is_that_of_torch_distributions_over_real_positions():
    memory = layer()
    with torch.no_grad():
        memory.read_logvar.copy_(torch.tensor([-7.0, -1.0, 0.5, 3.0]))
    weights = torch.randn(2, 3, 4)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    deviation = (0.5 * memory.read_logvar.clamp(-6, 2)).exp()
    per_slot = kl_divergence(Normal(weights, deviation.expand_as(weights)), Normal(0.0, 1.0))
    torch.testing.assert_close(memory.read_kl(weights, mask), per_slot[mask.bool()].mean())


def test_readback_error_is_relative():
    codes = torch.tensor([[3.0, 4.0]])
    half = MemoryReader(torch.eye(2), 0.5 * torch.eye(2))
    assert readback_error(codes, half).item() == pytest.approx(0.5)


# --- precision ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory_dim", [16, 8])
def test_reading_stays_in_float32_under_autocast(memory_dim):
    torch.manual_seed(0)
    memory = MemoryLayer(tiny_config(memory_dim=memory_dim)).eval()
    with torch.no_grad():
        memory.gate.fill_(1)
    hidden = torch.randn(2, 5, 16)
    plain, plain_weights = memory(hidden)
    with torch.autocast("cpu", torch.bfloat16):
        cast, weights = memory(hidden)
        reader = memory.reader()
    assert cast.dtype == weights.dtype == reader.inverse.dtype == torch.float32
    torch.testing.assert_close(cast, plain)
    torch.testing.assert_close(weights, plain_weights)


@pytest.mark.parametrize("memory_dim", [16, 8])
def test_codes_to_write_stay_in_float32_under_autocast(memory_dim):
    torch.manual_seed(0)
    memory = MemoryLayer(tiny_config(memory_dim=memory_dim))
    hidden = torch.randn(3, 16)
    with torch.autocast("cpu", torch.bfloat16):
        cast = memory.code(hidden)
    assert cast.dtype == torch.float32
    torch.testing.assert_close(cast, memory.code(hidden))


def test_codes_have_mean_zero_and_variance_one():
    codes = MemoryLayer(tiny_config()).code(5 + 3 * torch.randn(7, 16))
    torch.testing.assert_close(codes.mean(-1), torch.zeros(7), rtol=0, atol=1e-5)
    torch.testing.assert_close(codes.var(-1, unbiased=False), torch.ones(7), rtol=1e-3, atol=0)
