"""Samples to a batch, and the loader that feeds a training loop without touching the global random state."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from bitgen.data.sampler import SampleKey
from bitgen.data.text_blocks import collate_blocks
from bitgen.model.processing_bitgen import pad_tokens


class Collator:
    """Stacks samples into the batch dict that the objective takes.

    ``pixel_values [B, 3, H, W]`` or ``vision_features [B, P, C]`` float32; ``input_ids``, ``attention_mask`` ``[B, T]``
    padded right to the longest; ``image_ids [B]`` (equal for captions of one image) and ``indices [B]``, all int64.
    Where samples stand in for bad records, ``skipped``: a list of their :class:`~bitgen.data.bad_records.Skipped`.
    Samples without an image give a batch without one; sequences of text the batch of ``collate_blocks``.
    """

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, samples: Sequence[dict]) -> dict[str, Any]:
        assert samples, "a batch holds at least one sample"
        if "document_ids" in samples[0]:
            return collate_blocks(samples)
        vision = [name for name in ("pixel_values", "vision_features") if name in samples[0]]
        skipped = [sample["skipped"] for sample in samples if "skipped" in sample]
        return {
            **({"skipped": skipped} if skipped else {}),
            **{name: torch.stack([sample[name] for sample in samples]) for name in vision},
            **pad_tokens([sample["input_ids"] for sample in samples], self.pad_token_id),
            "image_ids": torch.tensor([sample["image_id"] for sample in samples], dtype=torch.int64),
            "indices": torch.tensor([sample["index"] for sample in samples], dtype=torch.int64),
        }


def build_loader(
    dataset: Dataset,
    batches: Iterable[list[SampleKey]],
    num_workers: int,
    collate: Callable[[Sequence[dict]], dict[str, Any]],
    pin_memory: bool = False,
) -> DataLoader:
    """A loader over the ``batches`` of one epoch, in their order whatever ``num_workers`` is.

    It has a generator of its own: a DataLoader without one draws its workers' seed from the global generator, and a
    resumed run, which builds one loader less, would draw other dropout masks from there on.
    """
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        generator=torch.Generator(),
    )
