"""Some sixty bad inputs for each entry: one line that names the thing, no traceback, no hang, status not 0."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bitgen.commands import ask, caption, evaluate, export, memory, train
from bitgen.data.tokenizer import train_bpe
from bitgen.guards.printable import printable
from faults.bad_inputs import HUGE, UNNAMED, Entry, bad_paths_in, cases, command, fault_of
from support.runs import REPOSITORY, TINY, written_run
from support.tiny_vlms import exported_vlm

# ---- entries ----


def _script(name: str) -> Callable[[list[str]], None]:
    """A preparation script as ``python data_prep/NAME.py`` runs it."""

    def main(argv: list[str]) -> None:
        flags, script = importlib.import_module("_common.flags"), importlib.import_module(name)
        flags.run(lambda _: script.main(argv))

    return main


TRAIN = {f"--{name}": str(value) for name, value in TINY.items()}
TRAIN |= {
    "--train_data": "scenes",
    "--device": "cpu",
    "--output_dir": "NEW",
    "--log_dir": "NEW LOG",
    "--max_steps": "1",
    "--lora_warmup_steps": "0",
}
ENTRIES = {
    "train": Entry(
        train.main,
        TRAIN,
        ("--config", "--train_data", "--val_data", "--text_data", "--tokenizer", "--init_from", "--resume"),
        ("--batch_size", "--learning_rate", "--vocab_size", "--num_layers", "--temperature", "--max_seq_len"),
        ("--precision", "--optimizer", "--vision_encoder"),
    ),
    "evaluate": Entry(
        evaluate.main,
        {"--checkpoint": "RUN", "--data": "scenes", "--max_images": "4", "--bootstrap": "0", "--device": "cpu"},
        ("--checkpoint", "--data", "--captioner", "--output"),
        ("--rerank_top_k", "--rerank_cosine_weight", "--num_beams", "--batch_size", "--max_images", "--bootstrap"),
        ("--task", "--precision"),
    ),
    "export": Entry(
        export.main,
        {"--checkpoint": "RUN", "--output": "NEW"},
        ("--checkpoint", "--results"),
        ("--merge_lora", "--words_seen_checkpoints"),
        ("--private",),
    ),
    "caption": Entry(
        caption.main, {"--model": "RUN"}, ("--model", "IMAGE"), ("--num_beams", "--max_new_tokens"), (), ("IMAGE",)
    ),
    "ask": Entry(
        ask.main,
        {"--model": "VLM", "--question": "What is it?", "--max_new_tokens": "2"},
        ("--model", "IMAGE"),
        ("--num_beams", "--max_new_tokens", "--temperature"),
        ("--device",),
        ("IMAGE",),
    ),
    "export of parts": Entry(
        export.main,
        {"--checkpoint": "VLM", "--output": "NEW"},
        ("--results", "--checkpoint"),
        ("--merge_lora", "--words_seen_checkpoints"),
        ("--format",),
    ),
    "memory": Entry(
        memory.main,
        {"--model": "RUN", "--memory": "NEW"},
        ("--model", "--memory", "IMAGE"),
        ("--slots",),
        ("--device",),
        ("teach", "IMAGE", "a text"),
    ),
    "flickr8k": Entry(
        _script("flickr8k"),
        {"--captions": "CAPTIONS", "--split": "SPLIT", "--images": "FOLDER", "--output": "NEW"},
        ("--captions", "--split", "--images"),
        ("--limit", "--max_failed_fraction", "--max_image_pixels"),
    ),
    "coco": Entry(
        _script("coco"),
        {"--annotations": "COCO", "--images": "FOLDER", "--output": "NEW"},
        ("--annotations", "--images", "--exclude"),
        ("--limit", "--max_failed_fraction", "--max_image_pixels"),
    ),
    "image_folder": Entry(
        _script("image_folder"),
        {"--folder": "FOLDER", "--output": "NEW"},
        ("--folder", "--exclude"),
        ("--limit", "--max_failed_fraction", "--max_image_pixels"),
        ("--caption_column",),
    ),
    "conversations": Entry(
        _script("conversations"),
        {"--conversations": "CONVERSATIONS", "--images": "FOLDER", "--output": "NEW"},
        ("--conversations", "--images"),
        ("--frames", "--limit", "--max_failed_fraction", "--max_image_pixels"),
        ("--check_images",),
    ),
    "localized_narratives": Entry(
        _script("localized_narratives"),
        {"--narratives": "NARRATIVES", "--images": "FOLDER", "--output": "NEW"},
        ("--narratives", "--images"),
        ("--limit", "--max_failed_fraction"),
    ),
    "cc3m": Entry(
        _script("cc3m"),
        {"--tsv": "PAIRS", "--output": "NEW"},
        ("--tsv",),
        ("--concurrency", "--timeout", "--retries", "--max_redirects", "--max_bytes", "--image_size", "--jpeg_quality"),
        ("--resize_side",),
    ),
    "babylm_text": Entry(
        _script("babylm_text"),
        {"--text": "TEXT", "--tokenizer": "TOKENIZER", "--output": "NEW"},
        ("--text", "--tokenizer"),
        ("--max_document_words", "--min_document_words", "--val_fraction", "--limit"),
    ),
    "train_tokenizer": Entry(
        _script("train_tokenizer"),
        {"--text": "TEXT", "--output": "NEW"},
        ("--text", "--captions"),
        ("--vocab_size", "--max_document_words"),
    ),
    "babylm_multimodal": Entry(
        _script("babylm_multimodal"),
        {"--part": "local_narr", "--folder": "FOLDER", "--output": "NEW"},
        ("--folder", "--exclude"),
        ("--limit", "--max_failed_fraction"),
        ("--part",),
    ),
    "cache_features": Entry(
        _script("cache_features"),
        {**TRAIN, "--feature_cache": "NEW"},
        ("--config", "--train_data", "--init_from"),
        ("--batch_size", "--image_size", "--vision_num_layers"),
    ),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _scripts() -> Iterator[None]:
    sys.path.insert(0, str(REPOSITORY / "data_prep"))
    yield
    sys.path.remove(str(REPOSITORY / "data_prep"))


@pytest.fixture
def bad_paths(tmp_path_factory) -> dict[str, str]:
    return bad_paths_in(tmp_path_factory.mktemp("bad") / "paths")


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> dict[str, str]:
    """What the placeholders in :data:`ENTRIES` stand for."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("good")
    (folder / "images").mkdir()
    for number in range(3):
        Image.new("RGB", (20, 20), (60 * number, 0, 0)).save(folder / "images" / f"{number}.png")
    (folder / "captions.txt").write_text("image,caption\n" + "".join(f"{n}.png,a square\n" for n in range(3)))
    (folder / "split.txt").write_text("".join(f"{n}.png\n" for n in range(3)))
    (folder / "images" / "metadata.csv").write_text(
        "file_name,text\n" + "".join(f"{n}.png,a square\n" for n in range(3))
    )
    names = [{"id": n, "file_name": f"{n}.png"} for n in range(3)]
    captions = [{"image_id": n, "caption": "a square"} for n in range(3)]
    (folder / "coco.json").write_text(json.dumps({"images": names, "annotations": captions}))
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "a square"}]
    (folder / "talk.json").write_text(json.dumps([{"image": f"{n}.png", "conversations": turns} for n in range(3)]))
    lines = [json.dumps({"image_id": str(n), "caption": "a square"}) for n in range(3)]
    (folder / "narratives.jsonl").write_text("\n".join(lines))
    (folder / "pairs.tsv").write_text("".join(f"a square\thttp://127.0.0.1:9/{n}.png\n" for n in range(3)))
    (folder / "part.train").write_text("A sentence of words.\n\n" * 50)
    train_bpe(["a square", "a sentence of words"] * 50, 280).save_pretrained(str(folder / "tokenizer"))
    found = {"RUN": written_run(), "CAPTIONS": folder / "captions.txt", "SPLIT": folder / "split.txt"}
    found |= {"NARRATIVES": folder / "narratives.jsonl", "PAIRS": folder / "pairs.tsv", "TEXT": folder / "part.train"}
    found |= {"CONVERSATIONS": folder / "talk.json", "VLM": exported_vlm(folder)}
    found |= {"TOKENIZER": folder / "tokenizer"}
    found |= {"COCO": folder / "coco.json", "FOLDER": folder / "images", "IMAGE": folder / "images" / "1.png"}
    return {name: str(path) for name, path in found.items()}


def _may_be_meant(flag: str, value: str, paths: dict[str, str]) -> bool:
    """Whether a value is a good one after all: then it only must not end in a traceback."""
    if value == HUGE or (flag, value) == ("--rerank_cosine_weight", "-1"):
        return True
    if value in ("", "None") and flag in ("--resume", "--init_from", "--val_data", "--text_data", "--tokenizer"):
        return True  # off
    if flag == "--config" and value in (paths["empty file"], paths["null.json"]):
        return True  # no settings: the defaults
    if flag == "--text" and Path(value).suffix in (".json", ".yaml", ".txt"):
        return True  # any text will do
    if flag == "--split" and os.path.isfile(value):
        return True  # names of images that are not there, which are counted and named
    written = flag == "--output" or (flag == "--memory" and not os.path.isfile(value))
    return written and value not in ("", paths["empty folder"], paths["model"], paths["run"], paths["long"])


@pytest.mark.parametrize("name", ENTRIES)
def test_every_bad_input_ends_in_one_line(name: str, good, bad_paths, tmp_path, monkeypatch) -> None:
    entry, faults, count = ENTRIES[name], [], 0
    monkeypatch.chdir(tmp_path)
    for number, (flag, value) in enumerate(cases(entry, bad_paths)):
        count += 1
        argv = command(
            entry,
            {**good, "NEW": str(tmp_path / f"new{number}"), "NEW LOG": str(tmp_path / f"log{number}")},
            flag,
            value,
        )
        meant = _may_be_meant(flag, value, bad_paths)  # asked before a file is there
        fault = fault_of(entry.main, argv, flag, value)
        if fault and not (fault.startswith(("status 0", UNNAMED)) and meant):
            faults.append(printable(f"{flag} {value[:60]!r}: {fault}"))
    assert not faults, f"{len(faults)} of {count}:\n" + "\n".join(faults)
    assert count >= 60
