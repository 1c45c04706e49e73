"""Whitened codes: against the definition, against codes as real features are, and as a person uses them."""

from __future__ import annotations

import pytest
import torch
from scipy.linalg import fractional_matrix_power
from torch.nn import functional as F

from bitgen.checkpoint.format import read_checkpoint, resolve_checkpoint
from bitgen.memory import EpisodicMemory, Whitening, open_model, training_whitening
from bitgen.memory.address_space import IMAGE, TEXT, AddressSpace
from bitgen.memory.associative import AssociativeMemory
from support.memories import pairs
from support.runs import written_run

HALF = 24


def lifelike(count: int, seed: int = 0) -> torch.Tensor:
    """Pairs ``[count, 2 HALF]`` like those of trained models: a mean that all share, most variance in three directions,
    where image and text agree, and a little of their own in all others."""
    fixed, generator = (torch.Generator().manual_seed(number) for number in (99, seed))
    mean = torch.randn(2, HALF, generator=fixed, dtype=torch.float64)
    directions = torch.randn(2, 3, HALF, generator=fixed, dtype=torch.float64)
    topics = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    own = torch.randn(2, count, HALF, generator=generator, dtype=torch.float64)
    halves = mean[:, None] + topics @ directions + 0.3 * own
    return F.normalize(halves, dim=2).transpose(0, 1).flatten(1)


def errors(space: AddressSpace, written: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
    """Relative errors of what images read, against their own texts."""
    read = AssociativeMemory.empty(space).written(written).read(asked[:, :HALF], IMAGE).halves
    texts = space.seen(asked[:, HALF:], TEXT)
    return (read - texts).norm(dim=1) / texts.norm(dim=1)


def test_it_is_the_inverse_root_of_the_covariance() -> None:
    pairs = lifelike(300)
    whitening = Whitening.fit(pairs.float())
    for part, half in enumerate(pairs.chunk(2, dim=1)):
        covariance = half.mT.cov(correction=0)
        wanted = fractional_matrix_power(covariance + 0.1 * covariance.trace() / HALF * torch.eye(HALF), -0.5)
        torch.testing.assert_close(whitening.matrices[part], torch.from_numpy(wanted), atol=1e-4, rtol=1e-4)
        seen = whitening(half, part)
        torch.testing.assert_close(seen.norm(dim=1), torch.ones(300, dtype=torch.float64))
        torch.testing.assert_close(
            seen, F.normalize((half - half.mean(dim=0)) @ torch.from_numpy(wanted), dim=1), atol=1e-3, rtol=0
        )


@pytest.mark.parametrize("slots, widen, count", [(8, False, 8), (24, False, 24), (40, True, 40)])
def test_what_was_never_written_reads_nothing_like_it(slots, widen, count) -> None:
    whitening = Whitening.fit(lifelike(500, seed=7))
    written, never = lifelike(count, seed=1), lifelike(60, seed=2)
    plain, whitened = (AddressSpace(HALF, slots, widen, whitening=way) for way in (None, whitening))
    assert errors(whitened, written, written).max() <= 1e-3 and errors(plain, written, written).max() <= 1e-3
    assert errors(plain, written, never).min() < 0.5
    assert errors(whitened, written, never).min() >= 0.5


@pytest.mark.parametrize("widen", [False, True])
def test_forgetting_stays_exact(widen) -> None:
    pairs, space = lifelike(12), AddressSpace(HALF, 16, widen, whitening=Whitening.fit(lifelike(100, seed=7)))
    memory = AssociativeMemory.empty(space).written(pairs[:10]).without(3).replaced(5, pairs[11]).without(0)
    fresh = AssociativeMemory.empty(space).written(pairs[[1, 2, 4, 5, 11, 7, 8, 9]])
    assert torch.equal(memory.pairs, fresh.pairs)  # as the model gives them, so that it can be whitened anew
    for left, right in zip(memory.precision.solve(), fresh.precision.solve(), strict=True):
        torch.testing.assert_close(left, right, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    "bad, message",
    [
        (lifelike(2 * HALF - 1), r"at least 48 pairs"),
        (torch.full((60, 2 * HALF), torch.nan), "NaN or infinity"),
        (torch.ones(60, 2 * HALF), "all the same"),
    ],
)
def test_statistics_that_cannot_be_taken_are_refused(bad, message) -> None:
    with pytest.raises(ValueError, match=message):
        Whitening.fit(bad)


def test_a_whitening_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match=r"are \[2, 24\] and \[2, 24, 24\]; the codes' width is 16"):
        AddressSpace(16, 8, whitening=Whitening.fit(lifelike(60)))


def test_a_memory_is_whitened_and_back_and_keeps_it_in_its_file(tmp_path) -> None:
    opened, whitening = open_model(written_run()), training_whitening(written_run())
    memory = EpisodicMemory(*opened)
    memory.write_codes(pairs(6), [f"text {number}" for number in range(6)])
    plain = memory.codes.read(pairs(2, seed=3)[:, :16], IMAGE).halves
    memory.whiten(whitening)
    memory.resize(20, widen=True)
    memory.edit("2", "another text")
    memory.save(tmp_path / "a.memory")
    other = EpisodicMemory(*opened)
    other.load(tmp_path / "a.memory")
    for cue, part in ((pairs(2, seed=3)[:, :16], IMAGE), (pairs(2, seed=3)[:, 16:], TEXT)):
        left, right = (one.codes.read(cue, part).halves for one in (memory, other))
        torch.testing.assert_close(left, right)
        assert (left[:, :16].norm(dim=1) <= 2).all()
    assert other.recall_codes(pairs(6)[:, :16], IMAGE)[1][0][0:2] == ("2", "another text")
    assert all(found[0].distance <= 1e-3 for found in other.recall_codes(pairs(6)[2:, :16], IMAGE))
    assert memory.state().expected_recall == (1.0, 1.0)
    back = EpisodicMemory(*opened)
    back.write_codes(pairs(6), [f"text {number}" for number in range(6)])
    back.whiten(whitening)
    back.whiten(None)
    assert torch.equal(back.codes.read(pairs(2, seed=3)[:, :16], IMAGE).halves, plain)


def test_the_queue_of_a_run_gives_the_statistics() -> None:
    queue = read_checkpoint(resolve_checkpoint(written_run())).state["objective"]["queue"]
    filled = torch.cat([queue["image_features"], queue["text_features"]], dim=1)[: queue["filled"]]
    for left, right in zip(training_whitening(written_run()), Whitening.fit(filled), strict=True):
        assert torch.equal(left, right)


def test_it_is_taken_in_any_number_format_and_refused_where_it_is_not_finite(memory) -> None:
    half = memory.encoder.half
    plain = Whitening(torch.zeros(2, half), torch.eye(half).expand(2, -1, -1))  # float32
    memory.write_codes(torch.randn(3, 2 * half), ["one", "two", "three"])
    memory.whiten(plain)
    assert memory.codes.space.whitening.matrices.dtype == torch.float64 and memory.recall(text="one")
    with pytest.raises(ValueError, match="NaN or infinity in the whitening"):
        memory.whiten(plain._replace(means=plain.means * float("nan")))
    with pytest.raises(ValueError, match=r"matrices are \[\] and"):
        memory.whiten(plain._replace(means=torch.tensor(0.0)))
    assert memory.recall(text="one")
