"""Fine-tuning a language model on one (Super)GLUE task, by the rules of the BabyLM challenge."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from bitgen.evaluation.babylm.glue.classifier import EncodedTask, TextClassifier, padded, passes
from bitgen.evaluation.babylm.glue.data import GlueTask
from bitgen.evaluation.babylm.glue.metrics import task_metrics
from bitgen.evaluation.babylm.models import LanguageModel
from bitgen.machine.files import replacing

logger = logging.getLogger(__name__)

_VALID_BATCH = 64
_PROGRESS = ("done", "by_epoch", "best", "seconds")


@dataclass(frozen=True)
class FinetuneSettings:
    """How a task is learned; the defaults are those of the official script.

    Attributes:
        learning_rate: the peak, reached after ``warmup`` of the steps; then a cosine down to ``floor`` of it.
        weight_decay: AdamW's, on every weight.
        dropout: of the head; the model's own is as in its training.
        sequence_length: the most tokens of a text.
    """

    epochs: int
    batch_size: int
    learning_rate: float = 3e-5
    weight_decay: float = 0.01
    warmup: float = 0.06
    floor: float = 0.1
    dropout: float = 0.1
    sequence_length: int = 512


def official_settings(task: GlueTask) -> FinetuneSettings:
    """Those of the challenge's script for a task."""
    return FinetuneSettings(task.epochs, task.batch_size)


class FinetuneResult(NamedTuple):
    """``metrics`` in percent and ``predictions`` of the best epoch (counted from 1), the first of those that are level;
    ``by_epoch``: what chose it; ``seconds``: wall time."""

    metrics: dict[str, float]
    predictions: list[int]
    best_epoch: int
    by_epoch: list[float]
    seconds: float


def rate_factor(step: int, steps: int, warmup: int, floor: float) -> float:
    """The learning rate of a step (from 0) over its peak: linear from 0 in ``warmup`` steps, then a cosine."""
    if step < warmup:
        return step / warmup
    progress = (step - warmup) / max(steps - warmup, 1)
    return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2


def finetune_task(
    model: LanguageModel,
    task: EncodedTask,
    seed: int,
    device: torch.device,
    settings: FinetuneSettings | None = None,
    state: Path | None = None,
    show_progress: bool = True,
) -> FinetuneResult:
    """Fine-tune a copy of the model, and classify the valid texts after each epoch.

    Every epoch visits the training texts in a new order, in batches of exactly ``batch_size``; what is left over waits
    for another epoch. A batch is drawn at random, as the official pipeline does it, and passed through the model in
    groups of like length whose gradients are summed, so that padding costs little and the update is the same.

    Args:
        model: in float32, on ``device``; it is left as it is.
        seed: of the head's weights, the order and dropout. The same seed gives the same bits on one CPU.
        settings: default :func:`official_settings`.
        state: a file, of this model, task, seed and settings alone, from which an interrupted call goes on after its
            last whole epoch. It is gone when the call returns.

    Raises:
        ValueError: fewer training texts than a batch, or a loss or logits that are not finite.
    """
    settings = settings or official_settings(task.task)
    if len(task.train) < settings.batch_size:
        raise ValueError(
            f"{task.task.name} (seed {seed}): {len(task.train)} training examples are fewer than a batch of "
            f"{settings.batch_size}. Download its .train.jsonl again, or choose a smaller batch_size"
        )
    # Dropout and the head's weights come from torch's global generators, which are put back afterwards.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        training = _Training(model, task, seed, device, settings)
        if state is not None:
            training.go_on(state)
        total = training.steps
        bar = tqdm(total=total, desc=training.name, unit=" steps", leave=False, disable=None if show_progress else True)
        with bar:
            bar.update(training.done)
            while len(training.by_epoch) < settings.epochs:
                training.epoch(bar)
                if state is not None and len(training.by_epoch) < settings.epochs:
                    training.keep(state)
    if state is not None:
        state.unlink(missing_ok=True)
    return training.result()


class _Training:
    """A classifier and its optimizer, from epoch to epoch."""

    def __init__(
        self, model: LanguageModel, task: EncodedTask, seed: int, device: torch.device, settings: FinetuneSettings
    ) -> None:
        self.task, self.device, self.settings = task, device, settings
        self.name = f"{task.task.name} (seed {seed})"
        self.steps = len(task.train) // settings.batch_size * settings.epochs
        self.warmup, self.done = int(settings.warmup * self.steps), 0
        self.classifier = TextClassifier(model, task.task.labels, settings.dropout)
        self.optimizer = torch.optim.AdamW(
            self.classifier.parameters(), settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        self.order = torch.Generator().manual_seed(seed)
        self.by_epoch: list[float] = []
        self.best: dict[str, Any] = {}
        self.seconds = 0.0

    def epoch(self, bar: tqdm) -> None:
        """Learn from every text once, and classify the others."""
        began = time.monotonic()
        for batch in _batches(len(self.task.train), self.settings.batch_size, self.order):
            loss = self.step(batch)
            if not math.isfinite(loss):
                raise ValueError(
                    f"{self.name}: the loss is {loss} at step {self.done} of {self.steps}, no score is given. Lower "
                    f"the learning rate (it is {self.settings.learning_rate:g}), or look for the fault in the model"
                )
            bar.update()
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        predictions = classify(self.classifier, self.task.valid, self.device, self.name)
        metrics = task_metrics(self.task.task, predictions, self.task.valid_labels)
        chosen_by = self.task.task.metric
        self.by_epoch.append(metrics[chosen_by])
        if not self.best or metrics[chosen_by] > self.best["metrics"][chosen_by]:
            self.best = {"metrics": metrics, "predictions": predictions, "best_epoch": len(self.by_epoch)}
        self.seconds += time.monotonic() - began

    def step(self, batch: list[int]) -> float:
        """One update by the mean loss of the training texts at these places; the loss."""
        self.classifier.train()
        for group in self.optimizer.param_groups:
            factor = rate_factor(self.done, self.steps, self.warmup, self.settings.floor)
            group["lr"] = self.settings.learning_rate * factor
        total = torch.zeros((), device=self.device)
        for part in passes([len(self.task.train[place]) for place in batch], self.device):
            chosen = [batch[place] for place in part]
            labels = torch.tensor([self.task.train_labels[place] for place in chosen], device=self.device)
            logits = self.classifier(*padded([self.task.train[place] for place in chosen], self.device))
            loss = F.cross_entropy(logits, labels, reduction="sum") / len(batch)
            loss.backward()
            total += loss.detach()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.done += 1
        return total.item()

    def result(self) -> FinetuneResult:
        """That of the best epoch so far."""
        return FinetuneResult(**self.best, by_epoch=self.by_epoch, seconds=self.seconds)

    # ---- interruptions ----

    def keep(self, path: Path) -> None:
        """Write all that the next epochs depend on; a disk that is full is only said."""
        generators = [self.order.get_state(), torch.get_rng_state()]
        if self.device.type == "cuda":
            generators.append(torch.cuda.get_rng_state(self.device))
        content = {
            "classifier": self.classifier.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generators": generators,
            "progress": {name: getattr(self, name) for name in _PROGRESS},
        }
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                torch.save(content, temporary)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
            logger.warning("%s cannot be written (%s): an interruption would lose this epoch", path, error)

    def go_on(self, path: Path) -> None:
        """Where :meth:`keep` wrote; from the start where there is no such file. ValueError: it is damaged."""
        if not path.exists():
            return
        try:
            content = torch.load(path, map_location=self.device, weights_only=True)
            progress, generators = content["progress"], [one.cpu() for one in content["generators"]]
            self.classifier.load_state_dict(content["classifier"])
            self.optimizer.load_state_dict(content["optimizer"])
        except Exception as error:  # torch raises many kinds for a damaged file
            raise ValueError(
                f"{path} is damaged ({type(error).__name__}): delete it, and this task starts anew"
            ) from error
        for name in _PROGRESS:
            setattr(self, name, progress[name])
        self.order.set_state(generators[0])
        torch.set_rng_state(generators[1])
        if self.device.type == "cuda" and len(generators) > 2:  # not of a state that a CPU kept
            torch.cuda.set_rng_state(generators[2], self.device)
        logger.info("%s goes on after epoch %d of %d", self.name, len(self.by_epoch), self.settings.epochs)


def _batches(count: int, size: int, order: torch.Generator) -> Iterator[list[int]]:
    """An epoch in a new order, in whole batches."""
    shuffled = torch.randperm(count, generator=order).tolist()
    for start in range(0, count - size + 1, size):
        yield shuffled[start : start + size]


@torch.inference_mode()
def classify(classifier: TextClassifier, texts: list[list[int]], device: torch.device, name: str) -> list[int]:
    """The likeliest class of each text.

    Raises:
        ValueError: a logit is not finite; the message begins with ``name``.
    """
    classifier.eval()
    order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
    found: list[Tensor] = []
    for start in range(0, len(order), _VALID_BATCH):
        part = [texts[place] for place in order[start : start + _VALID_BATCH]]
        found.append(classifier(*padded(part, device)))
    logits = torch.cat(found).cpu()
    if not logits.isfinite().all():
        raise ValueError(f"{name}: the model gives logits that are not finite, no score is given. Lower the rate")
    predictions = torch.empty(len(texts), dtype=torch.long)
    predictions[torch.tensor(order)] = logits.argmax(dim=-1)
    return predictions.tolist()
