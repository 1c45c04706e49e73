"""Golden runs: the entry point trained for a few steps, and what it must give bit for bit.

A golden run is recorded as its losses and a hash of each tensor of its last checkpoint. Hashes compare bits, which
other processors and other versions of torch do not promise; there the losses are compared to a tolerance instead.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from bitgen.data.record_writer import write_dataset
from bitgen.data.records import DatasetInfo, Record
from bitgen.data.text_shards import TextInfo, TextShardWriter, encode_documents, tokenizer_sha256, write_text_info
from bitgen.data.tokenizer import train_bpe
from support.warm import run_warm

REPOSITORY = Path(__file__).resolve().parents[2]
ENTRY = REPOSITORY / "src" / "train_stage1_vision_language.py"
FOLDER = REPOSITORY / "tests" / "golden"

WORDS = "the cat sat on a mat and saw the big red dog run far away from here".split()
COMMON: dict[str, object] = dict(
    vision_hidden_size=32,
    vision_num_layers=2,
    vision_num_heads=2,
    vision_patch_size=7,
    image_size=28,
    lora_rank=4,
    lora_alpha=8,
    lora_lr_warmup_steps=2,
    lora_lr_factor=0.7,
    lora_plus_ratio=3.0,
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
    itm_pooling="last",
    optimizer="adamw",
    gate_start=0.0,
    batch_size=4,
    grad_accum_steps=2,
    learning_rate=3e-3,
    warmup_steps=3,
    max_steps=8,
    lora_warmup_steps=4,
    precision="fp32",
    device="cpu",
    num_workers=0,
    save_steps=2,
    eval_steps=3,
    log_steps=1,
    max_checkpoints_to_keep=9,
    ema_decay=0.9,
    progress=False,
    output_dir="checkpoints/golden",
    log_dir="logs/golden",
)
SCENES: dict[str, object] = dict(
    vision_encoder="random",
    train_data="scenes",
    val_data="scenes",
    tokenizer="train",
    scenes_train=24,
    scenes_val=6,
    text_loss_weight=0.5,
    label_smoothing=0.1,
    token_dropout=0.1,
)
IMAGES = {**SCENES, "train_data": "images", "val_data": None, "feature_cache": "cache", "caption_sampling": "one"}
FULL: dict[str, object] = {**SCENES, "vision_tuning": "full", "val_data": None, "text_loss_weight": 0.0}
TEXT: dict[str, object] = dict(
    vision_encoder="features",
    vision_tuning="frozen",
    train_data="features",
    text_data="text",
    text_val_data="text_val",
    tokenizer="tokenizer",
    text_loss_weight=1.0,
    itm_likelihood=True,
    text_batch_size=3,
    text_seq_len=20,
    optimizer="muon",
    positions="rope",
    feed_forward="swiglu",
)
# name -> (settings, processes)
RUNS: dict[str, tuple[dict[str, object], int]] = {
    "two_phases": (SCENES, 1),
    "two_phases_two_processes": (SCENES, 2),
    "feature_cache": (IMAGES, 1),
    "full_tuning": (FULL, 1),
    "text_beside_pairs": (TEXT, 1),
    "text_beside_pairs_two_processes": (TEXT, 2),
}


def write_data(folder: Path) -> None:
    """The data that :data:`RUNS` name: images, features, a tokenizer and a text."""
    random = np.random.default_rng(1)
    images, features = [], []
    for number in range(20):
        pixels = random.integers(0, 256, (30, 40, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        captions = [f"a {WORDS[number % 7]} image number {number}", f"the {WORDS[number % 5]} {WORDS[number % 11]}"]
        captions = captions[: 1 + number % 2]
        images.append(Record(f"{number}.png", buffer.getvalue(), captions))
        features.append(Record(f"{number}.jpg", random.standard_normal((4, 6)).astype(np.float32).tobytes(), captions))
    write_dataset(folder / "images", images, DatasetInfo("images", "made up"))
    info = DatasetInfo("features", "made up", feature_shape=(4, 6), feature_dtype="float32")
    write_dataset(folder / "features", features, info)
    documents = [" ".join(random.choice(WORDS, size=random.integers(3, 30))) for _ in range(40)]
    tokenizer = train_bpe(documents, 300)
    tokenizer.save_pretrained(str(folder / "tokenizer"))
    for name, part in {"text": documents[:32], "text_val": documents[32:]}.items():
        (folder / name).mkdir()
        writer = TextShardWriter(folder / name, "made_up", len(tokenizer))
        for document in part:
            writer.add(encode_documents(tokenizer, [document])[0], len(document.split()))
        info = TextInfo(tokenizer_sha256(tokenizer), len(tokenizer), "uint16", (writer.close(),), {}, {})
        write_text_info(folder / name, info)


def train(name: str, folder: Path, **changes: object) -> None:
    """Run the entry in ``folder``, forked from a process that has imported it; raises ``AssertionError``, with what it
    said, where it fails."""
    settings, processes = RUNS[name]
    settings = {**COMMON, **settings, **changes}
    if processes > 1:
        settings = {**settings, "use_ddp": True, "num_gpus": processes}
    flags = [part for setting, value in settings.items() for part in (f"--{setting}", str(value))]
    done = run_warm([ENTRY, *flags], processes, timeout=280, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr


def result_of(folder: Path) -> dict[str, dict[str, Any]]:
    """``losses`` of each logged step, exact, and ``tensors``: a hash of each of the newest checkpoint's."""
    lines = (folder / "logs/golden/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    losses = {
        f"{record['step']} {name}": value
        for record in map(json.loads, lines)
        for name, value in record.items()
        if name.startswith(("train/", "val/")) and isinstance(value, float)
    }
    checkpoint = (folder / "checkpoints/golden/latest").resolve()
    tensors = {}
    for file in ("model", "ema"):
        for tensor_name, tensor in load_file(checkpoint / f"{file}.safetensors").items():
            tensors[f"{file} {tensor_name}"] = _hash(tensor)
    state = torch.load(checkpoint / "training_state.pt", map_location="cpu", weights_only=True)
    tensors |= {path: _hash(tensor) for path, tensor in _tensors(state, "state")}
    return {"losses": losses, "tensors": tensors}


def _tensors(value: object, path: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor in nested dicts and lists, by its path; what only groups others has no name in it."""
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _tensors(inner, path if key == "objective" else f"{path} {key}")
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            yield from _tensors(inner, f"{path} {index}")


def _hash(tensor: torch.Tensor) -> str:
    content = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode() + content).hexdigest()[:16]


def platform() -> dict[str, str]:
    """What bits depend on beside the code: the processor and the version of torch."""
    model = next(
        (line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith(("model name", "CPU part"))), "unknown"
    )
    return {"torch": torch.__version__.split("+")[0], "cpu": f"{model} {torch.backends.cpu.get_cpu_capability()}"}


def processor() -> str:
    """The processor's name as that of a folder: ``amd_epyc_avx512``."""
    return re.sub(r"\W+", "_", platform()["cpu"].lower()).strip("_")


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
