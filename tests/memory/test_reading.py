"""The ways to read agree: by products or by a decomposition, from the codes or from the memory's sums, before a file
and after it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitgen.memory import EpisodicMemory, Whitening, reading
from bitgen.memory.address_space import IMAGE, TEXT, AddressSpace
from bitgen.memory.associative import AssociativeMemory
from support.memories import pairs

NOISES = (0.0, 1e-10, 1e-4, 0.1)


def cues_of(rows: int, columns: int, kind: str) -> torch.Tensor:
    draw = torch.Generator().manual_seed(3)
    cues = torch.randn(rows, columns, generator=draw, dtype=torch.float64)
    if kind == "twice":
        cues[4] = cues[7]
    elif kind == "almost twice":
        cues[4] = cues[7] + 1e-7 * cues[5]
    return cues


@pytest.mark.parametrize("kind", ["independent", "twice", "almost twice"])
@pytest.mark.parametrize("rows, columns", [(20, 30), (300, 330), (300, 100)])
def test_each_way_is_ridge_regression_on_what_was_written(rows, columns, kind) -> None:
    cues, asked = cues_of(rows, columns, kind), torch.randn(5, columns, dtype=torch.float64)
    values = torch.randn(rows, 7, dtype=torch.float64)
    reader, plain = reading.reader_of(cues, values), reading._by_decomposing(cues, values)
    for noise in NOISES:
        if noise:
            inverse = torch.linalg.inv(cues.mT @ cues + noise * torch.eye(columns, dtype=torch.float64))
            wanted = asked @ inverse @ cues.mT @ values
        else:
            wanted = asked @ torch.linalg.pinv(cues, rtol=1e-10) @ values
        found, decomposed = (each.mixed(asked, noise) @ each.values for each in (reader, plain))
        scale = 1 + wanted.abs().max()
        if noise >= 1e-4 or (noise == 0 and kind != "almost twice"):  # the plain inverse of the others is rounding
            assert (found - wanted).abs().max() <= 1e-6 * scale
        assert (found - decomposed).abs().max() <= 1e-6 * scale
    if kind == "independent":
        assert reader.condition() == pytest.approx(plain.condition(), rel=1e-6)


def test_products_are_used_only_where_they_lose_little() -> None:
    for kind, solved in (("independent", True), ("twice", False), ("almost twice", False)):
        cues = cues_of(300, 330, kind)
        reader = reading.reader_of(cues, cues)
        assert (len(reader.cues) == 300 and torch.equal(reader.cues, cues)) is solved


@pytest.mark.parametrize("slots, widen, count", [(40, True, 40), (16, False, 16), (64, False, 40), (300, True, 300)])
@pytest.mark.parametrize("part", [IMAGE, TEXT])
def test_up_to_its_slots_the_codes_read_what_the_sums_read(slots, widen, count, part) -> None:
    memory = AssociativeMemory.empty(AddressSpace(16, slots, widen)).written(pairs(count))
    width, rows = memory.space.cue_width, memory._rows  # by U and M alone
    halves = rows[:, :width], rows[:, width:]
    sums = reading.reader_of(halves[part], halves[1 - part][:, :16])
    own, exact = memory.halves(part), memory.halves(1 - part)
    for asked in (own[:9], pairs(9, seed=4)[:, :16]):
        cue = memory.space.cue(asked, part)
        for noise in NOISES[-2:]:
            codes = memory._reader(part)
            expected = sums.mixed(cue, noise) @ sums.values
            torch.testing.assert_close(codes.mixed(cue, noise) @ codes.values, expected, atol=1e-6, rtol=1e-5)
    if count <= memory.space.capacity:
        assert (memory.read(own, part).halves - exact).abs().max() <= 1e-6


OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["teach", "edit", "forget", "recall"]), st.integers(0, 99)), max_size=12
)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(OPERATIONS, st.sampled_from([(4, False, False), (32, False, True), (20, True, False), (40, True, True)]))
def test_a_loaded_memory_answers_as_the_one_that_was_saved(opened, tmp_path_factory, operations, shape) -> None:
    """Taught, edited and forgotten in any order, in one process or with a file between all steps."""
    slots, widen, whitens = shape
    whitening = Whitening.fit(pairs(80, seed=50)) if whitens else None
    path, supply = tmp_path_factory.mktemp("m") / "a.memory", pairs(40, seed=6)
    one = EpisodicMemory(*opened, slots=slots, widen=widen, whitening=whitening)
    one.save(path)
    one.write_codes(supply[:3], ["a", "b", "c"])
    steps = EpisodicMemory(*opened)
    with steps.editing(path):
        steps.write_codes(supply[:3], ["a", "b", "c"])
    for number, (name, value) in enumerate(operations):

        def change(memory: EpisodicMemory, name=name, value=value, number=number) -> None:
            if name == "teach":
                memory.write_codes(supply[3 + number][None], [f"text {number}"])
            elif name == "recall":
                memory.recall_codes(supply[value % 40, :16][None], IMAGE)
            elif len(memory) > 1:
                key = memory.episodes[value % len(memory)].id
                memory.forget(key) if name == "forget" else memory.edit(key, f"the cat {value}")

        change(one)
        steps = EpisodicMemory(*opened)
        with steps.editing(path):
            change(steps)
    loaded = EpisodicMemory(*opened)
    loaded.load(path)
    assert [*map(_shown, loaded.episodes)] == [*map(_shown, one.episodes)]
    assert torch.equal(loaded.codes.pairs, one.codes.pairs)
    for part, cues in ((IMAGE, supply[:, :16]), (TEXT, supply[:, 16:])):
        answers = [memory.codes.read(cues, part).halves for memory in (one, loaded)]
        torch.testing.assert_close(*answers, atol=1e-5, rtol=1e-5)
        if len(one) <= slots:  # read from the codes alone: to the last bit
            assert torch.equal(*answers)
            assert one.recall_codes(cues, part) == loaded.recall_codes(cues, part)


def _shown(episode: object) -> tuple[str, str]:
    return episode.id, episode.text
