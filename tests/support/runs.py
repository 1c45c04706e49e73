"""Runs: tiny settings, command lines, processes, and what a run leaves behind."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file

from bitgen.checkpoint.format import find_checkpoint, split_state
from bitgen.checkpoint.store import CheckpointStore
from bitgen.config import Config
from bitgen.data.tokenizer import build_tokenizer
from bitgen.model.configuration_bitgen import BitGenConfig
from bitgen.model.modeling_bitgen import BitGenModel
from bitgen.objectives.feature_queue import FeatureQueue
from bitgen.training.progress import Progress
from bitgen.training.trainer import Trainer
from support.models import FEATURES, tiny_config
from support.warm import Started, run_warm

REPOSITORY = Path(__file__).resolve().parents[2]
ENTRY = REPOSITORY / "src" / "train_stage1_vision_language.py"
WORKER = REPOSITORY / "tests" / "integration" / "ddp_worker.py"

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


# ---- processes ----


def environment(**more: str) -> dict[str, str]:
    """For subprocesses: one thread each, the sources and ``support`` on the path, and ``more``."""
    path = os.pathsep.join((str(REPOSITORY / "src"), str(REPOSITORY / "tests")))
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **more}


def torchrun(script: Path, *arguments: object) -> list[str]:
    """The command line of a script on two processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return [*launcher, str(script), *map(str, arguments)]


def command(config: Config, processes: int = 1, **settings: object) -> list[str]:
    """The command line of a run, on one process or two."""
    if processes > 1:
        settings = {**settings, "use_ddp": True, "num_gpus": processes}
    flags = [part for name, value in {**config.flat(), **settings}.items() for part in (f"--{name}", str(value))]
    return torchrun(ENTRY, *flags) if processes > 1 else [sys.executable, str(ENTRY), *flags]


def execute(arguments: list[str], timeout: float = 240, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, with ``more`` in its environment."""
    return subprocess.run(
        arguments, capture_output=True, text=True, env=environment(**more), timeout=timeout, check=False, cwd=REPOSITORY
    )


def run_code(code: str, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a new process."""
    return execute([sys.executable, "-c", code, *arguments], **more)


def two_ranks(config: Config, holds: Path, stop_at: int = 0, nan_at: int = 2) -> list[dict[str, Any]]:
    """Train on two processes, as ``ddp_worker.py`` says; what each of them held at the end, in files ``holds.RANK``."""
    settings = holds.with_suffix(".json")
    settings.write_text(json.dumps({**config.flat(), "use_ddp": True, "num_gpus": 2}))
    done = run_warm([WORKER, settings, holds, stop_at, nan_at], processes=2)
    assert done.returncode == 0, done.stdout + done.stderr
    return [torch.load(f"{holds}.{rank}", weights_only=True) for rank in (0, 1)]


def assert_equal_ranks(first: dict[str, Any], second: dict[str, Any]) -> None:
    """Assert that two processes held the same weights, gradients and queue, bit for bit."""
    for what in ("parameters", "gradients", "queue"):
        assert first[what].keys() == second[what].keys()
        for name, value in first[what].items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(second[what][name])), (what, name)


def wait_for_step(log_dir: Path, step: int, process: subprocess.Popen | Started) -> None:
    """Wait until a run that ``process`` does has logged ``step`` lines."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        path = log_dir / "metrics.jsonl"
        if path.exists() and path.read_bytes().count(b"\n") >= step:
            return
        time.sleep(0.01)
    raise AssertionError(f"step {step} was not reached: {process.communicate()}")


# ---- trainers and what they leave ----


def gradients_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    """The gradients of the last step that ``trainer`` took, filled in as it trains."""
    gradients: dict[str, torch.Tensor] = {}
    clamp = trainer.objective.clamp_temperature_

    def look() -> None:
        named = trainer.objective.named_parameters()
        gradients.update((name, p.grad.clone()) for name, p in named if p.grad is not None)
        clamp()

    trainer.objective.clamp_temperature_ = look
    return gradients


def fit_until(trainer: Trainer, step: int) -> bool:
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


def metrics(log_dir: str | Path) -> list[dict[str, Any]]:
    """The records of ``metrics.jsonl``."""
    return [json.loads(line) for line in (Path(log_dir) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def scalars(trainer: Trainer, name: str = "train/loss") -> dict[int, float]:
    """What a run logged under a name, by step."""
    return {record["step"]: record[name] for record in metrics(trainer.monitor.log_dir) if name in record}


def same(a: object, b: object, where: str = "") -> None:
    """Assert that two nested states are equal, tensors bit for bit; the message says where they part."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            same(x, y, f"{where}[{i}]")
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), where
    else:
        assert a == b, where


def same_checkpoint(one: str | Path, other: str | Path) -> None:
    """Assert that the newest checkpoints of two runs hold the same weights and the same state, bit for bit."""
    first, second = (find_checkpoint("auto", folder) for folder in (one, other))
    for name in ("model.safetensors", "ema.safetensors"):
        if (first.path / name).exists() or (second.path / name).exists():
            same(load_file(first.path / name), load_file(second.path / name), name)
    same(first.state, second.state, "state")


# ---- a run that nobody trained ----

_WORDS = "a the cat dog mat hill sat runs on over red blue two and it is caption for this image".split()
_written: dict[str, Path] = {}


def scratch() -> Path:
    """A new folder, deleted when the tests end; for what many tests share and none changes."""
    folder = tempfile.mkdtemp(prefix="bitgen-tests-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def written_run(features: bool = False, settings: dict[str, object] | None = None, **changes: object) -> Path:
    """The folder of a run whose model has every part switched on, with a checkpoint ``step-00000007`` and two by words,
    ``chck_1M`` and ``chck_10M``; its weights are random, but no gate is closed, no adapter zero and the memory's state
    not its prior. The same arguments give the same folder: who changes it takes a copy."""
    key = repr((features, settings, sorted(changes.items())))
    if key not in _written:
        folder = scratch() / "run"
        texts = [f"{one} {two} {three}" for one in _WORDS for two in _WORDS for three in _WORDS[::3]]
        tokenizer = build_tokenizer("train", texts, 320, folder / "tokenizer")
        sizes = tiny_config(
            FEATURES if features else None, **{"vocab_size": len(tokenizer), "max_seq_len": 40, **changes}
        )
        encoder = "features" if features else "random"
        config = Config().replace(vision_encoder=encoder, train_data="scenes", tokenizer="train", text_loss_weight=1.0)
        config = config.replace(**(settings or {}))
        store = CheckpointStore(folder, keep=9)
        for step, millions in ((1, 1), (2, 10)):
            _write_checkpoint(step, store, config, sizes).rename(folder / f"chck_{millions}M")
        _write_checkpoint(7, store, config, sizes)
        _written[key] = folder
    return _written[key]


def _write_checkpoint(step: int, store: CheckpointStore, config: Config, sizes: BitGenConfig) -> Path:
    torch.manual_seed(step)
    model = BitGenModel(sizes)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gate") or "lora_B" in name:
                parameter.normal_()
            elif name.startswith("embeddings"):
                parameter.mul_(20)
        if model.memory is not None:
            model.memory.state.normal_()
    own, base = split_state(model, model.base_names())
    queue = FeatureQueue(64, sizes.embed_dim, sizes.max_seq_len, sizes.pooled_tokens)
    for features in (queue.entries.image_features, queue.entries.text_features):
        features[:50].normal_()
    queue.filled = queue.position = 50
    progress = asdict(Progress(step=step, words_seen=1_234_567))
    state = {"step": step, "phase": 2, "progress": progress, "objective": {"queue": queue.state_dict()}}
    state |= {"versions": {"transformers": transformers.__version__}}
    files = {"config.yaml": config.to_yaml(), "config.json": json.dumps(sizes.to_dict())}
    return store.save(step, own, state, files, store.store_base(base))
