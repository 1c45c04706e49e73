"""Stage 1's schedule: the phase, the epoch and the learning rate are functions of the step alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitgen.config import Config
from bitgen.data.loader_source import LoaderSource
from bitgen.stages import FINAL_SHARE, Group, Phase, Role, Stage, warmup_cooldown, warmup_cosine
from bitgen.tasks.stage1 import boundary_of, groups, plan_stage


class Batches:
    """Stands for data of so many micro-batches an epoch."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count


def planned(config: Config, batches_per_epoch: int) -> tuple[Stage, str]:
    batches = Batches(batches_per_epoch)
    source = LoaderSource(batches, batches, None, None, config.training.grad_accum_steps)
    return plan_stage(config, source)


def config_with(**values: object) -> Config:
    return Config().replace(**values)


def test_phase_two_starts_after_the_warm_up_epochs() -> None:
    plan, _ = planned(config_with(lora_warmup_epochs=2, num_epochs=5, grad_accum_steps=4), 43)
    assert (plan.steps_per_epoch, plan.steps, boundary_of(plan)) == (10, 50, 20)
    assert [plan.phase_at(step) for step in (0, 19, 20, 49)] == [1, 1, 2, 2]
    assert [plan.epoch_at(step) for step in (0, 9, 10, 49)] == [0, 0, 1, 4]
    assert [step for step in range(51) if plan.begins_phase(step)] == [20]


def test_warm_up_steps_override_epochs_and_max_steps_override_the_total() -> None:
    plan, _ = planned(config_with(lora_warmup_steps=7, max_steps=9, grad_accum_steps=1), 100)
    assert (boundary_of(plan), plan.steps) == (7, 9)


def test_without_a_warm_up_phase_two_starts_at_once_and_is_no_boundary() -> None:
    plan, _ = planned(config_with(lora_warmup_steps=0), 10)
    assert plan.phase_at(0) == 2
    assert not plan.begins_phase(0)


@pytest.mark.parametrize("values", [{"vision_encoder": "features"}, {"vision_tuning": "frozen"}])
def test_nothing_to_unfreeze_means_phase_one_throughout(values: dict) -> None:
    plan, reason = planned(config_with(**values), 10)
    assert boundary_of(plan) is None and reason and reason in plan.phases[0].note
    assert {plan.phase_at(step) for step in range(0, plan.steps, 7)} == {1}


def test_accumulating_more_than_an_epoch_has_is_an_error_that_names_the_flag() -> None:
    with pytest.raises(ValueError, match="grad_accum_steps is 8"):
        planned(config_with(grad_accum_steps=8), 7)


def test_warm_up_is_linear_then_a_cosine_down_to_one_per_cent() -> None:
    shares = [warmup_cosine(step, 10, 110) for step in range(110)]
    assert shares[0] == pytest.approx(0.1)
    assert shares[9] == pytest.approx(1.0)
    assert shares[10] == pytest.approx(1.0)
    assert shares[60] == pytest.approx(FINAL_SHARE + (1 - FINAL_SHARE) / 2, abs=0.01)
    assert shares[109] == pytest.approx(FINAL_SHARE)
    assert all(a < b for a, b in zip(shares[:9], shares[1:10], strict=True))
    assert all(a >= b for a, b in zip(shares[10:], shares[11:], strict=False))


def test_warm_up_is_linear_then_the_peak_then_linear_down_to_one_per_cent() -> None:
    shares = [warmup_cooldown(step, 10, 40, 110) for step in range(110)]
    assert shares[:10] == [(step + 1) / 10 for step in range(10)]
    assert shares[10:70] == [1.0] * 60
    assert shares[89] == pytest.approx(FINAL_SHARE + (1 - FINAL_SHARE) / 2)
    assert shares[109] == FINAL_SHARE
    steps = [a - b for a, b in zip(shares[69:], shares[70:], strict=False)]
    assert steps == pytest.approx([(1 - FINAL_SHARE) / 40] * 40)
    assert warmup_cooldown(109, 10, 0, 110) == 1.0  # nothing to fall over


@pytest.mark.parametrize("ratio, share", [(None, 0.226), (0.2, 1.0), (0.5, 0.6)])
def test_cooldown_ratio_chooses_the_schedule(ratio: float | None, share: float) -> None:
    plan, _ = planned(config_with(warmup_steps=2, cooldown_ratio=ratio, max_steps=100), 50)
    group = next(group for group in plan.groups if group.schedule == "cosine" and group.start == 0)
    assert plan.rate_at(group, 69) == pytest.approx(group.rate * group.factor * share, rel=0.02)
    assert plan.rate_at(group, 99) == pytest.approx(group.rate * group.factor * FINAL_SHARE)


@pytest.mark.parametrize("cooldown", [None, 0.5])
@pytest.mark.parametrize("final", [0.0, 0.3])
def test_the_rate_falls_to_the_share_that_is_asked_for(cooldown: float | None, final: float) -> None:
    plan, _ = planned(config_with(warmup_steps=2, cooldown_ratio=cooldown, final_rate_ratio=final, max_steps=100), 50)
    group = next(group for group in plan.groups if group.schedule == "cosine" and group.start == 0)
    rates = [plan.rate_at(group, step) / (group.rate * group.factor) for step in range(100)]
    assert max(rates) == pytest.approx(1) and rates[99] == pytest.approx(final)
    assert all(rate > final for rate in rates[1:99])


@given(warmup=st.integers(0, 50), total=st.integers(1, 300), step=st.integers(0, 400))
def test_the_share_stays_within_its_bounds(warmup: int, total: int, step: int) -> None:
    assert 0 < warmup_cosine(step, warmup, total) <= 1
    assert 0 < warmup_cooldown(step, warmup, total // 3, total) <= 1


def learning_rate_at(step: int, name: str, config: Config) -> float:
    """Of a group of a run of 200 steps, whose second phase starts at step 50."""
    found = groups(config, 50)
    stage = Stage("stage1", found, 200, 10, config.training.warmup_steps, phases=(Phase(0), Phase(50)))
    return stage.rate_at(next(group for group in found if group.name == name), step)


def test_the_rate_of_new_modules_goes_on_across_the_boundary() -> None:
    config = config_with(learning_rate=1e-3, warmup_steps=5)
    before, after = (learning_rate_at(step, "new", config) for step in (49, 50))
    assert after == pytest.approx(before, rel=0.02)


def test_adapters_warm_up_from_the_boundary_with_their_own_factor() -> None:
    config = config_with(learning_rate=1e-3, warmup_steps=5, lora_lr_factor=0.5, lora_lr_warmup_steps=10)
    assert learning_rate_at(50, "lora_a", config) == pytest.approx(0.05 * learning_rate_at(50, "new", config))
    for step in (59, 60, 150):
        assert learning_rate_at(step, "lora_a", config) == pytest.approx(0.5 * learning_rate_at(step, "new", config))


def test_lora_plus_is_the_ratio_of_b_to_a() -> None:
    config = config_with(lora_plus_ratio=16.0)
    assert learning_rate_at(80, "lora_b", config) == pytest.approx(16 * learning_rate_at(80, "lora_a", config))


def test_gates_follow_the_schedule_at_their_own_factor() -> None:
    config = config_with(gate_lr_factor=10.0)
    for step in (0, 49, 120, 199):
        assert learning_rate_at(step, "gate", config) == pytest.approx(10 * learning_rate_at(step, "new", config))


def test_the_temperature_neither_warms_up_nor_decays() -> None:
    config = config_with(learning_rate=1e-3, warmup_steps=100, temperature_lr_factor=50.0)
    rates = {learning_rate_at(step, "temperature", config) for step in (0, 50, 199)}
    assert len(rates) == 1
    assert rates.pop() == pytest.approx(0.05)


# ---- groups as data ----

DECODER, GATE, FROZEN = Role("decoder", "matrix", True), Role("fusion", "gate", False), Role("vision", "base", True)


def test_the_first_group_that_matches_has_the_parameter_and_what_none_names_is_frozen() -> None:
    one, two = Group("gates", ("*/gate",), 1.0), Group("rest", ("fusion/*", "decoder/*"), 0.1, start=3)
    stage = Stage("any", (one, two), 10, 5, phases=(Phase(0), Phase(3)))
    assert [stage.group_of(role) for role in (GATE, DECODER, FROZEN)] == [one, two, None]
    assert [stage.trains(DECODER, step) for step in (0, 2, 3, 9)] == [False, False, True, True]
    assert not any(stage.trains(FROZEN, step) for step in range(10))
    assert not stage.trains(GATE._replace(reached=False), 5), "no loss reaches it"


def test_a_group_cannot_start_within_a_phase() -> None:
    with pytest.raises(AssertionError, match="late"):
        Stage("any", (Group("late", ("*",), 1.0, start=3),), 10, 5)
