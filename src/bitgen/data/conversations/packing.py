"""Batches whose rows hold several conversations each, so that little of them is padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bitgen.data.conversations.dataset import VisualCollator, count_supervised
from bitgen.vlm.splice import Sample, pack


class PackingCollator:
    """As :class:`VisualCollator`, with rows of up to ``length`` tokens that hold several samples.

    ``input_ids``, ``labels`` and ``position_ids`` are ``[R, T]``, R at most the number of samples. Positions start anew
    at each sample, which keeps samples apart, and there is no ``attention_mask``. Pictures and all that is said of each
    sample come in the order in which the samples stand in the rows.
    """

    def __init__(self, pad_id: int, length: int) -> None:
        self.pad_id, self.length, self._padded = pad_id, length, VisualCollator(pad_id)

    def __call__(self, samples: Sequence[dict]) -> dict[str, Any]:
        texts = [Sample(sample["input_ids"], sample["labels"]) for sample in samples]
        packed = pack(texts, self.length, self.pad_id)
        batch = self._padded([samples[index] for index in packed.order])
        del batch["attention_mask"]
        used = int((packed.document_ids >= 0).sum(dim=1).max())  # of the longest row; the rest is padding in all
        rows = {name: getattr(packed, name)[:, :used] for name in ("input_ids", "labels", "position_ids")}
        return batch | rows | {"supervised": batch["supervised"].new_tensor([count_supervised(rows["labels"])])}
