"""Two gloo processes through the phase boundary: equal afterwards, and agreed on every mishap of one of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bitgen.checkpoint.format import CheckpointError
from bitgen.machine.files import digest
from bitgen.machine.ranks import Processes, check_equal_on_ranks
from support.runs import assert_equal_ranks, command, execute, same_checkpoint, two_ranks

# Steps of one micro-batch: the worker counts forwards.
SETTINGS = dict(grad_accum_steps=1, batch_size=4, save_steps=2, max_steps=8, lora_warmup_steps=4, learning_rate=1e-2)


@pytest.fixture
def run_two(tiny_config, tmp_path: Path) -> Callable[..., list[dict]]:
    """``run_two(name, stop_at=0)``: what each of two processes held at the end."""
    return lambda name, **mishaps: two_ranks(tiny_config(name, **SETTINGS), tmp_path / name, **mishaps)


def test_the_ranks_stay_equal_and_resume_exactly(run_two, tiny_config, build) -> None:
    first, second = run_two("straight")
    assert (first["step"], first["phase"], first["samples"]) == (8, 2, 8 * 2 * 4)
    assert_equal_ranks(first, second)
    lora = [name for name in first["gradients"] if "lora_" in name]
    assert len(lora) == 8 and all(first["gradients"][name].any() for name in lora)
    assert not torch.equal(first["random"], second["random"]), "each rank draws its own dropout"
    # A NaN on rank 1 alone, and later a signal to rank 1 alone, are both ranks' affair.
    assert first["skipped"] == second["skipped"] == 1

    stopped = run_two("resumed", stop_at=6)
    assert [(rank["step"], rank["finished"]) for rank in stopped] == [(6, False), (6, False)]
    config = tiny_config("resumed", **SETTINGS)
    done = execute(command(config, processes=2, resume="auto"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "after step 6" in done.stdout + done.stderr  # and not anew
    same_checkpoint(tiny_config("straight").output.output_dir, config.output.output_dir)

    with pytest.raises(CheckpointError, match="num_gpus was 2 and is 1"):
        build("resumed", resume="auto", **SETTINGS)


def test_ranks_that_differ_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = ({"queue": "a", "phase": phase} for phase in "12")
    monkeypatch.setattr("bitgen.machine.ranks.gather_objects", lambda parts, processes: [one, other])
    with pytest.raises(RuntimeError, match="do not agree on: phase"):
        check_equal_on_ranks(Processes(0, 2, torch.device("cpu")), one)


def test_a_digest_sees_every_bit_and_the_name_and_shape() -> None:
    tensor = torch.zeros(2, 3)
    other = tensor.clone()
    other[1, 2] = -0.0
    digests = {digest([("a", tensor)]), digest([("b", tensor)]), digest([("a", tensor.view(3, 2))])}
    assert len(digests | {digest([("a", other)]), digest([("a", tensor.to(torch.bfloat16))])}) == 5
