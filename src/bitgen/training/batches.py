"""The batches of a run, from any step on: which samples they hold is a function of the step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
from torch.utils.data import Dataset

from bitgen.config import Config
from bitgen.data.collate import build_loader
from bitgen.data.sampler import SampleKey
from bitgen.machine.stopping import outlast_stop_signals
from bitgen.training.phases import PhasePlan


class Batches:
    """Micro-batches of this rank, by workers that live until :meth:`stop`.

    Args:
        sampler: of this rank; has ``epoch(number, start_batch)``.
        count_words: ``(input_ids, attention_mask)`` -> words, for batches that do not say how many they hold.
        pin: keep them in page-locked memory, for a GPU to fetch.
    """

    def __init__(
        self, config: Config, sampler: Any, count_words: Callable[[torch.Tensor, torch.Tensor], int], pin: bool
    ) -> None:
        self.sampler, self.count_words, self.pin = sampler, count_words, pin
        self.accumulate, self.num_workers = config.training.grad_accum_steps, config.data.num_workers
        self._batches: Iterator[dict[str, Any]] = iter(())

    def start(self, dataset: Dataset, collate: Callable, step: int, plan: PhasePlan) -> None:
        """Load from ``step`` to the last one of the plan: one loader, with no gap between epochs."""
        self.stop()
        loader = build_loader(dataset, self._keys(step, plan), self.num_workers, collate, self.pin)
        loader.worker_init_fn = outlast_stop_signals
        self._batches = iter(loader)

    def stop(self) -> None:
        """End the workers."""
        # By hand: an exception's traceback would keep the iterator, and with it the workers, alive.
        getattr(self._batches, "_shutdown_workers", lambda: None)()

    def draw(self) -> list[dict[str, Any]]:
        """The micro-batches of the next step, with the number of ``words`` in each."""
        return [self._counted(next(self._batches)) for _ in range(self.accumulate)]

    def _counted(self, batch: dict[str, Any]) -> dict[str, Any]:
        if "words" in batch:
            return {**batch, "words": int(batch["words"].sum())}
        return {**batch, "words": self.count_words(batch["input_ids"], batch["attention_mask"])}

    def _keys(self, step: int, plan: PhasePlan) -> Iterator[list[SampleKey]]:
        per_epoch = plan.steps_per_epoch * self.accumulate
        done = step * self.accumulate
        left = plan.total_steps * self.accumulate - done
        while left > 0:
            epoch, start = divmod(done, per_epoch)
            count = min(per_epoch - start, left)
            yield from islice(self.sampler.epoch(epoch, start), count)
            done, left = done + count, left - count
