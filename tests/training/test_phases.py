"""The phase, the epoch and the learning rate are functions of the step alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitgen.config import Config
from bitgen.training.optimizer import (
    FINAL_SHARE,
    GATE,
    LORA_A,
    LORA_B,
    NEW,
    TEMPERATURE,
    learning_rate_at,
    warmup_cosine,
)
from bitgen.training.phases import PhasePlan, plan_phases


def config_with(**values: object) -> Config:
    return Config().replace(**values)


def test_phase_two_starts_after_the_warm_up_epochs() -> None:
    plan = plan_phases(config_with(lora_warmup_epochs=2, num_epochs=5, grad_accum_steps=4), batches_per_epoch=43)
    assert (plan.steps_per_epoch, plan.total_steps, plan.boundary) == (10, 50, 20)
    assert [plan.phase_at(step) for step in (0, 19, 20, 49)] == [1, 1, 2, 2]
    assert [plan.epoch_at(step) for step in (0, 9, 10, 49)] == [0, 0, 1, 4]
    assert [step for step in range(51) if plan.is_boundary(step)] == [20]


def test_warm_up_steps_override_epochs_and_max_steps_override_the_total() -> None:
    plan = plan_phases(config_with(lora_warmup_steps=7, max_steps=9, grad_accum_steps=1), batches_per_epoch=100)
    assert (plan.boundary, plan.total_steps) == (7, 9)


def test_without_a_warm_up_phase_two_starts_at_once_and_is_no_boundary() -> None:
    plan = plan_phases(config_with(lora_warmup_steps=0), batches_per_epoch=10)
    assert plan.phase_at(0) == 2
    assert not plan.is_boundary(0)


@pytest.mark.parametrize("values", [{"vision_encoder": "features"}, {"vision_tuning": "frozen"}])
def test_nothing_to_unfreeze_means_phase_one_throughout(values: dict) -> None:
    plan = plan_phases(config_with(**values), batches_per_epoch=10)
    assert plan.boundary is None and plan.reason
    assert {plan.phase_at(step) for step in range(0, plan.total_steps, 7)} == {1}


def test_accumulating_more_than_an_epoch_has_is_an_error_that_names_the_flag() -> None:
    with pytest.raises(ValueError, match="grad_accum_steps is 8"):
        plan_phases(config_with(grad_accum_steps=8), batches_per_epoch=7)


def test_warm_up_is_linear_then_a_cosine_down_to_one_per_cent() -> None:
    shares = [warmup_cosine(step, 10, 110) for step in range(110)]
    assert shares[0] == pytest.approx(0.1)
    assert shares[9] == pytest.approx(1.0)
    assert shares[10] == pytest.approx(1.0)
    assert shares[60] == pytest.approx(FINAL_SHARE + (1 - FINAL_SHARE) / 2, abs=0.01)
    assert shares[109] == pytest.approx(FINAL_SHARE)
    assert all(a < b for a, b in zip(shares[:9], shares[1:10], strict=True))
    assert all(a >= b for a, b in zip(shares[10:], shares[11:], strict=False))


@given(warmup=st.integers(0, 50), total=st.integers(1, 300), step=st.integers(0, 400))
def test_the_share_stays_within_its_bounds(warmup: int, total: int, step: int) -> None:
    assert 0 < warmup_cosine(step, warmup, total) <= 1


PLAN = PhasePlan(steps_per_epoch=10, total_steps=200, boundary=50)


def test_the_rate_of_new_modules_goes_on_across_the_boundary() -> None:
    config = config_with(learning_rate=1e-3, warmup_steps=5)
    before, after = (learning_rate_at(step, NEW, PLAN, config) for step in (49, 50))
    assert after == pytest.approx(before, rel=0.02)


def test_adapters_warm_up_from_the_boundary_with_their_own_factor() -> None:
    config = config_with(learning_rate=1e-3, warmup_steps=5, lora_lr_factor=0.5, lora_lr_warmup_steps=10)
    assert learning_rate_at(50, LORA_A, PLAN, config) == pytest.approx(0.05 * learning_rate_at(50, NEW, PLAN, config))
    for step in (59, 60, 150):
        assert learning_rate_at(step, LORA_A, PLAN, config) == pytest.approx(
            0.5 * learning_rate_at(step, NEW, PLAN, config)
        )


def test_lora_plus_is_the_ratio_of_b_to_a() -> None:
    config = config_with(lora_plus_ratio=16.0)
    assert learning_rate_at(80, LORA_B, PLAN, config) == pytest.approx(16 * learning_rate_at(80, LORA_A, PLAN, config))


def test_gates_follow_the_schedule_at_their_own_factor() -> None:
    config = config_with(gate_lr_factor=10.0)
    for step in (0, 49, 120, 199):
        assert learning_rate_at(step, GATE, PLAN, config) == pytest.approx(
            10 * learning_rate_at(step, NEW, PLAN, config)
        )


def test_the_temperature_neither_warms_up_nor_decays() -> None:
    config = config_with(learning_rate=1e-3, warmup_steps=100, temperature_lr_factor=50.0)
    rates = {learning_rate_at(step, TEMPERATURE, PLAN, config) for step in (0, 50, 199)}
    assert len(rates) == 1
    assert rates.pop() == pytest.approx(0.05)
