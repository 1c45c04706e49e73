"""Budgets of a run: passes through the data and words seen, as challenges limit them."""

from __future__ import annotations

import logging
from dataclasses import replace

from torch.utils.data import Dataset

from bitgen.config import Config
from bitgen.data.mixing import MixedBatchSampler
from bitgen.data.stream_order import StreamBatchSampler
from bitgen.data.text_and_pairs import TextAndPairs, TextAndPairsSampler
from bitgen.training.phases import PhasePlan

logger = logging.getLogger(__name__)

MILLION = 1_000_000
REVISION_PREFIX = "chck_"  # of folders and Hub revisions, as BabyLM's evaluation names them


def within_budget(plan: PhasePlan, config: Config, dataset: Dataset, sampler: object) -> PhasePlan:
    """The plan, cut to what ``max_epochs`` and ``max_words_seen`` allow, so that the schedule ends with the run.

    Words are estimated from the captions and the corpus; :meth:`Trainer.fit` counts what batches really hold.
    """
    training, limits = config.training, {}
    if training.max_epochs is not None:
        limits[f"max_epochs {training.max_epochs}"] = int(training.max_epochs * steps_per_pass(plan, sampler))
    if training.max_words_seen is not None:
        words = words_per_batch(dataset, sampler, config)
        if words:
            per_step = words * training.grad_accum_steps
            limits[f"max_words_seen {training.max_words_seen:,}"] = int(training.max_words_seen / per_step)
    for name, steps in limits.items():
        if steps < 1:
            raise ValueError(f"{name} allows no step at all: raise it, or use a smaller --batch_size.")
        if steps < plan.total_steps:
            logger.info("%s: the run is planned for %d steps instead of %d", name, steps, plan.total_steps)
            plan = replace(plan, total_steps=steps)
    return plan


def steps_per_pass(plan: PhasePlan, sampler: object) -> float:
    """Steps until some part of the data has been seen once: the part that an epoch shows most often."""
    return plan.steps_per_epoch / _passes_an_epoch(sampler)


def _passes_an_epoch(sampler: object) -> float:
    if isinstance(sampler, TextAndPairsSampler):
        if sampler.pairs is None:
            return 1.0
        return max(1.0, sampler.pair_batches / len(sampler.pairs) * _passes_an_epoch(sampler.pairs))
    if isinstance(sampler, (MixedBatchSampler, StreamBatchSampler)):
        return max(quota / size for quota, size in zip(sampler.quotas.tolist(), sampler.sizes, strict=True))
    return 1.0


def words_per_batch(dataset: Dataset, sampler: object, config: Config) -> float | None:
    """Mean words of a batch over all processes; None where the data cannot say, as a stream."""
    training = config.training
    if isinstance(dataset, TextAndPairs):
        batches, text = len(sampler), dataset.text
        share = (batches - sampler.pair_batches) / batches
        words = share * text.num_words / len(text) * dataset.text_batch_size
        if dataset.pairs is not None:
            words += (1 - share) * _caption_words(dataset.pairs) * training.batch_size
        return words * training.num_gpus
    if not hasattr(dataset, "iter_captions"):
        return None
    return _caption_words(dataset) * training.batch_size * training.num_gpus


def _caption_words(dataset: Dataset) -> float:
    counts = [len(caption.split()) for caption in dataset.iter_captions()]
    return sum(counts) / max(len(counts), 1)


def milestone(words: int) -> int:
    """The last of 1, 2 ... 10, 20 ... 100, 200 ... 1000 million words that is reached, in millions; 0: none yet."""
    millions = min(words // MILLION, 1000)
    unit = 1 if millions < 10 else 10 if millions < 100 else 100
    return millions // unit * unit
