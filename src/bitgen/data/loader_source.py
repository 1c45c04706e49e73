"""The batches of a run, from any step on: which samples they hold is a function of the step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Protocol

import torch

from bitgen.data.collate import build_loader
from bitgen.data.sampler import SampleKey
from bitgen.machine.stopping import outlast_stop_signals
from bitgen.protocols import Batch, Counts, State
from bitgen.stages import Stage


class TrainingData(Protocol):
    """What a source of batches asks of a dataset, beside samples. ``steady``: every batch reaches every trainable
    parameter; ``why_uncached``: why the features of its images cannot be computed once, None: they can."""

    @property
    def steady(self) -> bool: ...

    @property
    def why_uncached(self) -> str | None: ...

    def __len__(self) -> int: ...

    def describe(self) -> str: ...

    def record_name(self, index: int) -> str: ...

    def words_per_batch(self, sampler: Any) -> float | None: ...


class LoaderSource:
    """Micro-batches of this rank, loaded by workers that live until :meth:`stop`; a ``BatchSource``.

    Args:
        dataset: mapped, mixed, streamed, or text beside pairs; makes the sampler of a rank and names its records.
        sampler: of this rank; has ``epoch(number, start_batch)``.
        collate: samples to a batch.
        count_words: ``(input_ids, attention_mask)`` -> words, for batches that do not say how many they hold.
        batches_per_step: micro-batches of an optimizer step.
        num_workers: processes that load; 0: this one does.
        pin: keep batches in page-locked memory, for a GPU to fetch.
        max_bad_fraction: share of the samples that may stand in for bad records.

    Raises:
        ValueError: an epoch has fewer micro-batches than one optimizer step takes.
    """

    def __init__(
        self,
        dataset: TrainingData,
        sampler: Any,
        collate: Callable,
        count_words: Callable[[torch.Tensor, torch.Tensor], int],
        batches_per_step: int = 1,
        num_workers: int = 0,
        pin: bool = False,
        max_bad_fraction: float = 0.0,
    ) -> None:
        self.dataset, self.sampler, self.collate, self.count_words = dataset, sampler, collate, count_words
        self.batches_per_step, self.num_workers, self.pin = batches_per_step, num_workers, pin
        self.size, self.max_bad_fraction = len(dataset), max_bad_fraction
        self.steps_per_epoch = len(sampler) // batches_per_step
        if self.steps_per_epoch < 1:
            raise ValueError(
                f"grad_accum_steps is {batches_per_step}, but the training data gives {len(sampler)} batches "
                f"an epoch: use --grad_accum_steps {max(len(sampler), 1)} or less, or a smaller --batch_size."
            )
        self._batches: Iterator[dict[str, Any]] = iter(())
        self._reading: Any = None
        self._at = -1

    @property
    def steady(self) -> bool:
        """Whether every batch reaches every trainable parameter."""
        return self.dataset.steady

    def prepare(self, stage: Stage, step: int, validates: bool) -> None:
        """Nothing: what is loaded lies there."""

    def enter(self, phase: int) -> None:
        """Nothing: every phase reads the same."""

    def reads(self, phase: int) -> tuple[Any, Callable]:
        """The dataset that a phase reads, and its collate function."""
        return self.dataset, self.collate

    def held_out_in(self, phase: int) -> Any:
        """The held-out images as a phase reads them; None: as they are."""
        return None

    def start(self, stage: Stage, step: int) -> None:
        """Load from ``step`` to the stage's end: one loader, with no gap between epochs. A loader that is there already
        goes on."""
        dataset, collate = self.reads(stage.phase_at(step))
        if dataset is self._reading and step == self._at:
            return
        self.stop()
        loader = build_loader(dataset, self._keys(step, stage), self.num_workers, collate, self.pin)
        loader.worker_init_fn = outlast_stop_signals
        self._batches, self._reading, self._at = iter(loader), dataset, step

    def stop(self) -> None:
        """End the workers."""
        # By hand: an exception's traceback would keep the iterator, and with it the workers, alive.
        getattr(self._batches, "_shutdown_workers", lambda: None)()
        self._reading = None

    def draw(self) -> list[Batch]:
        """The micro-batches of the next step."""
        self._at += 1
        return [self._counted(next(self._batches)) for _ in range(self.batches_per_step)]

    def _counted(self, inputs: dict[str, Any]) -> Batch:
        skipped, words = inputs.pop("skipped", ()), inputs.pop("words", None)
        supervised = inputs.pop("supervised", None)
        ids = inputs["input_ids"]
        words = self.count_words(ids, inputs["attention_mask"]) if words is None else int(words.sum())
        supervised = None if supervised is None else int(supervised.sum())
        return Batch(inputs, Counts(len(inputs["indices"]), words, ids.numel(), supervised), inputs["indices"], skipped)

    def _keys(self, step: int, stage: Stage) -> Iterator[list[SampleKey]]:
        per_epoch = stage.steps_per_epoch * self.batches_per_step
        done = step * self.batches_per_step
        left = stage.steps * self.batches_per_step - done
        while left > 0:
            epoch, start = divmod(done, per_epoch)
            count = min(per_epoch - start, left)
            yield from islice(self.sampler.epoch(epoch, start), count)
            done, left = done + count, left - count

    def name_of(self, index: int) -> str:
        """How messages call a sample."""
        return self.dataset.record_name(index)

    def describe(self) -> str:
        """How much data there is."""
        return self.dataset.describe()

    def identity(self) -> dict[str, Any]:
        """What must be the same for a resumed run to see the same order."""
        return self.sampler.identity()

    def state(self, stage: Stage, step: int) -> State:
        """Epoch, and micro-batch in it, that ``step`` starts at; passes through what was seen most often; and of a
        corpus of text its words, which challenges limit."""
        words = getattr(self.dataset, "corpus_words", None)
        return {
            **({} if words is None else {"corpus_words": words}),
            "epoch": stage.epoch_at(step),
            "batch": step % stage.steps_per_epoch * self.batches_per_step,
            "passes": step / self.steps_per_pass(),
        }

    def load_state(self, state: State) -> None:
        """Nothing: the step says it."""

    # ---- for budgets ----

    def words_per_step(self, world_size: int) -> float | None:
        """Mean words of an optimizer step over all processes, estimated from the captions and the corpus; None where
        the data cannot say."""
        words = self.dataset.words_per_batch(self.sampler)
        return None if words is None else words * world_size * self.batches_per_step

    def steps_per_pass(self) -> float:
        """Steps until some part of the data has been seen once: the part that an epoch shows most often."""
        return self.steps_per_epoch / self.sampler.passes_per_epoch
