"""The (Super)GLUE component of a BabyLM evaluation: every task with every seed, kept so that it can go on."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

from bitgen.evaluation.babylm.encoding import ProcessorEncoder
from bitgen.evaluation.babylm.evaluation import Evaluation
from bitgen.evaluation.babylm.glue.classifier import EncodedTask, encode_task, longest_text
from bitgen.evaluation.babylm.glue.data import ACCURACY, GLUE_TASKS, GlueData, glue_folder, read_glue_task, tasks_of
from bitgen.evaluation.babylm.glue.finetuning import FinetuneResult, FinetuneSettings, finetune_task, official_settings
from bitgen.evaluation.babylm.kept import EDITION, KeptResults
from bitgen.evaluation.babylm.models import LanguageModel, model_fingerprint, open_language_model
from bitgen.machine.files import check_writable

logger = logging.getLogger(__name__)

MEAN = "mean"


def evaluate_glue(
    model_folder: str | Path,
    glue_dir: str | Path,
    device: torch.device,
    seeds: Sequence[int] = (42,),
    tasks: Sequence[str] | None = None,
    kept: str | Path | None = None,
    trust_remote_code: bool = False,
    learning_rate: float | None = None,
    epochs: int | None = None,
    show_progress: bool = True,
) -> Evaluation:
    """Fine-tune a model on each task with each seed.

    Args:
        model_folder: a run's folder, one of its checkpoints, an export, or any causal Hugging Face model.
        glue_dir: ``glue_filtered``, or the folder that holds it.
        tasks: names; None: all that the folder has.
        kept: a folder for what is finished, a small file for each task and seed, and for the state of the one that is
            being learned, after each epoch (three times the model's size). What is there already, of the same weights,
            texts and settings, is not done again.
        learning_rate, epochs: None: the official ones of each task.

    Returns:
        ``results``: by task the means over the seeds in percent, ``<metric>_std`` where there are several, ``seeds``
        with each one's figures; and under ``mean`` the means over the tasks (:func:`mean_over_tasks`).
        ``predictions``: of the first seed, by task, as under ``glue`` in the official submission.

    Raises:
        ValueError: model or files cannot be used, or training fails.
    """
    if not seeds:
        raise ValueError("no seed: name one or more, as 42")
    folder = glue_folder(glue_dir)
    data = [read_glue_task(folder, task) for task in tasks_of(folder, tasks)]
    if kept is not None:
        check_writable(str(Path(kept) / "task"))
    model, encoder = open_language_model(model_folder, device, trust_remote_code)
    work = _Glue(model, encoder, device, None if kept is None else Path(kept), show_progress)
    evaluation = Evaluation({}, {})
    for of_task in data:
        settings = official_settings(of_task.task)
        settings = replace(
            settings,
            learning_rate=learning_rate or settings.learning_rate,
            epochs=epochs or settings.epochs,
            sequence_length=longest_text(model, settings.sequence_length),
        )
        found = list(work.of_task(of_task, settings, list(dict.fromkeys(seeds))))
        evaluation.results[of_task.task.name] = over_seeds(dict(found))
        evaluation.predictions[of_task.task.name] = official_predictions(of_task.task.name, found[0][1].predictions)
    evaluation.results[MEAN] = mean_over_tasks(evaluation.results)
    return evaluation


# ---- figures ----


def over_seeds(found: dict[int, FinetuneResult]) -> dict[str, Any]:
    """A task's figures: the mean of each metric, its standard deviation (of a sample), and each seed's own."""
    results: dict[str, Any] = {}
    metrics = next(iter(found.values())).metrics
    for name in metrics:
        values = [one.metrics[name] for one in found.values()]
        results[name] = fmean(values)
        if len(values) > 1:
            results[f"{name}_std"] = stdev(values)
    results["seeds"] = {
        str(seed): {**one.metrics, "best_epoch": one.best_epoch, "by_epoch": one.by_epoch}
        for seed, one in found.items()
    }
    return results


def mean_over_tasks(results: dict[str, dict[str, Any]]) -> dict[str, float]:
    """``accuracy``: what the challenge's own script counts, the plain mean over tasks of the accuracy.

    ``accuracy_or_f1``: with F1 for the tasks whose best epoch it chooses (MRPC and QQP), as tables of papers have it.
    """
    tasks = {name: figures for name, figures in results.items() if name != MEAN}
    return {
        ACCURACY: fmean(figures[ACCURACY] for figures in tasks.values()),
        "accuracy_or_f1": fmean(figures[GLUE_TASKS[name].metric] for name, figures in tasks.items()),
    }


def official_predictions(task: str, predictions: Sequence[int]) -> dict[str, Any]:
    """As under the task's name in the official ``predictions.json``."""
    return {"predictions": [{"id": f"{task}_{place}", "pred": label} for place, label in enumerate(predictions)]}


# ---- work that can go on ----


class _Glue:
    """A model, and where its finished tasks are kept."""

    def __init__(
        self,
        model: LanguageModel,
        encoder: ProcessorEncoder,
        device: torch.device,
        kept: Path | None,
        show_progress: bool,
    ) -> None:
        self.model, self.encoder, self.device = model, encoder, device
        self.kept, self.show_progress = kept, show_progress
        self.of_model = model_fingerprint(model)

    def of_task(
        self, data: GlueData, settings: FinetuneSettings, seeds: Sequence[int]
    ) -> Iterator[tuple[int, FinetuneResult]]:
        """Each seed's result, read where it is kept."""
        task = encode_task(self.encoder, data, settings.sequence_length)
        fingerprint = task_fingerprint(self.of_model, task, settings)
        kept = None if self.kept is None else KeptResults(self.kept, fingerprint)
        for seed in seeds:
            name = f"{data.task.name}-{seed}-{fingerprint[:16]}"  # other models' results may be beside it
            found = None if kept is None else kept.get(name)
            if found is not None:
                result, how = FinetuneResult(**found), f"as kept in {self.kept}"
            else:
                state = None if self.kept is None else self.kept / f"{name}.state.pt"
                result = finetune_task(self.model, task, seed, self.device, settings, state, self.show_progress)
                how = f"{result.seconds:.0f} s"
            logger.info(
                "%s, seed %d: %s (epoch %d of %d, %s)",
                data.task.name,
                seed,
                ", ".join(f"{name} {value:.2f}" for name, value in result.metrics.items()),
                result.best_epoch,
                settings.epochs,
                how,
            )
            if kept is not None and found is None:
                try:
                    kept.put(name, result._asdict())
                except ValueError as error:  # hours of work must not end in this
                    logger.warning("%s: an interruption would lose this result", error)
            yield seed, result


def task_fingerprint(of_model: str, task: EncodedTask, settings: FinetuneSettings) -> str:
    """SHA-256 over what a result depends on but the seed: the model, the texts as it reads them, the settings."""
    parts = [EDITION, of_model, asdict(settings), asdict(task.task), task[1:]]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
