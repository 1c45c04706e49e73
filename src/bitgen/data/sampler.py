"""Order of the samples as a pure function of (seed, epoch), so that training resumes at any batch of any epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch


class SampleKey(NamedTuple):
    """What a dataset is indexed by: all of a sample's randomness derives from (seed, epoch, index), in any worker."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    epoch: int = 0


class ResumableBatchSampler:
    """Yields, for one rank, lists of ``batch_size`` :class:`SampleKey`.

    A global batch is ``batch_size * world_size`` consecutive entries of the epoch's permutation, a contiguous part of
    it for each rank: its union is the same however many ranks share it. The last incomplete global batch is dropped.

    Args:
        dataset_len: samples an epoch.
        batch_size: samples a batch of one rank.
        rank, world_size: which part of each global batch is this process's.
        seed: together with the epoch, decides the permutation.
        start_batch: where ``iter(sampler)`` starts; ``epoch(e, start_batch)`` overrides it.

    Raises ``ValueError`` when one global batch is larger than the dataset.
    """

    def __init__(
        self, dataset_len: int, batch_size: int, rank: int = 0, world_size: int = 1, seed: int = 0, start_batch: int = 0
    ) -> None:
        assert batch_size > 0 and world_size > 0 and 0 <= rank < world_size
        if batch_size * world_size > dataset_len:
            ranks = f" x {world_size} processes" if world_size > 1 else ""
            raise ValueError(
                f"batch_size {batch_size}{ranks} is larger than the dataset ({dataset_len} samples): "
                f"use --batch_size {max(dataset_len // world_size, 1)} or less, or more data"
            )
        self.dataset_len, self.batch_size = dataset_len, batch_size
        self.rank, self.world_size = rank, world_size
        self.seed, self.start_batch = seed, start_batch

    @property
    def passes_per_epoch(self) -> float:
        """How often an epoch shows the part of the data that it shows most often."""
        return 1.0

    def __len__(self) -> int:
        """Batches an epoch."""
        return self.dataset_len // (self.batch_size * self.world_size)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        return self.epoch(0, self.start_batch)

    def permutation(self, epoch: int) -> torch.Tensor:
        """Order of all samples in ``epoch``, ``int64 [dataset_len]``, the same on every rank."""
        generator = torch.Generator()
        # Mixed, not added: with seed + epoch, seed 1 would replay seed 0's epochs one later.
        generator.manual_seed((self.seed * 0x9E3779B97F4A7C15 + epoch * 0xC2B2AE3D27D4EB4F + 1) % 2**63)
        return torch.randperm(self.dataset_len, generator=generator)

    def order(self, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Indices of the samples of ``epoch`` in their order, and the epoch that each one's randomness derives from."""
        order = self.permutation(epoch)
        return order, torch.full_like(order, epoch)

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[list[SampleKey]]:
        """Yields this rank's batches of ``epoch`` from ``start_batch`` on."""
        indices, epochs = self.order(epoch)
        for batch in range(start_batch, len(self)):
            start = (batch * self.world_size + self.rank) * self.batch_size
            part = slice(start, start + self.batch_size)
            yield [SampleKey(*key) for key in zip(indices[part].tolist(), epochs[part].tolist(), strict=True)]

    def identity(self) -> dict[str, int | str]:
        """What else, beyond length, seed, batch and ranks, must be the same for a resumed run to see the same order."""
        return {}
