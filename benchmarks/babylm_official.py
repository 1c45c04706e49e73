"""The official BabyLM pipeline as commands: its zero-shot sets, and its ages of acquisition with their scores."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

READING = "reading"
AGE_OF_ACQUISITION = "aoa"
MILLION = 10**6
# Folders of BLiMP's supplement are read as BLiMP.
_TASKS = {"supplement": "blimp"}
# The names in a hub's cache of one model with revisions; transformers ignores a revision of a local folder.
_HUB_MODEL = "made/model"
_SCORE_AGES = """
import json, sys
from pathlib import Path
from evaluation_pipeline import utils
from transformers import AutoTokenizer
surprisal, children, tokenizer = sys.argv[1:]
more = [AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=True)] if tokenizer else []
seen, correlate = {"model": [], "child": []}, utils.pearsonr
def watched(model, child):
    seen.update(model=model, child=child)
    return correlate(model, child)
utils.pearsonr = watched
scores = utils.AoAEvaluator(Path(children)).compute_curve_fitness(json.load(open(surprisal)), *more)
print("FOUND " + json.dumps(seen | {key: scores[key] for key in ("curve_fitness", "n_words")}, default=float))
"""


class Cost(NamedTuple):
    """Seconds of a command and its children."""

    cpu: float
    wall: float


def timed(command: list[str], folder: Path, more: Mapping[str, str] | None = None) -> tuple[Cost, str]:
    """Run a command in a folder, with ``more`` in its environment; what it cost, and its standard output.

    Raises:
        SystemExit: it failed; with the end of what it said.
    """
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = os.environ | dict(more or {})
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=environment)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\nfailed in {folder}:\n{done.stderr[-3000:]}")
    return Cost(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall), done.stdout


class Pipeline:
    """A checkout: the folder that holds ``evaluation_pipeline`` (in `babylm-eval` it is ``strict``)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        files = folder / "evaluation_pipeline" / "sentence_zero_shot"
        self.year = 2026 if "global_piqa" in (files / "read_files.py").read_text(encoding="utf-8") else 2025
        self._tasks = (files / "run.py").read_text(encoding="utf-8")

    def knows(self, task: str) -> bool:
        """Whether this year's pipeline has a task; WUG ended with 2025."""
        return f'"{_TASKS.get(task, task)}"' in self._tasks

    def zero_shot(self, task: str, model: Path, data: Path, output: Path) -> Cost:
        """One set; its predictions go below ``output``."""
        about = ["--model_path_or_name", str(model), "--backend", "causal", "--output_dir", str(output)]
        if task == READING:
            script, sets = "reading.run", ["--data_path", str(data / "reading_data.csv")]
        else:
            script = "sentence_zero_shot.run"
            sets = ["--task", _TASKS.get(task, task), "--data_path", str(data), "--save_predictions"]
        return timed([sys.executable, "-m", f"evaluation_pipeline.{script}", *about, *sets], self.folder)[0]

    def ages(self, checkpoints: Mapping[int, Path], data: Path, output: Path) -> Cost:
        """The surprisals at each checkpoint, and the score where the pipeline writes one."""
        hub = _as_hub(checkpoints, output / "hub")
        track = "strict-small" if max(checkpoints) <= 100 * MILLION else "non-strict-small"
        command = [
            sys.executable,
            "-m",
            "evaluation_pipeline.AoA_word.run",
            "--word_path",
            str(data / "cdi_childes.json"),
        ]
        command += ["--model_name", _HUB_MODEL, "--track_name", track, "--output_dir", str(output)]
        return timed(command, self.folder, {"HF_HUB_CACHE": str(hub), "HF_HUB_OFFLINE": "1"})[0]

    def age_scores(self, data: Path, output: Path, tokenizer: Path) -> dict:
        """What the pipeline's own evaluator makes of the surprisals that it wrote: ``curve_fitness``, ``n_words``, and
        the ages of ``model`` and ``child`` that it correlates."""
        arguments = [str(ages_folder(output) / "surprisal.json"), str(data / "cdi_human.csv")]
        arguments.append(str(tokenizer) if self.year >= 2026 else "")
        said = timed([sys.executable, "-c", _SCORE_AGES, *arguments], self.folder)[1]
        line = next(line for line in said.splitlines() if line.startswith("FOUND "))
        return json.loads(line.removeprefix("FOUND "))


def ages_folder(output: Path) -> Path:
    """Where the pipeline writes ages of acquisition."""
    return output / "model" / "main" / "zero_shot" / "causal" / "AoA_word"


def _as_hub(checkpoints: Mapping[int, Path], hub: Path) -> Path:
    """A hub's cache in which each checkpoint is a revision, and the last one is ``main``."""
    folder = hub / f"models--{_HUB_MODEL.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    for words, checkpoint in sorted(checkpoints.items()):
        commit = f"{words:040x}"
        (folder / "snapshots").mkdir(exist_ok=True)
        (folder / "snapshots" / commit).symlink_to(checkpoint)
        for name in (f"chck_{words // MILLION}M", "main"):
            (folder / "refs" / name).write_text(commit)
    return hub
