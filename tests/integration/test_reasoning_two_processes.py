"""Stage 2 over two gloo processes: they learn from different questions, as one process would from all of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bitgen.checkpoint.format import CheckpointError
from bitgen.machine.devices import start_processes
from bitgen.run import build_trainer
from bitgen.tasks import task_of
from support.reasoning import QUESTIONS, REINFORCED, config_of, trained
from support.runs import command, execute, same_checkpoint
from support.warm import run_warm

WORKER = Path(__file__).with_name("watched_worker.py")
# Nothing is drawn that each rank would draw for itself, and gradients stay what they are.
STILL = dict(use_memory=False, dropout=0.0, compressor_dropout=0.0, max_grad_norm=1e6)
TWO = dict(use_ddp=True, num_gpus=2)
HOW = pytest.mark.parametrize("how", [{}, REINFORCED], ids=["by right answers", "by reinforcement"])


def two(folder: Path, stop_at: int = 0, **settings: Any) -> list[dict[str, Any]]:
    """What each of two processes held at the end of a run in ``folder``."""
    flat, file = config_of(folder, **settings).flat() | TWO, folder.with_suffix(".json")
    file.write_text(json.dumps(flat))
    done = run_warm([WORKER, "stage2", file, folder, stop_at], processes=2)
    assert done.returncode == 0, done.stdout + done.stderr
    return [torch.load(f"{folder}.{rank}", weights_only=True) for rank in (0, 1)]


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def still_captioner(tmp_path_factory: pytest.TempPathFactory) -> str:
    config = config_of(tmp_path_factory.mktemp("still_captioner"), **STILL)
    trained(config)
    return config.output.output_dir


@HOW
def test_two_processes_learn_from_their_own_questions_and_stay_equal(
    tmp_path: Path, still_captioner: str, how: dict[str, Any]
) -> None:
    """Their gradients are those that one process finds for both batches: of the mean over all supervised tokens by
    their weights, or of the mean of both batches' policy gradients."""
    settings = {**QUESTIONS, **STILL, **how, "init_from": still_captioner}
    first, second = two(tmp_path / "two", **settings)
    assert first["step"] == second["step"] == 4 and first["finished"] and second["finished"]
    assert equal(first["parameters"], second["parameters"]) and equal(first["gradients"], second["gradients"])
    one, other = first["seen"][0], second["seen"][0]
    assert one["pictures"].shape != other["pictures"].shape or not torch.equal(one["pictures"], other["pictures"])

    config = config_of(tmp_path / "alone", **settings)
    alone = build_trainer(task_of(config), config, start_processes("cpu", False))
    for name, parameter in alone.objective.named_parameters():  # the tower trains from the first step on
        parameter.requires_grad_(name in first["gradients"])
    supervised = [1 if how else int(batch["weights"].sum()) for batch in (one, other)]
    assert how or supervised[0] != supervised[1]
    for batch, count in zip((one, other), supervised, strict=True):
        alone.objective.begin(0.0, logged=True)
        (alone.objective(batch).loss * count / sum(supervised)).backward()
    alone.monitor.close()
    expected = {name: p.grad for name, p in alone.objective.named_parameters() if p.grad is not None}
    assert expected.keys() == first["gradients"].keys() and any("vision_encoder" in name for name in expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(
            first["gradients"][name], gradient, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: n + m
        )


@HOW
def test_two_processes_resume_exactly(tmp_path: Path, captioner: str, how: dict[str, Any]) -> None:
    """A signal to rank 1 alone stops both, and the run goes on as if nothing had been; one process does not go on."""
    settings = {**QUESTIONS, **how, "init_from": captioner, "save_steps": 4}
    two(tmp_path / "whole", **settings)
    stopped = two(tmp_path / "part", stop_at=2, **settings)
    assert [(rank["step"], rank["finished"]) for rank in stopped] == [(2, False)] * 2
    config = config_of(tmp_path / "part", **settings, resume="auto")
    if how:  # one of the two ways as a person starts it
        done = execute(command(config, processes=2))
    else:
        done = run_warm(command(config, use_ddp=True, num_gpus=2)[1:], processes=2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "after step 2" in done.stdout + done.stderr  # and not anew
    same_checkpoint(*(tmp_path / name / "checkpoints" for name in ("whole", "part")))
    with pytest.raises(CheckpointError, match="num_gpus was 2 and is 1"):
        trained(config_of(tmp_path / "part", **(settings | {"max_steps": 6}), resume="auto"))
