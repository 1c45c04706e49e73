"""Made-up (Super)GLUE files with a rule that a tiny model can learn."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from support.babylm import WORDS

# What a word stands for where it is the last of the second text.
SIGNS = ("cat", "dog", "hat")
FIELDS = {
    "boolq": ("question", "passage"),
    "mnli": ("premise", "hypothesis"),
    "mrpc": ("sentence1", "sentence2"),
    "multirc": ("question", "answer", "paragraph"),
    "qqp": ("question1", "question2"),
    "rte": ("sentence1", "sentence2"),
    "wsc": ("span1_text", "span2_text", "text"),
}


def records(task: str, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Examples whose label is told by the last word of the text that is read last."""
    draw = random.Random(f"{task} {seed}")
    last = {"wsc": "text", "multirc": "paragraph"}.get(task, FIELDS[task][-1])
    found = []
    for number in range(count):
        label = draw.randrange(3 if task == "mnli" else 2)
        texts = {field: " ".join(draw.choices(WORDS, k=draw.randint(1, 6))) for field in FIELDS[task]}
        texts[last] += f" {SIGNS[label]}"
        found.append({**texts, "idx": number, "label": label})
    return found


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    """JSON, a line each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def write_glue(folder: Path, *tasks: str, train: int = 96, valid: int = 24) -> Path:
    """``folder/glue_filtered`` with both files of each task; ``folder``."""
    for task in tasks:
        write_lines(folder / "glue_filtered" / f"{task}.train.jsonl", records(task, train))
        write_lines(folder / "glue_filtered" / f"{task}.valid.jsonl", records(task, valid, seed=1))
    return folder
