"""An evaluation folder of a few items of each kind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from support.babylm import WORDS


def _sentence(draw: np.random.Generator, length: int) -> str:
    return " ".join(draw.choice(WORDS, length)) + "."


def _write_lines(path: Path, records: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


READING_NUMBERS = (
    "context_length,Subtlex_log10,length,RTfirstfix,RTfirstpass,RTgopast,RTrightbound,self_paced_reading_time,ELAN,LAN,"
    "N400,P600,EPNP,PNP,prev_length"
).split(",")


def _write_reading(folder: Path, draw: np.random.Generator) -> None:
    lines = [",".join(["", "item", "word", "prev_item", "prev_word", *READING_NUMBERS])]
    for number in range(12):
        words = (
            ["None", "blue", *draw.choice([*WORDS, "astonishing"], 6)]
            if number == 0
            else draw.choice(WORDS, 8).tolist()
        )
        for place in range(1, len(words)):
            item, before = " ".join(words[:place]), " ".join(words[: place - 1])
            previous = words[place - 1] if before else ""
            numbers = [f"{value:.4f}" for value in draw.normal(5, 2, len(READING_NUMBERS))]
            if number == 3 and place == 2:
                numbers[1] = ""
            lines.append(",".join([str(len(lines) - 1), item, words[place], before, previous, *numbers]))
    folder.mkdir(parents=True)
    (folder / "reading_data.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(scope="session")
def eval_dir(tmp_path_factory) -> Path:
    """A folder with every kind of set."""
    folder, draw = tmp_path_factory.mktemp("sets"), np.random.default_rng(0)

    def pair() -> dict:
        good = _sentence(draw, int(draw.integers(3, 9)))
        return {"sentence_good": good, "sentence_bad": good.replace(str(draw.choice(good.split())), "hats naïve", 1)}

    for name in ("one", "two"):
        about = {"field": "syntax_semantics", "UID": name, "linguistics_term": "binding"}
        _write_lines(folder / "blimp_fast" / f"{name}.jsonl", [pair() | about for _ in range(15)])
    _write_lines(folder / "supplement_fast" / "turns.jsonl", [pair() for _ in range(15)])
    boxes = []
    for number in range(15):
        start = (
            "Box 0 contains the cat, Box 1 contains the red hat" + ". The dog runs" * (number % 3) + ". Box 1 contains "
        )
        options = [f"the {one}." for one in np.random.default_rng(number).permutation(WORDS)[:5]]
        boxes.append({"numops": number % 3, "input_prefix": start, "options": options})
    _write_lines(folder / "entity_tracking_fast" / "regular.jsonl", boxes)
    _write_lines(folder / "entity_tracking_fast" / "ambiref.jsonl", boxes[:4])
    wugs = [
        {"sentences": f"A noun: {word}. {word}ity\tA noun: {word}. {word}ness", "ratio": draw.random()}
        for word in WORDS
    ]
    _write_lines(folder / "wug_adj_nominalization" / "wugs.jsonl", wugs)
    about = {"Domain": "d", "ContextType": "direct", "ContextDiff": "x", "TargetDiff": "y"}
    contexts = [{name: _sentence(draw, 4) for name in ("Context1", "Context2", "Target1", "Target2")} for _ in range(8)]
    _write_lines(folder / "ewok_fast" / "d.jsonl", [context | about for context in contexts])
    _write_reading(folder / "reading", draw)
    return folder
