"""`src/evaluate.py --task glue`: a language model fine-tuned on the (Super)GLUE tasks of the BabyLM challenge."""

from __future__ import annotations

import argparse
import logging
from typing import Any

import torch

from bitgen.evaluation.babylm.evaluation import Evaluation
from bitgen.evaluation.babylm.glue.data import ACCURACY, F1, GLUE, MCC, glue_folder, read_glue_task, tasks_of
from bitgen.evaluation.babylm.glue.evaluation import MEAN, evaluate_glue
from bitgen.evaluation.outputs import kept_beside
from bitgen.show.tables import format_table

logger = logging.getLogger("evaluate")


def check_glue_files(flags: argparse.Namespace) -> None:
    """Read the files before any work. Raises ValueError where one cannot be used."""
    folder = glue_folder(flags.eval_dir)
    for task in tasks_of(folder, flags.glue_tasks):
        read_glue_task(folder, task)


def evaluate_glue_tasks(flags: argparse.Namespace, device: torch.device) -> Evaluation:
    """Figures and predictions by task.

    Raises:
        ValueError: model or files cannot be used, or training fails.
    """
    kept = flags.glue_kept or str(kept_beside(flags.output, GLUE))
    logger.info("fine-tuning on %s; each finished task is kept in %s", device, kept)
    return evaluate_glue(
        flags.checkpoint,
        flags.eval_dir,
        device,
        flags.seeds,
        flags.glue_tasks,
        kept,
        flags.trust_remote_code,
        flags.glue_learning_rate,
        flags.glue_epochs,
    )


def glue_table(results: dict[str, dict[str, Any]]) -> str:
    """A row for each task, and the mean that the challenge counts."""
    rows = []
    for name, figures in results.items():
        if name == MEAN:
            rows.append(["mean", f"{figures[ACCURACY]:.2f}", "", ""])
        else:
            rows.append([name, *(_cell(figures, metric) for metric in (ACCURACY, F1, MCC))])
    count = len(next(iter(results.values()))["seeds"])
    return format_table([f"(Super)GLUE, % ({count} {'seeds' if count > 1 else 'seed'})", "accuracy", "F1", "MCC"], rows)


def _cell(figures: dict[str, Any], metric: str) -> str:
    if metric not in figures:
        return ""
    spread = f" ± {figures[f'{metric}_std']:.2f}" if f"{metric}_std" in figures else ""
    return f"{figures[metric]:.2f}{spread}"
