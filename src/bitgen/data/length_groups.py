"""Batches of samples of similar length, so that little of a batch is padding."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from bitgen.data.sampler import ResumableBatchSampler


class LengthGroupedBatchSampler(ResumableBatchSampler):
    """A :class:`ResumableBatchSampler` whose global batches hold samples of similar ``lengths``.

    The epoch's permutation is cut into groups of ``group_batches`` global batches. Each group is sorted by length, and
    all batches then come in random order. It is a function of (seed, epoch), like the permutation: training
    resumes at any batch, and an epoch shows the same samples as without grouping.

    Args:
        lengths: of each sample of the dataset, in tokens.
        group_batches: the more, the less padding, and the less a batch's samples are drawn independently.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        start_batch: int = 0,
        group_batches: int = 50,
    ) -> None:
        assert group_batches > 0
        super().__init__(len(lengths), batch_size, rank, world_size, seed, start_batch)
        self.lengths, self.group_batches = torch.tensor(list(lengths)), group_batches

    def order(self, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Indices of the samples of ``epoch`` in their order, and the epoch that each one's randomness derives from."""
        size = self.batch_size * self.world_size
        order = self.permutation(epoch)
        used = order[: len(self) * size]
        groups = used.split(self.group_batches * size)
        batches = torch.cat([group[self.lengths[group].argsort(stable=True)] for group in groups]).view(-1, size)
        # A stream of its own, and like the permutation a function of (seed, epoch).
        generator = torch.Generator().manual_seed(int(order[0]) + int(order[-1]) * self.dataset_len)
        indices = batches[torch.randperm(len(batches), generator=generator)].flatten()
        return indices, torch.full_like(indices, epoch)

    def identity(self) -> dict[str, int | str]:
        """What else, beyond length, seed, batch and ranks, must be the same for a resumed run to see the same order."""
        return {
            "group_batches": self.group_batches,
            "lengths": hashlib.sha256(self.lengths.to(torch.int64).numpy().tobytes()).hexdigest(),
        }
