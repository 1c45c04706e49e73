"""Runs of the real entry points on a tiny model and a few built-in scenes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bitgen.config import Config
from bitgen.run import build_trainer
from bitgen.training.checkpoint import find_checkpoint
from bitgen.training.distributed import start_processes
from bitgen.training.trainer import Trainer

REPOSITORY = Path(__file__).resolve().parents[2]
ENTRY = REPOSITORY / "src" / "train_stage1_vision_language.py"

TINY: dict[str, object] = dict(
    vision_encoder="random",
    vision_hidden_size=32,
    vision_num_layers=2,
    vision_num_heads=2,
    vision_patch_size=7,
    image_size=28,
    lora_rank=4,
    lora_alpha=8,
    lora_lr_warmup_steps=2,
    embed_dim=32,
    vision_embed_dim=32,
    compressor_dim=48,
    num_layers=2,
    num_heads=2,
    ffn_dim=64,
    memory_dim=32,
    memory_size=8,
    vocab_size=300,
    max_seq_len=24,
    queue_size=40,
    temperature=0.07,
    batch_size=8,
    grad_accum_steps=2,
    learning_rate=3e-3,
    warmup_steps=2,
    max_steps=8,
    lora_warmup_steps=4,
    precision="fp32",
    device="cpu",
    train_data="scenes",
    tokenizer="train",
    scenes_train=32,
    scenes_val=12,
    num_workers=0,
    save_steps=1000,
    eval_steps=1000,
    log_steps=1,
    max_checkpoints_to_keep=3,
    progress=False,
)

Build = Callable[..., Trainer]


@pytest.fixture
def tiny_config(tmp_path: Path) -> Callable[..., Config]:
    """``tiny_config(run="a", **settings)``: a checked configuration with folders of its own for each run."""

    def make(run: str = "run", **settings: object) -> Config:
        folders = {"output_dir": str(tmp_path / run / "checkpoints"), "log_dir": str(tmp_path / run / "logs")}
        config = Config().replace(**{**TINY, **folders, **settings})
        config.validate(world_size=1)
        return config

    return make


@pytest.fixture
def build(tiny_config: Callable[..., Config]) -> Iterator[Build]:
    """``build(run="a", **settings)``: a trainer, whose log is closed at the end of the test."""
    trainers: list[Trainer] = []

    def make(run: str = "run", **settings: object) -> Trainer:
        for trainer in trainers:
            trainer.monitor.close()
        config = tiny_config(run, **settings)
        trainers.append(build_trainer(config, start_processes(config)))
        return trainers[-1]

    yield make
    for trainer in trainers:
        trainer.monitor.close()


def _fit_until(trainer: Trainer, step: int) -> bool:
    """Train until SIGTERM arrives in the middle of optimizer step ``step`` (counted from 1)."""
    count_words = trainer.count_words
    sent = []

    def count_and_signal(ids: torch.Tensor, mask: torch.Tensor) -> int:
        if trainer.progress.step == step - 1 and not sent:
            sent.append(True)  # a second signal would end the process at once
            os.kill(os.getpid(), 15)
        return count_words(ids, mask)

    trainer.count_words = count_and_signal
    return trainer.fit()


def _same(a: object, b: object, where: str = "") -> None:
    """Assert that two nested states are equal, tensors bit for bit; the message says where they part."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            _same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            _same(x, y, f"{where}[{i}]")
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), where
    else:
        assert a == b, where


def _same_checkpoint(one: str | Path, other: str | Path) -> None:
    """Assert that the newest checkpoints of two runs hold the same weights and the same state, bit for bit."""
    first, second = (find_checkpoint("auto", folder) for folder in (one, other))
    for name in ("model.safetensors", "ema.safetensors"):
        if (first.path / name).exists() or (second.path / name).exists():
            _same(load_file(first.path / name), load_file(second.path / name), name)
    _same(first.state, second.state, "state")


def _command(config: Config, processes: int = 1, **settings: object) -> list[str]:
    """The command line of a run."""
    if processes > 1:
        settings = {**settings, "use_ddp": True, "num_gpus": processes}
    flags = [part for name, value in {**config.flat(), **settings}.items() for part in (f"--{name}", str(value))]
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return [*launcher, str(ENTRY), *flags]


def _environment() -> dict[str, str]:
    """For subprocesses: one thread each, and none of a launcher's variables."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY / "src")}


def _execute(arguments: list[str], timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        arguments, capture_output=True, text=True, env=_environment(), timeout=timeout, check=False, cwd=REPOSITORY
    )


# Test modules are imported by path and cannot import this one: its functions reach them as fixtures.


@pytest.fixture
def fit_until() -> Callable[[Trainer, int], bool]:
    return _fit_until


@pytest.fixture
def same_checkpoint() -> Callable[[str | Path, str | Path], None]:
    return _same_checkpoint


@pytest.fixture
def command() -> Callable[..., list[str]]:
    return _command


@pytest.fixture
def execute() -> Callable[..., subprocess.CompletedProcess[str]]:
    return _execute


@pytest.fixture
def environment() -> dict[str, str]:
    return _environment()
