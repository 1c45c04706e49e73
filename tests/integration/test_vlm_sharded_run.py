"""A whole run of parts on two processes that share one model: validation, generation, checkpoints, and going on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bitgen.checkpoint.format import checkpoint_folders
from support.runs import REPOSITORY, execute, metrics, same_checkpoint, torchrun
from support.vlm import recipe
from support.warm import run_warm

ENTRY = REPOSITORY / "src" / "train_vlm.py"
STAGES = [
    {
        "name": "all",
        "trains": "connector,adapter",
        "adapter": "lora",
        "adapter_rank": 4,
        "adapter_dropout": 0.1,
        "language_checkpointing": True,
    }
]


def run(folder: Path, processes: int, **changes: object) -> Path:
    """Train, and give the folder of the run."""
    config = recipe(folder, STAGES, learning_rate=3e-3, best_metric="rouge_l")
    settings = {**config.flat(), **changes, "use_ddp": processes > 1, "num_gpus": processes}
    flags = [part for name, value in settings.items() if value is not None for part in (f"--{name}", value)]
    forked = "parallel" in changes  # the replicated run is started as a person does it
    done = run_warm([ENTRY, *flags], processes=2) if forked else execute(torchrun(ENTRY, *flags))
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "runs" / "all"


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("sharded"), 2, parallel="sharded", eval_steps=2)


def test_a_sharded_run_is_a_replicated_one(sharded: Path, tmp_path: Path) -> None:
    replicated = run(tmp_path, 2, eval_steps=2)
    ours, theirs = (load_file(checkpoint_folders(found)[0] / "model.safetensors") for found in (sharded, replicated))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], atol=1e-5, rtol=0)
    logs = [metrics(found.parents[1] / "logs" / "all") for found in (sharded, replicated)]
    held_out = [[record for record in log if "val/rouge_l" in record] for log in logs]
    assert len(held_out[0]) == 2
    for own, other in zip(*held_out, strict=True):
        assert own["val/loss"] == pytest.approx(other["val/loss"], abs=1e-5)
        assert own["val/rouge_l"] == other["val/rouge_l"]


def test_a_sharded_run_that_stopped_goes_on_bit_for_bit(sharded: Path, tmp_path: Path) -> None:
    run(tmp_path, 2, parallel="sharded", eval_steps=2, save_steps=2)
    kept = checkpoint_folders(tmp_path / "runs" / "all")
    assert len(kept) == 2
    # As a kill after step 2 would leave it.
    shutil.rmtree(kept[0])
    for left in ("finished", "latest", "best"):
        (tmp_path / "runs" / "all" / left).unlink(missing_ok=True)
    again = run(tmp_path, 2, parallel="sharded", eval_steps=2, save_steps=2, resume="auto")
    same_checkpoint(again, sharded)
