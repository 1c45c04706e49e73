"""A tiny export with two checkpoints, and evaluation data of a few items a set, as a submission takes them."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np

from bitgen.export.revisions import export_run
from support.babylm import WORDS
from support.runs import scratch, written_run

# Of each part: a set of every kind that its folders hold, by name.
FULL_SETS = ["blimp_filtered", "comps", "entity_tracking", "global_piqa_parallel", "reading", "wug_adj_nominalization"]
FAST_SETS = ["blimp_fast", "entity_tracking_fast", "global_piqa_parallel", "reading", "wug_adj_nominalization"]
_TIMES = ["RTfirstfix", "RTfirstpass", "RTgopast", "RTrightbound", "self_paced_reading_time"]
_NUMBERS = ["context_length", "Subtlex_log10", "length", *_TIMES, "ELAN", "LAN", "N400", "P600", "EPNP", "PNP"]


@functools.cache
def tiny_export() -> Path:
    """An export with ``chck_1M`` and ``chck_10M``, of 1,234,567 words seen. Who changes it copies it."""
    run = written_run(features=True, max_seq_len=160)
    return export_run(str(run), str(scratch() / "tiny_model"), False, True, {})


def write_evaluation_data(folder: Path) -> Path:
    """``full_eval`` and ``fast_eval`` below a folder, which is returned."""
    draw = np.random.default_rng(3)
    _write_part(folder / "full_eval", "filtered", 4, draw)
    _write_part(folder / "fast_eval", "fast", 3, draw)
    for name in ("reading/reading_data.csv", "global_piqa_parallel/eng_latn.jsonl"):
        (folder / "fast_eval" / name).write_bytes((folder / "full_eval" / name).read_bytes())
    return folder


def lines_of(path: Path) -> list[dict]:
    """The records of a file of lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _write_lines(path: Path, records: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def _write_part(folder: Path, ending: str, count: int, draw: np.random.Generator) -> None:
    def sentence(length: int) -> str:
        return " ".join(draw.choice(WORDS, length)) + "."

    for name in ("one", "two"):
        about = {"field": "syntax", "UID": name, "linguistics_term": "binding"}
        pairs = [{"sentence_good": sentence(5), "sentence_bad": sentence(5)} | about for _ in range(count)]
        _write_lines(folder / f"blimp_{ending}" / f"{name}.jsonl", pairs)
    boxes = [
        {
            "numops": number % 2,
            "input_prefix": "Box 1 contains ",
            "options": [f"the {w}." for w in draw.permutation(WORDS)],
        }
        for number in range(count + 1)
    ]
    _write_lines(folder / ("entity_tracking_fast" if ending == "fast" else "entity_tracking") / "regular.jsonl", boxes)
    piqa = [
        {"prompt": sentence(4), "label": number % 4, "example_id": f"q{number}"}
        | {f"solution{place}": sentence(3) for place in range(4)}
        for number in range(4)
    ]
    _write_lines(folder / "global_piqa_parallel" / "eng_latn.jsonl", piqa)
    wugs = [{"sentences": f"{word}ity\t{word}ness", "ratio": float(draw.random())} for word in WORDS[:6]]
    _write_lines(folder / "wug_adj_nominalization" / "wug_adj_nominalization.jsonl", wugs)
    if ending == "filtered":
        phrases = [
            {"prefix_acceptable": sentence(2), "prefix_unacceptable": sentence(2), "property_phrase": sentence(2)}
            for _ in range(count)
        ]
        _write_lines(folder / "comps" / "comps_base.jsonl", phrases)
    _write_reading(folder / "reading", draw)


def _write_reading(folder: Path, draw: np.random.Generator) -> None:
    rows = [",".join(["", "item", "word", "prev_item", "prev_word", *_NUMBERS, "prev_length"])]
    for _ in range(8):
        words = draw.choice(WORDS, 6).tolist()
        for place in range(1, len(words)):
            before = " ".join(words[: place - 1])
            texts = [" ".join(words[:place]), words[place], before, words[place - 1] if before else ""]
            numbers = [f"{value:.4f}" for value in draw.normal(5, 2, len(_NUMBERS) + 1)]
            rows.append(",".join([str(len(rows) - 1), *texts, *numbers]))
    folder.mkdir(parents=True)
    (folder / "reading_data.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
