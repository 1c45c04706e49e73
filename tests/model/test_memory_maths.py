"""The memory's algebra against brute-force Bayesian regression, torch.distributions and finite differences."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import MultivariateNormal, kl_divergence
from torch.nn import functional as F

from bitgen.model.episodic_memory import (
    GenerativePseudoinverseMemory,
    MemoryPosterior,
    MemoryReader,
    pseudo_inverse,
    readback_error,
)


def random_memory(slots: int, dim: int, sigma: float, seed: int = 0) -> GenerativePseudoinverseMemory:
    """A float64 memory whose prior is nowhere at its initial value; the exact inverse to float64."""
    torch.manual_seed(seed)
    memory = GenerativePseudoinverseMemory(slots, dim, sigma, steps=60, tolerance=1e-13).double()
    with torch.no_grad():
        memory.prior_logvar.normal_()
    return memory


def random_codes(count: int, dim: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Codes as the layer makes them: mean 0, variance 1."""
    return F.layer_norm(torch.randn(count, dim, dtype=dtype), (dim,))


# --- writing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [1.0, 0.1, 1e-3])
@pytest.mark.parametrize("episode", [1, 5, 20])
def test_direct_and_sequential_writing_give_one_posterior(sigma, episode):
    memory = random_memory(6, 18, sigma)
    codes = random_codes(episode, 18)
    (direct, weights), (sequential, same_weights) = memory.write(codes), memory.write(codes, direct=False)
    torch.testing.assert_close(direct.mean, sequential.mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(direct.covariance, sequential.covariance, rtol=0, atol=1e-6)
    torch.testing.assert_close(weights, same_weights)
    torch.testing.assert_close(weights, codes @ torch.linalg.pinv(memory.prior_mean))


@pytest.mark.parametrize("direct", [True, False])
def test_posterior_is_that_of_the_joint_gaussian(direct):
    """Condition the joint normal of (memory column, observations) with covariances alone, one column at a time."""
    memory = random_memory(4, 7, 0.3)
    codes = random_codes(5, 7)
    posterior, weights = memory.write(codes, direct)
    prior_covariance = torch.diag(memory.prior_logvar.exp())
    observed = weights @ prior_covariance @ weights.mT + 0.3**2 * torch.eye(5, dtype=torch.float64)
    gain = prior_covariance @ weights.mT @ torch.linalg.inv(observed)
    for column in range(7):
        prior = memory.prior_mean[:, column]
        torch.testing.assert_close(posterior.mean[:, column], prior + gain @ (codes[:, column] - weights @ prior))
    torch.testing.assert_close(posterior.covariance, prior_covariance - gain @ weights @ prior_covariance)


def test_posterior_is_prior_times_likelihood():
    """log p(m) + log p(z | m) - log p(m | z) is one constant over m, with densities from torch.distributions."""
    memory = random_memory(3, 4, 0.5)
    codes = random_codes(6, 4)
    posterior, weights = memory.write(codes)
    column, noise = 2, 0.25 * torch.eye(6, dtype=torch.float64)
    prior = MultivariateNormal(memory.prior_mean[:, column], torch.diag(memory.prior_logvar.exp()))
    after = MultivariateNormal(posterior.mean[:, column], posterior.covariance)
    evidence = torch.stack(
        [
            prior.log_prob(m) + MultivariateNormal(weights @ m, noise).log_prob(codes[:, column]) - after.log_prob(m)
            for m in torch.randn(10, 3, dtype=torch.float64)
        ]
    )
    torch.testing.assert_close(evidence, evidence[:1].expand(10), rtol=0, atol=1e-8)


@pytest.mark.parametrize("logvar, clamped", [(-9.0, -6.0), (5.0, 2.0), (0.5, 0.5)])
def test_prior_variance_is_clamped(logvar, clamped):
    memory = random_memory(3, 4, 0.5)
    with torch.no_grad():
        memory.prior_logvar.fill_(logvar)
    torch.testing.assert_close(memory.prior_variance(), torch.full((3,), clamped, dtype=torch.float64).exp())


@pytest.mark.parametrize("slots, dim, sigma", [(0, 4, 0.1), (4, 0, 0.1), (4, 4, 0.0)])
def test_impossible_sizes_are_refused(slots, dim, sigma):
    with pytest.raises(ValueError, match="memory needs"):
        GenerativePseudoinverseMemory(slots, dim, sigma)


# --- KL ----------------------------------------------------------------------------------------------------------


def flattened(mean: torch.Tensor, covariance: torch.Tensor) -> MultivariateNormal:
    """The matrix normal as one normal over all elements, column after column: covariance I_C (x) U."""
    columns = torch.eye(mean.shape[1], dtype=mean.dtype)
    return MultivariateNormal(mean.mT.reshape(-1), torch.kron(columns, covariance.contiguous()))


@pytest.mark.parametrize("slots, dim, episode", [(3, 5, 4), (5, 3, 2), (2, 2, 9), (1, 4, 1)])
def test_kl_is_that_of_torch_distributions(slots, dim, episode):
    memory = random_memory(slots, dim, 0.4, seed=slots)
    posterior, _ = memory.write(random_codes(episode, dim))
    prior = flattened(memory.prior_mean, torch.diag(memory.prior_logvar.exp()))
    expected = kl_divergence(flattened(*posterior), prior) / (slots * dim)
    torch.testing.assert_close(memory.kl(posterior), expected)


def test_kl_of_the_prior_is_zero():
    memory = random_memory(4, 6, 0.1)
    prior = MemoryPosterior(memory.prior_mean, torch.diag(memory.prior_variance()))
    torch.testing.assert_close(memory.kl(prior), torch.zeros((), dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("direct", [True, False])
def test_gradients_reach_codes_prior_mean_and_log_variance(direct):
    memory = random_memory(3, 5, 0.5)
    codes = random_codes(4, 5).requires_grad_()

    def kl_and_mean(codes, prior_mean, prior_logvar):
        parameters = {"memory.prior_mean": prior_mean, "memory.prior_logvar": prior_logvar}
        return torch.func.functional_call(_Write(memory, direct), parameters, (codes,))

    inputs = (codes, memory.prior_mean.detach().requires_grad_(), memory.prior_logvar.detach().requires_grad_())
    assert torch.autograd.gradcheck(kl_and_mean, inputs)
    for gradient in torch.autograd.grad(kl_and_mean(*inputs)[0], inputs):
        assert gradient.abs().min() > 0


class _Write(torch.nn.Module):
    def __init__(self, memory: GenerativePseudoinverseMemory, direct: bool) -> None:
        super().__init__()
        self.memory, self.direct = memory, direct

    def forward(self, codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        posterior, _ = self.memory.write(codes, self.direct)
        return self.memory.kl(posterior), posterior.mean


# --- forgetting --------------------------------------------------------------------------------------------------


@given(
    held=st.lists(st.booleans(), min_size=1, max_size=6),
    shuffle=st.randoms(use_true_random=False),
    exponent=st.integers(0, 8),
    seed=st.integers(0, 1000),
)
def test_forgotten_equals_never_held_in_any_order(held, shuffle, exponent, seed):
    """Adds and forgets interleave at random (an episode is forgotten only after it came); sigma^2 down to 1e-8."""
    memory = random_memory(5, 15, 10 ** (-exponent / 2), seed)
    episodes = [random_codes(1 + index % 3, 15) for index in range(len(held))]
    addresses = [memory.address(codes) for codes in episodes]
    pending = [(index, memory.add) for index in range(len(held))]
    state = memory.prior_precision()
    while pending:
        index, operation = pending.pop(shuffle.randrange(len(pending)))
        state = operation(state, addresses[index], episodes[index])
        if operation == memory.add and not held[index]:
            pending.append((index, memory.forget))
    expected = memory.prior_precision()
    for index, keep in enumerate(held):
        if keep:
            expected = memory.add(expected, addresses[index], episodes[index])
    (mean, covariance), (expected_mean, expected_covariance) = state.solve(), expected.solve()
    torch.testing.assert_close(mean, expected_mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(covariance, expected_covariance, rtol=0, atol=1e-6)


def test_precision_form_equals_one_write_of_everything():
    memory = random_memory(4, 10, 0.2)
    first, second = random_codes(3, 10), random_codes(2, 10)
    state = memory.add(memory.prior_precision(), memory.address(second), second)
    state = memory.add(state, memory.address(first), first).solve()
    together, _ = memory.write(torch.cat((first, second)), direct=False)
    torch.testing.assert_close(state.mean, together.mean)
    torch.testing.assert_close(state.covariance, together.covariance)


def test_holding_an_episode_differs_from_never_holding_it():
    memory = random_memory(4, 10, 0.2)
    codes = random_codes(2, 10)
    state = memory.add(memory.prior_precision(), memory.address(codes), codes)
    assert (state.solve().mean - memory.prior_mean).abs().max() > 0.1


# --- reading back ------------------------------------------------------------------------------------------------


def write_then_read(slots, dim, episode, sigma, dtype, inverse=pseudo_inverse, scale=1.0) -> tuple[float, float]:
    """Read-back errors of the written codes and of codes that were never written."""
    torch.manual_seed(3)
    memory = GenerativePseudoinverseMemory(slots, dim, sigma).to(dtype)
    memory.inverse = inverse
    with torch.no_grad():
        memory.prior_mean.mul_(scale)
        written, unseen = random_codes(episode, dim, dtype), random_codes(episode, dim, dtype)
        posterior, _ = memory.write(written)
        reader = MemoryReader(posterior.mean, inverse(posterior.mean))
        return readback_error(written, reader).item(), readback_error(unseen, reader).item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("episode", [1, 8, 16, 24, 32])
def test_written_codes_read_back_and_others_do_not(dtype, episode):
    written, unseen = write_then_read(32, 128, episode, 1e-3, dtype)
    assert written <= 1e-3
    assert unseen >= 0.5


def test_more_codes_than_slots_do_not_all_read_back():
    written, _ = write_then_read(32, 128, 64, 1e-3, torch.float64)
    assert written > 0.4  # K directions of 128 cannot hold 64 independent codes


@pytest.mark.parametrize("slots", [12, 20])
def test_a_memory_that_spans_everything_recalls_nothing(slots):
    """Written or not, everything comes back: reading is then the identity and says nothing about the past."""
    written, unseen = write_then_read(slots, 12, 6, 0.1, torch.float64)
    assert written <= 1e-3
    assert unseen <= 1e-3


def three_fixed_steps(matrix: torch.Tensor) -> torch.Tensor:
    """The ablation: three iterations from 5e-4 A^T, as Larimar's published code has it."""
    estimate = 5e-4 * matrix.mT
    for _ in range(3):
        estimate = 2 * estimate - estimate @ matrix @ estimate
    return estimate


@pytest.mark.parametrize("scale, at_least", [(0.02, 0.8), (1.0, 0.5)])
def test_three_steps_at_the_reference_step_size_recall_nothing(scale, at_least):
    """With a prior of either scale; an error of 0.5 is what this file counts as never written."""
    ours, _ = write_then_read(32, 128, 16, 0.1 * scale, torch.float64, scale=scale)
    reference, _ = write_then_read(32, 128, 16, 0.1, torch.float64, three_fixed_steps, scale)
    assert ours < 0.05
    assert reference > at_least


# --- precision ---------------------------------------------------------------------------------------------------


def test_writing_stays_in_float32_under_autocast():
    memory = random_memory(6, 18, 0.1).float()
    codes = random_codes(5, 18, torch.float32)
    plain, _ = memory.write(codes)
    with torch.autocast("cpu", torch.bfloat16):
        cast, _ = memory.write(codes)
        torch.testing.assert_close(memory.kl(cast), memory.kl(plain))
    torch.testing.assert_close(cast.mean, plain.mean)


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("spread", [1.0, 0.01])
def test_float32_writing_of_a_whole_batch_stays_positive_definite(direct, spread):
    """256 codes, all alike or all different, at the default sizes: the KL's Cholesky factorisation must not fail."""
    torch.manual_seed(0)
    memory = GenerativePseudoinverseMemory(32, 128, 0.1)
    codes = F.layer_norm(torch.randn(1, 128) + spread * torch.randn(256, 128), (128,))
    exact = GenerativePseudoinverseMemory(32, 128, 0.1, steps=0).double()
    exact.load_state_dict(memory.state_dict())
    posterior, _ = memory.write(codes, direct)
    expected, _ = exact.write(codes.double())
    torch.testing.assert_close(memory.kl(posterior).double(), exact.kl(expected), rtol=1e-2, atol=1e-4)
