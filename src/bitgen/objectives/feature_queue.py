"""The queue of past pairs: more candidates for the contrastive loss, and a pool of hard negatives for matching."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

EMPTY = -1


class QueueEntries(NamedTuple):
    """Pairs, batch first and detached.

    ``image_features, text_features [N, D]``; ``image_ids [N]``; ``input_ids, attention_mask [N, T]``;
    ``image_tokens [N, P', D]`` (pooled, bfloat16).
    """

    image_features: torch.Tensor
    text_features: torch.Tensor
    image_ids: torch.Tensor
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    image_tokens: torch.Tensor


class FeatureQueue:
    """First-in-first-out ring of the last ``size`` pairs, identical on all ranks.

    A caption drawn from it is encoded anew with today's weights; image tokens are as old as their entry. It has no
    momentum encoder (neither has FIBER's).

    Raises:
        ValueError: a size below 1, or a state dict of another size.
    """

    def __init__(self, size: int, embed_dim: int, max_seq_len: int, pooled_tokens: int) -> None:
        if size < 1:
            raise ValueError(f"queue_size={size} must be at least 1.")
        self.size = size
        self.position = 0
        self.filled = 0
        self.entries = QueueEntries(
            image_features=torch.zeros(size, embed_dim),
            text_features=torch.zeros(size, embed_dim),
            image_ids=torch.full((size,), EMPTY, dtype=torch.int64),
            input_ids=torch.zeros(size, max_seq_len, dtype=torch.int32),
            attention_mask=torch.zeros(size, max_seq_len, dtype=torch.uint8),
            image_tokens=torch.zeros(size, pooled_tokens, embed_dim, dtype=torch.bfloat16),
        )

    def __len__(self) -> int:
        return self.filled

    def to(self, device: torch.device | str) -> FeatureQueue:
        self.entries = QueueEntries(*(tensor.to(device) for tensor in self.entries))
        return self

    def valid(self) -> QueueEntries:
        """The filled slots (in ring order, not by age). Views: do not write to them."""
        return QueueEntries(*(tensor[: self.filled] for tensor in self.entries))

    @torch.no_grad()
    def enqueue(self, new: QueueEntries) -> None:
        """Overwrite the oldest pairs with ``new``; of more than ``size`` pairs only the last ones stay."""
        new = QueueEntries(*(tensor[-self.size :] for tensor in new))
        count = new.image_ids.shape[0]
        slots = (self.position + torch.arange(count, device=new.image_ids.device)) % self.size
        width = self.entries.input_ids.shape[1]
        for kept, added in zip(self.entries, new, strict=True):
            if kept is self.entries.input_ids or kept is self.entries.attention_mask:
                added = pad_to(added, width)
            kept[slots] = added.to(kept.dtype)
        self.position = (self.position + count) % self.size
        self.filled = min(self.size, self.filled + count)

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position, "filled": self.filled, **self.entries._asdict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, kept in self.entries._asdict().items():
            if state[name].shape != kept.shape:
                raise ValueError(
                    f"The checkpoint's queue has {name} of shape {tuple(state[name].shape)}, this run needs "
                    f"{tuple(kept.shape)}: queue_size, embed_dim, max_seq_len and the image grid must stay."
                )
        for name, kept in self.entries._asdict().items():
            kept.copy_(state[name])
        self.position, self.filled = int(state["position"]), int(state["filled"])


def pad_to(sequences: torch.Tensor, width: int) -> torch.Tensor:
    """Zero-pad ``[N, T]`` on the right to ``[N, width]``."""
    return F.pad(sequences, (0, width - sequences.shape[1]))
