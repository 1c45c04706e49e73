"""Runs of the real entry points on a tiny model and a few built-in scenes."""

from __future__ import annotations

import importlib.util
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bitgen.checkpoint.format import find_checkpoint
from bitgen.config import Config
from bitgen.data.record_writer import write_dataset
from bitgen.data.records import DatasetInfo, Record
from bitgen.data.tokenizer import train_bpe
from bitgen.machine.devices import start_processes
from bitgen.run import build_trainer
from bitgen.tasks import TASKS
from bitgen.tasks.stage1_validation import HeldOut
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
        trainers.append(
            build_trainer(TASKS["stage1"], config, start_processes(config.training.device, config.training.use_ddp))
        )
        trainers[-1].config = config  # for tests to look at
        return trainers[-1]

    yield make
    for trainer in trainers:
        trainer.monitor.close()


def _fit_until(trainer: Trainer, step: int) -> bool:
    """Train until SIGTERM arrives in the middle of optimizer step ``step`` (counted from 1)."""
    count_words = trainer.source.count_words
    sent = []

    def count_and_signal(ids: torch.Tensor, mask: torch.Tensor) -> int:
        if trainer.progress.step == step - 1 and not sent:
            sent.append(True)  # a second signal would end the process at once
            os.kill(os.getpid(), 15)
        return count_words(ids, mask)

    trainer.source.count_words = count_and_signal
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
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join((str(REPOSITORY / "src"), str(REPOSITORY / "tests"))),
    }


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


@pytest.fixture
def main(tiny_config, monkeypatch: pytest.MonkeyPatch, capfd) -> Callable[..., tuple[int, str]]:
    """``main(**settings)`` runs the entry in this process; its exit status, and what it wrote to stderr."""

    def run(run: str = "run", drop: tuple[str, ...] = (), **settings: object) -> tuple[int, str]:
        _, entry, *flags = _command(tiny_config(run), **settings)
        pairs = zip(flags[::2], flags[1::2], strict=True)
        flags = [part for flag, value in pairs if flag.removeprefix("--") not in drop for part in (flag, value)]
        monkeypatch.setattr(sys, "argv", [entry, *flags])
        spec = importlib.util.spec_from_file_location("entry_under_test", entry)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        capfd.readouterr()
        try:
            status = module.main()
        except SystemExit as stop:
            status = stop.code
        return status, capfd.readouterr().err

    return run


# Text, and image-caption pairs beside it.

WORDS = "the cat sat on a mat and saw the big red dog run far away from here".split()
FEATURE_SHAPE = (4, 6)


def _prose(seed: int, sentences: int = 2) -> str:
    draw = random.Random(seed)
    return " ".join(" ".join(draw.choices(WORDS, k=draw.randint(3, 12))).capitalize() + "." for _ in range(sentences))


def _write_features(folder: Path, captions: list[list[str]], seed: int = 1) -> str:
    """A dataset of made-up features, one image for each list of captions; returns its folder."""
    draw = np.random.default_rng(seed)
    rows = [draw.standard_normal(FEATURE_SHAPE).astype(np.float32).tobytes() for _ in captions]
    records = [Record(f"{n}.jpg", row, own) for n, (row, own) in enumerate(zip(rows, captions, strict=True))]
    info = DatasetInfo("features", "made up", feature_shape=FEATURE_SHAPE, feature_dtype="float32")
    write_dataset(folder, records, info)
    return str(folder)


@pytest.fixture(scope="session")
def prose() -> Callable[..., str]:
    return _prose


@pytest.fixture(scope="session")
def write_features() -> Callable[..., str]:
    return _write_features


@pytest.fixture(scope="session")
def corpora(tmp_path_factory: pytest.TempPathFactory, write_text_corpus) -> dict[str, object]:
    """Settings of a text of two sources, of held-out text, and of pairs as features, in equal numbers of batches."""

    def captions(count: int, seed: int) -> list[list[str]]:
        each = [[f"a {WORDS[(n + seed) % 16]} and a {WORDS[n % 7]}", _prose(1000 * seed + n, 1)] for n in range(count)]
        return [own[: 1 + n % 2] for n, own in enumerate(each)]

    folder = tmp_path_factory.mktemp("corpora")
    tokenizer = train_bpe([_prose(seed, 20) for seed in range(5)], 300)
    tokenizer.save_pretrained(str(folder / "tokenizer"))
    train = {"childes": [_prose(n) for n in range(40)], "wiki": [_prose(n, 4) for n in range(40, 60)]}
    val = {"childes": [_prose(n) for n in range(60, 68)], "wiki": [_prose(n, 3) for n in range(68, 76)]}
    return {
        "tokenizer": str(folder / "tokenizer"),
        "text_data": str(write_text_corpus(folder / "text", tokenizer, train)),
        "text_val_data": str(write_text_corpus(folder / "text_val", tokenizer, val)),
        "train_data": _write_features(folder / "train", captions(30, seed=1)),
        "val_data": _write_features(folder / "val", captions(8, seed=2), seed=2),
        "vision_encoder": "features",
        "vision_tuning": "frozen",
        "text_loss_weight": 1.0,
        "text_batch_size": 4,
        "text_seq_len": 20,
    }


@pytest.fixture
def both(corpora: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Text and pairs; each step takes a batch of either. Validation draws no pictures, which takes long."""
    monkeypatch.setattr(HeldOut, "_pictures", lambda *_: {})
    return corpora


@pytest.fixture
def text_alone(both: dict[str, object]) -> dict[str, object]:
    tokens, width = FEATURE_SHAPE
    return {**both, "train_data": None, "val_data": None, "feature_tokens": tokens, "feature_dim": width}
