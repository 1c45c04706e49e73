"""What a causal model says of a text, plainly: one call, a softmax over everything; and small sets in official form."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoProcessor

from support.babylm import WORDS


class Plain:
    """The model of a folder."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.processor = AutoProcessor.from_pretrained(folder)

    def log_probs(self, text: str, begins: int) -> list[float]:
        """Of each token that ends after the character ``begins``; the first token has none."""
        output = self.processor(text=text, return_offsets_mapping=True)
        ids = torch.tensor([output["input_ids"]])
        with torch.no_grad():
            found = self.model(ids).logits.log_softmax(-1)[0]
        ends = [end for _, end in output["offset_mapping"]]
        return [float(found[at - 1, ids[0, at]]) for at in range(1, len(ends)) if ends[at] > begins]

    def best(self, options: Sequence[tuple[str, str]], per_token: bool = False) -> int:
        """Which of ``(start, end)`` has the most probable end."""
        scores = []
        for start, end in options:
            found = self.log_probs(start + end, len(start))
            scores.append(sum(found) / (max(len(found), 1) if per_token else 1))
        return int(np.argmax(scores))


def write_lines(path: Path, records: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def words(draw: np.random.Generator, count: int) -> str:
    return " ".join(draw.choice(WORDS, count))


COMPS_FILES = {
    "comps_base": "base",
    "comps_wugs": "wugs",
    "comps_wugs_dist-before": "wugs_dist_before",
    "comps_wugs_dist-in-between": "wugs_dist_in_between",
}


def write_comps(folder: Path, draw: np.random.Generator, count: int = 8) -> dict[str, list[dict[str, Any]]]:
    """The four files of COMPS; their records by file."""
    sets = {}
    for name in COMPS_FILES:
        sets[name] = [
            {
                "id": number,
                "property": "has a hat",
                "prefix_acceptable": f"A {words(draw, 2)}",
                "prefix_unacceptable": f"A {words(draw, 2)}",
                "property_phrase": f"{words(draw, 3)}.",
            }
            for number in range(count)
        ]
        write_lines(folder / f"{name}.jsonl", sets[name])
    return sets


def write_global_piqa(folder: Path, draw: np.random.Generator, solutions: int, count: int = 20) -> list[dict[str, Any]]:
    """One file of GlobalPIQA, solutions of different lengths, the right one anywhere."""
    records = []
    for number in range(count):
        record: dict[str, Any] = {"prompt": f"The {words(draw, 3)}:", "example_id": f"eng_latn_{number}"}
        record |= {f"solution{at}": f"{words(draw, int(draw.integers(1, 7)))}." for at in range(solutions)}
        records.append(record | {"label": int(draw.integers(solutions)), "language": "eng_latn"})
    write_lines(folder / "eng_latn.jsonl", records)
    return records


CHILD_WORDS = ("cat", "dog", "hat", "box", "mat", "runs", "sit", "red", "blue", "under", "astonishing")


def write_acquisition(folder: Path, draw: np.random.Generator, contexts: int = 3) -> dict[str, list[dict[str, Any]]]:
    """``cdi_childes.json`` and ``cdi_human.csv``: words that children learn one after the other."""
    asked: dict[str, list[dict[str, Any]]] = {}
    for word in (*CHILD_WORDS, "a", "hat box"):
        texts = [words(draw, int(draw.integers(2, 5))) + (" " if number else "") for number in range(contexts)]
        asked[word] = [{"context": text} for text in texts]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cdi_childes.json").write_text(json.dumps(asked), encoding="utf-8")
    lines = ["word,category," + ",".join(map(str, range(16, 31)))]
    for number, word in enumerate(CHILD_WORDS):
        shares = [1 / (1 + np.exp(-(age - 19 - 0.8 * number) / 2)) for age in range(16, 31)]
        cells = ["NA" if number == 2 and at < 2 else f"{share:.4f}" for at, share in enumerate(shares)]
        lines.append(",".join([word, "nouns", *cells]))
    (folder / "cdi_human.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return asked


def write_all_sets(folder: Path, draw: np.random.Generator) -> None:
    """Every kind of the zero-shot sets but reading times, in the official form."""

    def pair() -> dict[str, str]:
        good = f"{words(draw, int(draw.integers(3, 9)))}."
        return {"sentence_good": good, "sentence_bad": good.replace(str(draw.choice(good[:-1].split())), "hats", 1)}

    for name in ("one", "two"):
        about = {"field": "syntax_semantics", "UID": name, "linguistics_term": "binding"}
        write_lines(folder / "blimp_filtered" / f"{name}.jsonl", [pair() | about for _ in range(60)])
    write_lines(folder / "supplement_filtered" / "turns.jsonl", [pair() for _ in range(60)])
    boxes = []
    for number in range(90):
        options = [f"the {one}." for one in draw.permutation(WORDS)[:5]]
        if number % 7 == 0:
            options[2] = "nothing."
        start = f"Box 0 contains the {words(draw, 2)}" + ". The dog runs" * (number % 3) + ". Box 0 contains "
        boxes.append({"numops": number % 3, "input_prefix": start, "options": options})
    for name in ("regular", "ambiref", "move_contents"):
        write_lines(folder / "entity_tracking" / f"{name}.jsonl", boxes)
    about = {"Domain": "social", "ContextType": "direct", "ContextDiff": "x", "TargetDiff": "y"}
    fields = ("Context1", "Context2", "Target1", "Target2")
    write_lines(
        folder / "ewok_filtered" / "social.jsonl",
        [{name: f"{words(draw, 4)}." for name in fields} | about for _ in range(80)],
    )
    write_comps(folder / "comps", draw, 60)
    write_global_piqa(folder / "global_piqa_parallel", draw, 4, 60)
    write_global_piqa(folder / "global_piqa_nonparallel", draw, 2, 60)
    wugs = [
        {"sentences": f"A noun: {one}. {one}ity\tA noun: {one}. {one}ness", "ratio": draw.random()} for one in WORDS
    ]
    write_lines(folder / "wug_adj_nominalization" / "wug_adj_nominalization.jsonl", wugs)
