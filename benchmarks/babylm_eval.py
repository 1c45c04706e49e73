"""Our evaluator of the BabyLM sets beside the official pipeline: the same decisions, and how many times faster.

Both score one model on one folder of sets. In each round the official pipeline goes first, one process a set as its own
scripts start it, then `src/evaluate.py --task babylm`, one process for all. Prints JSON lines:

  a line a set    items, agreement (share of items decided alike), differing (the ids that are not), the largest
                  difference of a WUG item's probability or a word's surprisal, and the figures that both report
  speed           seconds of CPU of all processes of a side, start-up included, and their ratio; the same for the clock
                  on the wall. CPU time hardly depends on what else the machine does, the wall does.

The pipeline needs packages of its own (its requirements.txt); here statsmodels and aiohttp are missing from ours.
Without --checkpoint the model is a GPT-2 of BitGen's default size with random weights, its tokenizer trained on them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from bitgen.evaluation.babylm.evaluation import read_evaluation_data
from bitgen.evaluation.babylm.items import task_of

REPOSITORY = Path(__file__).resolve().parents[1]
READING = "reading"
FIGURES = ("accuracy", "spearman", "eye_tracking", "self_paced_reading")
# Folders of BLiMP's supplement are read as BLiMP.
OFFICIAL_TASKS = {"supplement": "blimp"}


class Cost(NamedTuple):
    """Seconds of a command and its children."""

    cpu: float
    wall: float


def timed(command: list[str], folder: Path) -> Cost:
    """Run a command in a folder.

    Raises:
        SystemExit: it failed; with the end of what it said.
    """
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\nfailed in {folder}:\n{done.stderr[-3000:]}")
    return Cost(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall)


def official(pipeline: Path, checkpoint: Path, eval_dir: Path, output: Path) -> dict[str, Cost]:
    """The official pipeline on every set; its predictions go below ``output``."""
    data = read_evaluation_data(eval_dir)
    model = ["--model_path_or_name", str(checkpoint), "--backend", "causal", "--output_dir", str(output)]
    costs = {}
    for name in data.items:
        task = task_of(name)
        script = [sys.executable, "-m", "evaluation_pipeline.sentence_zero_shot.run"]
        sets = ["--task", OFFICIAL_TASKS.get(task, task), "--data_path", str(eval_dir / name), "--save_predictions"]
        costs[name] = timed([*script, *model, *sets], pipeline)
    if data.reading is not None:
        script = [sys.executable, "-m", "evaluation_pipeline.reading.run"]
        costs[READING] = timed([*script, *model, "--data_path", str(data.reading / "reading_data.csv")], pipeline)
    return costs


def ours(checkpoint: Path, eval_dir: Path, output: Path) -> Cost:
    """`src/evaluate.py` on every set."""
    command = [sys.executable, "src/evaluate.py", "--checkpoint", str(checkpoint), "--task", "babylm"]
    files = ["--output", str(output / "results.json"), "--predictions", str(output / "predictions.json")]
    return timed([*command, "--eval_dir", str(eval_dir), "--device", "auto", *files], REPOSITORY)


def by_id(predictions: dict) -> dict[str | int, dict]:
    """An official predictions.json, or a folder of ours, as entries by item."""
    return {entry["id"]: entry for group in predictions.values() for entry in group["predictions"]}


def comparison(name: str, theirs: dict[str | int, dict], own: dict[str | int, dict]) -> dict:
    """How far two sets of predictions agree; a word's surprisals agree where they differ by less than 1e-3 nats."""
    report: dict = {"set": name, "items": len(theirs)}
    if theirs.keys() != own.keys():
        return report | {"agreement": 0.0, "problem": f"{len(own)} items of ours have other ids"}
    if name == READING:
        gaps = {item: max(_gap(theirs[item][key], own[item][key]) for key in ("pred", "prev_pred")) for item in theirs}
        differing = [item for item, gap in gaps.items() if gap > 1e-3]
        report["largest_surprisal_difference"] = max(gaps.values())
    else:
        differing = [item for item in theirs if theirs[item]["pred"] != own[item]["pred"]]
        if all("prob" in entry for entry in theirs.values()):
            report["largest_probability_difference"] = max(abs(theirs[i]["prob"] - own[i]["prob"]) for i in theirs)
    return report | {"agreement": 1 - len(differing) / len(theirs), "differing": differing[:20]}


def _gap(left: float | None, right: float | None) -> float:
    missing = [value is None or math.isnan(value) for value in (left, right)]
    return (0.0 if all(missing) else math.inf) if any(missing) else abs(left - right)


def agreement(official_output: Path, own_output: Path) -> Iterator[dict]:
    """A report a set."""
    predictions = json.loads((own_output / "predictions.json").read_text(encoding="utf-8"))
    results = json.loads((own_output / "results.json").read_text(encoding="utf-8"))["babylm"]
    for path in sorted(official_output.rglob("predictions.json")):
        name = path.parent.name
        theirs = json.loads(path.read_text(encoding="utf-8"))
        report = comparison(name, by_id(theirs), by_id(predictions[name]))
        own = [results[name][key] for key in FIGURES if key in results[name]]
        yield report | {"official_figures": official_figures(path.parent), "our_figures": own}


def official_figures(folder: Path) -> list[float]:
    """What the official report of a set ends with, to two digits: one figure, or the two of the reading task."""
    text = next(folder.glob("*report.txt")).read_text(encoding="utf-8")
    numbers = [float(number) for number in re.findall(r"(-?\d+\.\d+|nan)$", text, re.MULTILINE)]
    return numbers if folder.name == READING else numbers[-1:]


def random_model(folder: Path, eval_dir: Path) -> Path:
    """A GPT-2 of BitGen's default width and depth, with a tokenizer trained on the sets."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from bitgen.data.tokenizer import train_bpe

    items = [item for items in read_evaluation_data(eval_dir).items.values() for item in items]
    tokenizer = train_bpe([sentence for item in items for sentence in item.sentences], 16384)
    torch.manual_seed(0)
    # Larger weights than a fresh model's: its predictions would hardly differ, and every item be a close call.
    config = GPT2Config(
        vocab_size=16384,
        n_positions=512,
        n_embd=128,
        n_layer=3,
        n_head=4,
        initializer_range=0.2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(str(folder))
    return folder


def main(argv: list[str] | None = None) -> None:
    """Read the flags, run both in turns, print the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", required=True, type=Path, help="a checkout of the official pipeline")
    parser.add_argument(
        "--eval_dir",
        type=Path,
        default=REPOSITORY.parent / "shared" / "data" / "babylm_eval" / "fast_eval",
        help="the folder of the sets (default: beside the repository)",
    )
    parser.add_argument("--checkpoint", type=Path, help="folder of a Hugging Face causal model (default: a random one)")
    parser.add_argument("--rounds", type=int, default=1, help="how often both run (default: 1)")
    flags = parser.parse_args(argv)
    if not (flags.pipeline / "evaluation_pipeline").is_dir():
        parser.error(f"--pipeline {flags.pipeline} holds no evaluation_pipeline; give the pipeline's own folder")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

    with tempfile.TemporaryDirectory() as temporary:
        work, eval_dir = Path(temporary), flags.eval_dir.resolve()
        checkpoint = flags.checkpoint.resolve() if flags.checkpoint else random_model(work / "model", eval_dir)
        theirs, own = [], []
        for _ in range(flags.rounds):
            theirs.append(official(flags.pipeline.resolve(), checkpoint, eval_dir, work / "official"))
            own.append(ours(checkpoint, eval_dir, work))
        for report in agreement(work / "official", work):
            print(json.dumps(report), flush=True)
        for kind in Cost._fields:
            slow = [sum(getattr(cost, kind) for cost in costs.values()) for costs in theirs]
            fast = [getattr(cost, kind) for cost in own]
            ratios = [one / other for one, other in zip(slow, fast, strict=True)]
            report = {
                "speed": f"{kind} seconds",
                "official": round(statistics.median(slow), 1),
                "ours": round(statistics.median(fast), 1),
                "ratio": round(statistics.median(ratios), 2),
                "rounds": flags.rounds,
            }
            sets = {
                name: round(statistics.median(getattr(costs[name], kind) for costs in theirs), 1) for name in theirs[0]
            }
            print(json.dumps(report | {"official_by_set": sets}), flush=True)


if __name__ == "__main__":
    main()
