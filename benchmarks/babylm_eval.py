"""Our evaluator of the BabyLM sets beside the official pipeline: the same decisions, and how many times faster.

Both score one model on one folder of sets, by the rules of the pipeline's year. In each round the official pipeline
goes first, one process a set as its own scripts start it, then ours, one process for all. Prints JSON lines:

  a line a set    items, agreement (share of items decided alike), differing (the ids that are not), ties (of equal
                  candidates 2026's pipeline draws one: those may differ), the largest difference of a WUG item's
                  probability or a word's surprisal, and the figures that both report
  aoa             the same of the surprisals at each checkpoint, the words with an age, the largest difference of the
                  ages of model and children, and both scores
  speed           seconds of CPU of all processes of a side, start-up included, and their ratio; the same for the clock
                  on the wall. CPU time hardly depends on what else the machine does, the wall does.

Ages of acquisition are compared where the sets have an `aoa` folder and the model's folder has chck_*M folders.
--made_up writes small sets of every kind, in the official form, where the real ones are not at hand.

The pipeline needs packages of its own (its requirements.txt); here statsmodels and aiohttp are missing from ours.
Without --checkpoint the model is a GPT-2 of BitGen's default size with random weights, its tokenizer trained on them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from babylm_official import AGE_OF_ACQUISITION, MILLION, READING, Cost, Pipeline, ages_folder, timed

from bitgen.evaluation.babylm.evaluation import KeptSets, evaluate_babylm, read_evaluation_data
from bitgen.evaluation.babylm.items import task_of

REPOSITORY = Path(__file__).resolve().parents[1]
FIGURES = ("accuracy", "spearman", "eye_tracking", "self_paced_reading")
SURPRISAL_TOLERANCE = 1e-3  # nats


def checkpoints_of(model: Path) -> dict[int, Path]:
    """The folders chck_*M below a model's folder by the words seen."""
    found = {int(path.name[5:-1]) * MILLION: path for path in model.glob("chck_*M") if path.name[5:-1].isdigit()}
    return dict(sorted(found.items()))


def shared_sets(
    pipeline: Pipeline, eval_dir: Path, folder: Path, checkpoints: Mapping[int, Path], only: Sequence[str]
) -> dict[str, str]:
    """Links below ``folder`` to the sets that both sides know; the official task of each by its name."""
    tasks = {}
    folder.mkdir()
    for path in sorted(eval_dir.iterdir() if not only else (eval_dir / name for name in only)):
        task = path.name if path.name in (READING, AGE_OF_ACQUISITION) else task_of(path.name, pipeline.year)
        known = task in (READING, AGE_OF_ACQUISITION) or (task is not None and pipeline.knows(task))
        if not known or task is None or not path.is_dir() or (task == AGE_OF_ACQUISITION and not checkpoints):
            print(json.dumps({"set": path.name, "left_out": "not a set of this pipeline, or no checkpoints"}))
            continue
        (folder / path.name).symlink_to(path)
        tasks[path.name] = task
    return tasks


def official(
    pipeline: Pipeline, tasks: dict[str, str], model: Path, sets: Path, output: Path, checkpoints: Mapping[int, Path]
) -> dict[str, Cost]:
    """The official pipeline on every set; its predictions go below ``output``."""
    costs = {}
    for name, task in tasks.items():
        if task == AGE_OF_ACQUISITION:
            costs[name] = pipeline.ages(checkpoints, sets / name, output)
        else:
            costs[name] = pipeline.zero_shot(task, model, sets / name, output)
    return costs


def ours(year: int, model: Path, sets: Path, output: Path) -> Cost:
    """Ours on every set, in a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), "--ours", str(year), "--checkpoint", str(model)]
    return timed([*command, "--eval_dir", str(sets), "--output", str(output)], REPOSITORY)[0]


def evaluate_ours(year: int, model: Path, sets: Path, output: Path) -> None:
    """What :func:`ours` starts: results.json, predictions.json, and ages.json where there is an `aoa` folder."""
    from bitgen.evaluation.babylm.acquisition.ages import age_of_acquisition
    from bitgen.evaluation.babylm.models import identity, open_language_model
    from bitgen.evaluation.babylm.scoring import Scorer
    from bitgen.evaluation.results import write_results
    from bitgen.machine.devices import choose_device

    device = choose_device("auto")
    results, predictions = {}, {}
    if any(path.name != AGE_OF_ACQUISITION for path in sets.iterdir()):
        data = read_evaluation_data(sets, year)
        language_model, encoder = open_language_model(model, device)
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output) as folder:  # of this round alone
            kept = KeptSets(Path(folder), identity(language_model, encoder, model), sets, year)
            results, predictions = evaluate_babylm(data, encoder, Scorer(language_model, device), kept)
    write_results({"babylm": results}, str(output / "results.json"))
    write_results(predictions, str(output / "predictions.json"))
    if (sets / AGE_OF_ACQUISITION).is_dir():
        found = age_of_acquisition(checkpoints_of(model), sets / AGE_OF_ACQUISITION, device, year=year)
        write_results({"results": found.results, "surprisal": found.surprisal}, str(output / "ages.json"))


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
        differing = [item for item, gap in gaps.items() if gap > SURPRISAL_TOLERANCE]
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
        if "ties" in results[name]:
            report["ties"] = results[name]["ties"]
        own = [results[name][key] for key in FIGURES if key in results[name]]
        yield report | {"official_figures": official_figures(path.parent), "our_figures": own}


def official_figures(folder: Path) -> list[float]:
    """What the official report of a set ends with, to two digits: one figure, or the two of the reading task."""
    text = next(folder.glob("*report.txt")).read_text(encoding="utf-8")
    numbers = [float(number) for number in re.findall(r"(-?\d+\.\d+|nan)$", text, re.MULTILINE)]
    return numbers if folder.name == READING else numbers[-1:]


def agreement_of_ages(pipeline: Pipeline, sets: Path, official_output: Path, own_output: Path, tokenizer: Path) -> dict:
    """The report of ages of acquisition."""
    theirs = json.loads((ages_folder(official_output) / "surprisal.json").read_text(encoding="utf-8"))["results"]
    own = json.loads((own_output / "ages.json").read_text(encoding="utf-8"))
    keys = ("step", "word_count", "target_word", "context_id", "context")
    mine = own["surprisal"]["results"]
    if [[row[key] for key in keys] for row in theirs] != [[row[key] for key in keys] for row in mine]:
        return {
            "set": AGE_OF_ACQUISITION,
            "agreement": 0.0,
            "problem": f"{len(mine)} rows of ours, {len(theirs)} theirs",
        }
    gaps = [_gap(one["surprisal"], other["surprisal"]) for one, other in zip(theirs, mine, strict=True)]
    scores = pipeline.age_scores(sets / AGE_OF_ACQUISITION, official_output, tokenizer)
    ages = own["results"]["ages"]
    report = {
        "set": AGE_OF_ACQUISITION,
        "items": len(theirs),
        "agreement": sum(gap <= SURPRISAL_TOLERANCE for gap in gaps) / len(gaps),
        "largest_surprisal_difference": max(gaps),
        "official_words": scores["n_words"],
        "our_words": len(ages),
    }
    for whose in ("model", "child"):  # in the order of the words, as ours; none where there are too few to compare
        if len(scores[whose]) == len(ages):
            pairs = zip(scores[whose], ages.values(), strict=True)
            report[f"largest_{whose}_age_difference"] = max(
                (abs(one - other[whose]) for one, other in pairs), default=0
            )
    return report | {"official_figures": [scores["curve_fitness"]], "our_figures": [own["results"]["aoa"]]}


def random_model(folder: Path, eval_dir: Path) -> Path:
    """A GPT-2 of BitGen's default width and depth, with a tokenizer trained on the sets; checkpoints where they are
    needed."""
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
    if (eval_dir / AGE_OF_ACQUISITION).is_dir():
        config.initializer_range = 0.02
        learn_words(GPT2LMHeadModel(config), tokenizer, eval_dir / AGE_OF_ACQUISITION, folder)
    return folder


def learn_words(model: Any, tokenizer: Any, data: Path, folder: Path) -> None:
    """Checkpoints chck_1M ... below ``folder`` of a model that learns the words of ``data`` by heart, the first words
    seen most often."""
    import torch

    from bitgen.evaluation.babylm.acquisition.ages import read_acquisition_data

    contexts = read_acquisition_data(data).contexts
    texts = [f"{context.strip()} {word}" for word, context in contexts]
    chance = torch.linspace(2.0, -2.0, len(texts)).exp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    saved = dict(zip((3, 6, 9, 12, 16, 20, 30, 40, 60), (1, 2, 3, 4, 5, 10, 20, 50, 100), strict=True))
    for step in range(1, max(saved) + 1):
        batch = [texts[index] for index in torch.multinomial(chance, 32, replacement=True)]
        inputs = tokenizer(batch, return_tensors="pt", padding=True)
        ids, seen = inputs["input_ids"], inputs["attention_mask"]
        loss = model(input_ids=ids, attention_mask=seen, labels=ids.masked_fill(seen == 0, -100)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step in saved:
            model.save_pretrained(folder / f"chck_{saved[step]}M")
            tokenizer.save_pretrained(str(folder / f"chck_{saved[step]}M"))


def write_made_up(folder: Path) -> Path:
    """Small sets in the official form, from the words of the tests."""
    import numpy as np

    from support.babylm_plain import write_acquisition, write_all_sets

    draw = np.random.default_rng(0)
    write_all_sets(folder, draw)
    write_acquisition(folder / AGE_OF_ACQUISITION, draw, contexts=5)
    return folder


def main(argv: list[str] | None = None) -> None:
    """Read the flags, run both in turns, print the lines, the first of which says whose rules hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", type=Path, help="a checkout of the official pipeline (2026: its folder strict)")
    parser.add_argument(
        "--eval_dir",
        type=Path,
        default=REPOSITORY.parent / "shared" / "data" / "babylm_eval" / "fast_eval",
        help="the folder of the sets (default: beside the repository)",
    )
    parser.add_argument("--made_up", action="store_true", help="small made-up sets of every kind instead of --eval_dir")
    parser.add_argument("--checkpoint", type=Path, help="folder of a Hugging Face causal model (default: a random one)")
    parser.add_argument("--sets", nargs="*", default=[], help="only these folders (default: all)")
    parser.add_argument("--rounds", type=int, default=1, help="how often both run (default: 1)")
    parser.add_argument("--ours", type=int, metavar="YEAR", help="only ours, by this year's rules, into --output")
    parser.add_argument("--output", type=Path, help="the folder for the files of --ours")
    flags = parser.parse_args(argv)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if flags.ours is not None:
        return evaluate_ours(flags.ours, flags.checkpoint, flags.eval_dir, flags.output)
    if flags.pipeline is None or not (flags.pipeline / "evaluation_pipeline").is_dir():
        parser.error(f"--pipeline {flags.pipeline} holds no evaluation_pipeline; give the pipeline's own folder")

    with tempfile.TemporaryDirectory() as temporary:
        work, pipeline = Path(temporary), Pipeline(flags.pipeline.resolve())
        eval_dir = write_made_up(work / "made_up") if flags.made_up else flags.eval_dir.resolve()
        model = flags.checkpoint.resolve() if flags.checkpoint else random_model(work / "model", eval_dir)
        checkpoints = checkpoints_of(model)
        tasks = shared_sets(pipeline, eval_dir, work / "sets", checkpoints, flags.sets)
        print(json.dumps({"pipeline": flags.pipeline.name, "rules_of": pipeline.year}), flush=True)
        theirs, own = [], []
        for number in range(flags.rounds):
            output = work / f"official{number}"
            theirs.append(official(pipeline, tasks, model, work / "sets", output, checkpoints))
            own.append(ours(pipeline.year, model, work / "sets", work))
        for report in agreement(output, work):
            print(json.dumps(report), flush=True)
        if AGE_OF_ACQUISITION in tasks:
            last = checkpoints[max(checkpoints)]
            print(json.dumps(agreement_of_ages(pipeline, work / "sets", output, work, last)), flush=True)
        print_speed(theirs, own)


def print_speed(theirs: list[dict[str, Cost]], own: list[Cost]) -> None:
    """A line of each kind of seconds: medians over the rounds."""
    for kind in Cost._fields:
        slow = [sum(getattr(cost, kind) for cost in costs.values()) for costs in theirs]
        fast = [getattr(cost, kind) for cost in own]
        ratios = [one / other for one, other in zip(slow, fast, strict=True)]
        report = {
            "speed": f"{kind} seconds",
            "official": round(statistics.median(slow), 1),
            "ours": round(statistics.median(fast), 1),
            "ratio": round(statistics.median(ratios), 2),
            "rounds": len(own),
        }
        sets = {name: round(statistics.median(getattr(costs[name], kind) for costs in theirs), 1) for name in theirs[0]}
        print(json.dumps(report | {"official_by_set": sets}), flush=True)


if __name__ == "__main__":
    main()
