"""Steps of a model of parts against the same model in transformers and peft, and against the bare language model.

    python benchmarks/vlm_throughput.py --captions ../shared/data/flickr8k/captions.txt

The peer is LlavaForConditionalGeneration with peft's LoRA in a plain loop: a padded batch, every picture through the
encoder, logits of every position. Ours is the model of `src/train_vlm.py` on the same batch of real captions, packed
into fewer rows (`packing`), with encoder, connector and language model of the same sizes, optimizer and precision. Half
of the rows are conversations whose answers are the captions of one picture. Weights and pixels are random, and decoding
is in no row. `stage1`: the connector trains; `stage2`: LoRA too. `cached`: features from a feature cache on disk;
`live`: the encoder runs. `floor`: forward and backward of the bare language model on as many tokens as the batch has
without padding, with logits where they are supervised.

One JSON line a row. Rows are measured in turn, round after round, so that a machine that slows down slows all of them;
`speedup` is the median over the rounds of peer / ours in one round, `floor_share` of floor / ours. Memory is the
highest resident size of a process that runs one row alone; on a GPU (`--device cuda`), the most that its tensors take.
"""

from __future__ import annotations

import argparse
import atexit
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import torch
from measuring import timed
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer, CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from bitgen.data.conversations.dataset import VisualCollator
from bitgen.data.conversations.packing import PackingCollator
from bitgen.feature_cache.description import CacheDescription
from bitgen.feature_cache.store import FeatureCache
from bitgen.machine.memory import peak_resident_bytes
from bitgen.objectives.supervised import NextTokens
from bitgen.vlm.adapter_config import AdapterConfig
from bitgen.vlm.adapters import attach
from bitgen.vlm.connectors import ConnectorConfig, build_connector
from bitgen.vlm.language import build_language_model, supervised_logits
from bitgen.vlm.modeling import VisionLanguageModel
from bitgen.vlm.splice import IMAGE_ID
from bitgen.vlm.vision import build_tower

IMAGE, PAD, END, FIRST = 3, 0, 2, 10  # ids of the peer's image token, padding, end, and the first word
VOCABULARY, SIDE, PATCH, RANK, IMAGES, POSITIONS = 49_152, 224, 16, 16, 256, 512
TOKENS = (SIDE // PATCH) ** 2
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ROWS = (
    "peer_stage1",
    "peer_stage2",
    "stage1_cached",
    "stage2_cached",
    "stage1_live",
    "floor_stage1",
    "floor_stage2",
)
PEER_OF = {"stage1_cached": "peer_stage1", "stage2_cached": "peer_stage2", "stage1_live": "peer_stage1"}
FLOOR_OF = {"stage1_cached": "floor_stage1", "stage2_cached": "floor_stage2"}
Step = Callable[[], None]


def sizes(flags: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Configurations of the encoder and of the language model."""
    vision = dict(
        hidden_size=flags.vision_width,
        intermediate_size=4 * flags.vision_width,
        num_hidden_layers=flags.vision_layers,
        num_attention_heads=flags.vision_width // 64,
        image_size=SIDE,
        patch_size=PATCH,
    )
    language = dict(
        hidden_size=flags.width,
        intermediate_size=4 * flags.width,
        num_hidden_layers=flags.layers,
        num_attention_heads=flags.width // 64,
        num_key_value_heads=flags.width // 64,
        vocab_size=VOCABULARY,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=END,
        pad_token_id=PAD,
    )
    return vision, language


def samples_of(flags: argparse.Namespace) -> list[dict[str, Any]]:
    """Pictures and what is said of them, as ``ConversationDataset`` gives them, without the pixels.

    Every other row is a caption; those between are conversations, whose answers are the captions of one picture.
    """
    captions: dict[str, list[str]] = {}
    for line in Path(flags.captions).read_text(encoding="utf-8").splitlines()[1:]:
        picture, text = line.split(",", 1)
        captions.setdefault(picture, []).append(text.strip())
    tokenizer = AutoTokenizer.from_pretrained(flags.tokenizer) if flags.tokenizer else None

    def ids_of(text: str) -> list[int]:
        ids = tokenizer(text)["input_ids"] if tokenizer else [hash_of(word) for word in text.split()]
        return [min(max(token, FIRST), VOCABULARY - 1) for token in ids]

    found = []
    for index, texts in enumerate(list(captions.values())[: flags.batch_size]):
        ids, labels = [IMAGE_ID] * TOKENS, [-100] * TOKENS
        for turn, text in enumerate(texts[: flags.turns if index % 2 else 1]):
            question = ids_of("Describe the image in other words.") if turn else []
            ids, labels = ids + question, labels + [-100] * len(question)
            answer = [*ids_of(text), END]
            ids, labels = ids + answer, labels + answer
        sample = {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels), "frames": [1], "index": index}
        found.append({**sample, "image_id": index, "words": len(texts[0].split()), "truncated": False})
    return found


def hash_of(word: str) -> int:
    """An id for a word, the same in every process."""
    return FIRST + sum(ord(letter) * 31**place for place, letter in enumerate(word)) % (VOCABULARY - FIRST)


def stepping(model: torch.nn.Module, loss: Callable[[], torch.Tensor], flags: argparse.Namespace) -> Step:
    """A step of training: loss, backward, AdamW."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(flags.device, torch.bfloat16, enabled=flags.precision == "bf16"):
            value = loss()
        value.backward()
        optimizer.step()

    return step


def peer(flags: argparse.Namespace, batch: dict[str, Any], with_lora: bool) -> Step:
    """A step as a user of transformers and peft writes it."""
    vision, language = sizes(flags)
    model: Any = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(**vision),
            text_config=LlamaConfig(**language),
            image_token_index=IMAGE,
            image_seq_length=TOKENS,
            vision_feature_layer=-2,
        )
    )
    model.requires_grad_(False)
    if with_lora:
        names = rf".*language_model.*\.({'|'.join(PROJECTIONS)})"
        model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=names))
    for name, parameter in model.named_parameters():
        if "multi_modal_projector" in name:
            parameter.requires_grad_(True)
    model.to(flags.device).train()
    inputs = {name: batch[name] for name in ("labels", "attention_mask")}
    inputs["input_ids"] = batch["input_ids"].masked_fill(batch["input_ids"] == IMAGE_ID, IMAGE)
    pixels = torch.randn(len(inputs["input_ids"]), 3, SIDE, SIDE, device=flags.device)
    return stepping(model, lambda: model(pixel_values=pixels, **inputs).loss, flags)


def ours(flags: argparse.Namespace, batch: dict[str, Any], with_lora: bool, cached: bool) -> Step:
    """A step of the model of parts. From the cache it holds no encoder, as in training."""
    vision, language = sizes(flags)
    tower = build_tower({"model_type": "clip_vision_model", **vision}, -2)
    lm = build_language_model({"model_type": "llama", **language}).model
    lm.requires_grad_(False)
    if with_lora:
        attach(lm, AdapterConfig(kind="lora", rank=RANK, alpha=2 * RANK, dropout=0.0, targets="all-linear"))
    plan = ConnectorConfig("mlp", flags.vision_width, flags.width, TOKENS, 1, 1, flags.width // 64)
    model = VisionLanguageModel(tower, build_connector(plan), lm)
    objective = NextTokens(model)
    objective.to(flags.device).train()
    tensors = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}
    if not cached:
        pixels = torch.randn(flags.batch_size, 3, SIDE, SIDE, device=flags.device)
        return stepping(objective, lambda: objective({**tensors, "pictures": pixels}).loss, flags)
    for parameter in tower.parameters():
        parameter.data = torch.empty(0, device=flags.device)
    folder = tempfile.mkdtemp(prefix="vlm_throughput_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    shape = (IMAGES, TOKENS, flags.vision_width)
    cache = FeatureCache(folder, CacheDescription("random", "random", "random", "bf16", "bf16", shape))
    cache.create()
    for shard in cache.missing_shards():
        cache.write_shard(shard, torch.randn(len(cache.description.rows_of(shard)), *shape[1:]))

    def loss() -> torch.Tensor:
        features = cache.read(torch.randint(IMAGES, (flags.batch_size,))).to(flags.device).float()
        return objective({**tensors, "features": features}).loss

    return stepping(objective, loss, flags)


def floor(flags: argparse.Namespace, batch: dict[str, Any], with_lora: bool) -> Step:
    """Forward and backward of the language model alone."""
    lm = build_language_model({"model_type": "llama", **sizes(flags)[1]}).model.requires_grad_(False)
    if with_lora:
        attach(lm, AdapterConfig(kind="lora", rank=RANK, alpha=2 * RANK, dropout=0.0, targets="all-linear"))
    lm.to(flags.device)
    rows, tokens = len(batch["input_ids"]), int(batch["attention_mask"].sum())
    length, supervised = round(tokens / rows), int((batch["labels"] >= 0).sum())
    embeds = torch.randn(rows, length, flags.width, requires_grad=True, device=flags.device)
    keep = torch.zeros(rows, length, dtype=torch.bool, device=flags.device)
    keep[:, -(supervised // rows) - 1 : -1] = True
    mask = torch.ones(rows, length, dtype=torch.long, device=flags.device)
    targets = torch.randint(FIRST, VOCABULARY, (int(keep.sum()),), device=flags.device)

    def step() -> None:
        with torch.autocast(flags.device, torch.bfloat16, enabled=flags.precision == "bf16"):
            logits = supervised_logits(lm, embeds, mask, keep)
        torch.nn.functional.cross_entropy(logits.float(), targets).backward()

    return step


def section(name: str, flags: argparse.Namespace) -> Step:
    """The step of a row."""
    torch.manual_seed(0)
    packed = flags.packing == "yes" and not name.startswith(("peer", "floor"))
    batch = (PackingCollator(PAD, POSITIONS) if packed else VisualCollator(PAD))(samples_of(flags))
    batch = {name: value.to(flags.device) if hasattr(value, "to") else value for name, value in batch.items()}
    stage2 = "stage2" in name
    if name.startswith("peer"):
        return peer(flags, batch, stage2)
    return floor(flags, batch, stage2) if name.startswith("floor") else ours(flags, batch, stage2, "cached" in name)


def memory_of(name: str, argv: list[str]) -> int:
    """Most bytes that a row takes in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, *argv, "--alone", name], capture_output=True, text=True, check=True
    )
    return int(done.stdout.split()[-1])


def main(argv: list[str] | None = None) -> None:
    """Measure all rows and print a JSON line each."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", required=True, help="Flickr8k's captions.txt")
    parser.add_argument("--tokenizer", help="folder of a tokenizer of 49,152 tokens (default: a hash of each word)")
    for name, value in dict(width=256, layers=6, vision_width=384, vision_layers=12, batch_size=8, rounds=5).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--turns", type=int, default=5, help="questions of a conversation (1: captions alone)")
    parser.add_argument("--packing", choices=("yes", "no"), default="yes", help="no: ours pads as the peer does")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--memory", choices=("yes", "no"), default="yes", help="no: leave the processes of one row out")
    parser.add_argument("--alone", choices=ROWS, help=argparse.SUPPRESS)
    flags = parser.parse_args(argv)
    if flags.alone:
        step = section(flags.alone, flags)
        step(), step()
        print(torch.cuda.max_memory_allocated() if flags.device == "cuda" else peak_resident_bytes())
        return
    steps = {name: section(name, flags) for name in ROWS}
    for step in steps.values():
        step()
    seconds: dict[str, list[float]] = {name: [] for name in ROWS}
    for _ in range(flags.rounds):
        for name, step in steps.items():
            seconds[name].append(timed(step, torch.device(flags.device)))
    memory = {name: memory_of(name, argv) for name in ROWS if flags.memory == "yes" and name[:5] != "floor"}

    def ratio(over: str, under: str) -> float:
        return round(statistics.median(a / b for a, b in zip(seconds[over], seconds[under], strict=True)), 3)

    batch = VisualCollator(PAD)(samples_of(flags))
    real = int(batch["attention_mask"].sum())
    print(json.dumps({"batch": list(batch["input_ids"].shape), "tokens": real, "threads": torch.get_num_threads()}))
    for name in ROWS:
        row: dict[str, Any] = {"row": name, "seconds": round(statistics.median(seconds[name]), 4)}
        if name in memory:
            row["peak_bytes"] = memory[name]
        if name in PEER_OF:
            row["speedup"] = ratio(PEER_OF[name], name)
        if name in PEER_OF and memory:
            row["memory_share"] = round(memory[name] / memory[PEER_OF[name]], 3)
        if name in FLOOR_OF:
            row["floor_share"] = ratio(FLOOR_OF[name], name)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
