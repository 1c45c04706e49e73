"""Budgets of passes and words, against data drawn batch by batch; and the schedule of checkpoints by words."""

import logging
from collections import Counter
from itertools import chain, islice, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitgen.config import Config
from bitgen.data.loader_source import LoaderSource
from bitgen.data.mixing import MixedBatchSampler
from bitgen.data.sampler import ResumableBatchSampler
from bitgen.data.text_and_pairs import TextAndPairs, TextAndPairsSampler, TextKey
from bitgen.machine.ranks import Processes
from bitgen.protocols import Batch, Counts
from bitgen.stages import Group, Stage
from bitgen.tasks.stage1 import plan_stage
from bitgen.training import budget
from bitgen.training.budget import MILLION, exceeds, milestone

SCHEDULE = [*range(1, 11), *range(20, 101, 10), *range(200, 1001, 100)]


@given(st.integers(0, 1500 * MILLION))
def test_milestones_are_those_of_the_challenge(words: int) -> None:
    assert milestone(words) == max((m for m in SCHEDULE if m * MILLION <= words), default=0)


def test_milestones_at_their_edges() -> None:
    for millions in SCHEDULE:
        assert milestone(millions * MILLION) == millions
        assert milestone(millions * MILLION - 1) < millions


def test_a_budget_that_the_first_step_exceeds_allows_none() -> None:
    """The plan goes by the mean of a step; a run of no step would count as finished."""
    drawn = [Batch({}, Counts(1, 60, 1, None), torch.tensor([0]), ())]
    alone = Processes(0, 1, torch.device("cpu"))
    assert not exceeds(60, 0, drawn, alone) and exceeds(100, 50, drawn, alone)
    with pytest.raises(ValueError, match="max_words_seen 50 allows no step at all, for the first has 60 words"):
        exceeds(50, 0, drawn, alone)


def test_a_run_that_ends_has_reached_what_it_nearly_has() -> None:
    for millions in SCHEDULE:
        assert milestone(millions * MILLION * 99 // 100, at_end=True) == millions
        assert milestone(millions * MILLION * 99 // 100 - 1, at_end=True) < millions


class Rows:
    """Stands for text and for pairs: so many samples of so many words."""

    def __init__(self, size: int, words: int) -> None:
        self.size, self.num_words, self.each = size, size * words, words

    def __len__(self) -> int:
        return self.size

    def batch_sampler(self, batch_size: int, rank: int = 0, world_size: int = 1) -> ResumableBatchSampler:
        return ResumableBatchSampler(self.size, batch_size, rank, world_size)

    def words_per_batch(self, sampler: ResumableBatchSampler) -> float:
        return self.each * sampler.batch_size


def shown(sampler, plan: Stage, accumulate: int) -> Counter:
    """How often each sample is seen, by walking through the run as a trainer does."""
    seen: Counter = Counter()
    steps = 0
    while steps < plan.steps:
        count = min(plan.steps_per_epoch, plan.steps - steps)
        batches = islice(sampler.epoch(steps // plan.steps_per_epoch), count * accumulate)
        seen.update((type(key), key.index) for key in chain.from_iterable(batches))
        steps += count
    return seen


def source_of(config: Config, dataset, sampler) -> LoaderSource:
    return LoaderSource(dataset, sampler, None, None, config.training.grad_accum_steps)


def planned(config: Config, dataset, sampler) -> Stage:
    return plan_stage(config, source_of(config, dataset, sampler))[0]


@given(
    st.integers(12, 40),
    st.integers(12, 40),
    st.floats(0.1, 0.9),
    st.integers(1, 3),
    st.integers(1, 4),
)
def test_no_part_of_the_data_is_passed_more_often_than_max_epochs(text, pairs, ratio, accumulate, max_epochs) -> None:
    dataset = TextAndPairs(Rows(text, 5), Rows(pairs, 3), ratio, text_batch_size=2)
    config = Config().replace(
        batch_size=3, grad_accum_steps=accumulate, num_epochs=60, max_epochs=max_epochs, text_loss_weight=1.0
    )
    sampler = dataset.batch_sampler(3)
    plan = planned(config, dataset, sampler)
    seen = shown(sampler, plan, accumulate)
    assert max(seen.values()) <= max_epochs
    # And it is used up: as many steps again as one pass takes go beyond it.
    one_pass = int(source_of(config, dataset, sampler).steps_per_pass())
    longer = plan.cut(plan.steps + one_pass + plan.steps_per_epoch)
    assert max(shown(sampler, longer, accumulate).values()) > max_epochs


@given(st.integers(3, 30), st.integers(1, 4), st.integers(1, 5))
def test_batches_that_no_step_takes_buy_no_further_passes(batches: int, accumulate: int, max_epochs: int) -> None:
    sampler = ResumableBatchSampler(batches, 1)
    accumulate = min(accumulate, batches)
    config = Config().replace(grad_accum_steps=accumulate, num_epochs=20, max_epochs=max_epochs)
    plan = planned(config, Rows(batches, 1), sampler)
    assert plan.steps == max_epochs * (batches // accumulate)
    assert max(shown(sampler, plan, accumulate).values()) <= max_epochs


def test_a_source_that_is_mixed_in_more_often_counts() -> None:
    sampler = MixedBatchSampler([30, 10], [1, 3], 4)  # an epoch passes through the second source three times
    config = Config().replace(grad_accum_steps=1, num_epochs=50, max_epochs=6)
    plan = planned(config, Rows(40, 1), sampler)
    assert plan.steps == 2 * len(sampler)
    seen = Counter(index for _, index in shown(sampler, plan, 1).elements())
    assert {seen[index] for index in range(30, 40)} == {6}
    text = ResumableBatchSampler(20, 1)
    both = TextAndPairsSampler(text, sampler, 0.5)  # 20 batches of pairs an epoch, which are two epochs of theirs
    assert source_of(config, Rows(40, 1), both).steps_per_pass() == pytest.approx(40 / 6)


def test_the_plan_fits_the_words_and_says_so(caplog) -> None:
    dataset = TextAndPairs(Rows(40, 50), Rows(30, 7), 0.8, text_batch_size=2)
    config = Config().replace(
        batch_size=3, grad_accum_steps=1, num_epochs=100, text_loss_weight=1.0, max_words_seen=20_000
    )
    sampler = dataset.batch_sampler(3)
    with caplog.at_level(logging.INFO):
        plan = planned(config, dataset, sampler)
    words = sum(
        (50 if kind is TextKey else 7) * count for (kind, _), count in shown(sampler, plan, accumulate=1).items()
    )
    per_step = 0.8 * 100 + 0.2 * 21
    assert 20_000 - 2 * per_step < words <= 20_000 + per_step
    assert f"max_words_seen 20,000: the run is planned for {plan.steps} steps instead of" in caplog.text


def test_words_of_all_processes_count() -> None:
    config = Config().replace(grad_accum_steps=1, batch_size=4, num_epochs=100, max_words_seen=2_000)
    data = Rows(80, 5)
    alone = planned(config, data, data.batch_sampler(4))
    two = planned(config.replace(num_gpus=2, use_ddp=True), data, data.batch_sampler(4, 0, 2))
    assert (alone.steps, two.steps) == (100, 50)


def test_a_shorter_run_is_left_as_it_is() -> None:
    data = Rows(80, 5)
    config = Config().replace(batch_size=4, max_steps=7, max_epochs=3, max_words_seen=10**9)
    assert planned(config, data, data.batch_sampler(4)).steps == 7


def test_data_that_cannot_say_its_words_is_cut_by_counting_alone() -> None:
    class Untold(Rows):
        def words_per_batch(self, sampler: ResumableBatchSampler) -> None:
            return None

    config = Config().replace(batch_size=4, num_epochs=2, max_words_seen=1)
    assert planned(config, Untold(80, 5), ResumableBatchSampler(80, 4)).steps == 20


@pytest.mark.parametrize("settings", [{"max_words_seen": 9}, {"max_words_seen": 39}])
def test_a_budget_of_no_step_is_refused(settings: dict) -> None:
    data = Rows(80, 5)
    config = Config().replace(batch_size=4, **settings)
    with pytest.raises(ValueError, match="max_words_seen .* allows no step at all: raise it"):
        planned(config, data, data.batch_sampler(4))


def test_every_kind_of_run_is_cut_by_max_epochs() -> None:
    """One function plans them all; here as a stage 2 run asks it."""
    data = Rows(40, 5)
    training = Config().replace(grad_accum_steps=1, num_epochs=7, max_epochs=2, warmup_steps=0).training
    stage = budget.planned("any", (), LoaderSource(data, data.batch_sampler(4), None, None), training)
    assert stage.steps == 20


def test_a_budget_of_words_that_nobody_can_count_before_is_said(caplog) -> None:
    class Unknown(Rows):
        def words_per_batch(self, sampler: ResumableBatchSampler) -> None:
            return None

    data = Unknown(40, 5)
    training = Config().replace(grad_accum_steps=1, num_epochs=3, max_words_seen=100, warmup_steps=0).training
    stage = budget.planned("any", (), LoaderSource(data, data.batch_sampler(4), None, None), training)
    assert stage.steps == 30 and "max_words_seen 100 ends the run, but nobody knows when" in caplog.text


def test_a_warm_up_that_is_no_shorter_than_the_run_is_said_and_the_cooldown_begins_behind_it(caplog) -> None:
    data = Rows(400, 5)

    def rates(**settings: object) -> list[float]:
        training = Config().replace(grad_accum_steps=1, batch_size=4, num_epochs=1, **settings).training
        group = Group("new", ("*",), 1.0)
        stage = budget.planned("any", (group,), LoaderSource(data, data.batch_sampler(4), None, None), training)
        return [stage.rate_at(group, step) for step in range(stage.steps)]

    found = rates(warmup_steps=80, cooldown_ratio=0.5)
    assert not caplog.records and max(found) == 1.0
    assert max(abs(a - b) for a, b in pairwise(found)) < 0.06  # no jump
    rates(warmup_steps=1000)
    assert "the warm-up of 1000 steps is no shorter than the run, of 100" in caplog.text


class Rounded:
    """A pass of 2.7 steps, whose product with 10 is a little less than 27."""

    steps_per_epoch = 9

    def steps_per_pass(self) -> float:
        return 9 / (10 / 3)


def test_passes_that_are_a_whole_number_of_steps_lose_none_to_rounding() -> None:
    assert 10 * Rounded().steps_per_pass() < 27
    training = Config.parse(["--max_epochs", "10", "--num_epochs", "99"]).training
    assert budget.planned("run", (), Rounded(), training).steps == 27  # type: ignore[arg-type]
