"""Runs of the real entry points on a tiny model and a few built-in scenes."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bitgen.config import Config
from bitgen.machine.devices import start_processes
from bitgen.run import build_trainer
from bitgen.tasks import TASKS
from bitgen.tasks.stage1_validation import HeldOut
from bitgen.training.trainer import Trainer
from support import reasoning
from support.data import write_features, write_text_corpus
from support.runs import TINY, command
from support.tokenizers import WORDS, prose, tiny_tokenizer

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


@pytest.fixture
def main(tiny_config, monkeypatch: pytest.MonkeyPatch, capfd) -> Callable[..., tuple[int, str]]:
    """``main(**settings)`` runs the entry in this process; its exit status, and what it wrote to stderr."""

    def run(run: str = "run", drop: tuple[str, ...] = (), **settings: object) -> tuple[int, str]:
        _, entry, *flags = command(tiny_config(run), **settings)
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


@pytest.fixture(scope="session")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """Settings of a text of two sources, of held-out text, and of pairs as features, in equal numbers of batches."""

    def captions(count: int, seed: int) -> list[list[str]]:
        each = [[f"a {WORDS[(n + seed) % 16]} and a {WORDS[n % 7]}", prose(1000 * seed + n, 1)] for n in range(count)]
        return [own[: 1 + n % 2] for n, own in enumerate(each)]

    folder = tmp_path_factory.mktemp("corpora")
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(str(folder / "tokenizer"))
    train = {"childes": [prose(n) for n in range(40)], "wiki": [prose(n, 4) for n in range(40, 60)]}
    val = {"childes": [prose(n) for n in range(60, 68)], "wiki": [prose(n, 3) for n in range(68, 76)]}
    return {
        "tokenizer": str(folder / "tokenizer"),
        "text_data": str(write_text_corpus(folder / "text", tokenizer, train)),
        "text_val_data": str(write_text_corpus(folder / "text_val", tokenizer, val)),
        "train_data": str(write_features(folder / "train", captions(30, seed=1))),
        "val_data": str(write_features(folder / "val", captions(8, seed=2), seed=2)),
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
    return {**both, "train_data": None, "val_data": None, "feature_tokens": 4, "feature_dim": 6}


@pytest.fixture(scope="session")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run of stage 1 that stage 2 can begin with; nobody changes it."""
    config = reasoning.config_of(tmp_path_factory.mktemp("captioner_of_stage2"))
    reasoning.trained(config)
    return config.output.output_dir


@pytest.fixture(scope="session")
def answering(tmp_path_factory: pytest.TempPathFactory, captioner: str) -> str:
    """A run of stage 2; nobody changes it."""
    config = reasoning.config_of(tmp_path_factory.mktemp("answering"), init_from=captioner, **reasoning.QUESTIONS)
    reasoning.trained(config)
    return config.output.output_dir
