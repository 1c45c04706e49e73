"""Where tokens stand and what they may see, for attention masks of any kind that a caller may bring."""

from __future__ import annotations

import logging
from typing import NamedTuple

import torch

logger = logging.getLogger(__name__)


class SequenceLayout(NamedTuple):
    """``positions [B, T]``; ``allowed [B, 1, T, S]`` (None: everything before and itself); ``real [B, T]``, 0 where a
    token is padding. T new tokens follow S - T cached ones."""

    positions: torch.Tensor
    allowed: torch.Tensor | None
    real: torch.Tensor


def sequence_layout(
    attention_mask: torch.Tensor | None, input_ids: torch.Tensor, past: int, max_seq_len: int
) -> SequenceLayout:
    """The layout of ``input_ids [B, T]`` after ``past`` cached tokens.

    Padding may stand on either side and is seen by nothing; positions count real tokens alone. Of a longer sequence
    the last ``max_seq_len`` tokens are read, with a warning: a token before them sees nothing but itself.

    Args:
        attention_mask: ``[B, S]``, or ``[B, T, T]`` (row: who looks, column: at what), or None where all is real.

    Raises:
        ValueError: a mask of another shape, or a cached sequence that outgrows ``max_seq_len``.
    """
    batch, length = input_ids.shape
    total = past + length
    if attention_mask is None:
        attention_mask = input_ids.new_ones(batch, total)
    if tuple(attention_mask.shape) not in ((batch, total), (batch, length, total)):
        raise ValueError(
            f"attention_mask is {list(attention_mask.shape)}; for {length} tokens after {past} cached ones it must be "
            f"[{batch}, {total}]" + (f" or [{batch}, {length}, {total}]." if not past else ".")
        )
    if attention_mask.dim() == 3 and past:
        raise ValueError("A three-dimensional attention_mask is for whole sequences: leave past_key_values out.")

    seen = attention_mask.bool()
    real = seen.diagonal(dim1=1, dim2=2) if seen.dim() == 3 else seen
    count = real.long().cumsum(dim=1)
    too_long = bool((count[:, -1] > max_seq_len).any())
    if seen.dim() == 2 and not too_long and _is_right_padded(real, past):
        positions = torch.arange(past, total, device=input_ids.device).clamp_max(max_seq_len - 1)
        return SequenceLayout(positions.expand(batch, -1), None, real[:, past:].to(input_ids.dtype))
    if too_long:
        if past:
            raise ValueError(
                f"The sequence has grown past max_seq_len={max_seq_len}: generate fewer tokens or shorten the prompt."
            )
        _warn_of_length(int(count[:, -1].max()), max_seq_len)
        real = real & (count > count[:, -1:] - max_seq_len)
        count = real.long().cumsum(dim=1)
    causal = torch.ones(length, total, dtype=torch.bool, device=input_ids.device).tril(past)
    allowed = causal & real[:, None]
    if seen.dim() == 3:
        allowed = allowed & seen
    # A token that may see nothing, as padding on the left, still sees itself: a softmax needs something to look at.
    itself = causal.triu(past)
    positions = (count - 1).clamp_min(0)[:, past:]
    return SequenceLayout(positions, (allowed | itself)[:, None], real[:, past:].to(input_ids.dtype))


def last_tokens(
    attention_mask: torch.Tensor | None, input_ids: torch.Tensor, max_seq_len: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which tokens of sequences wider than ``max_seq_len`` are read: of each row the last that are real.

    Nothing of the size length x length is made. More real tokens than ``max_seq_len`` are worth a warning.

    Args:
        attention_mask: ``[B, T]``, or None where all is real.

    Returns:
        ``index [B, N]``, N <= ``max_seq_len``: where they stand, padded on the right, and their ``mask [B, N]``.

    Raises:
        ValueError: a mask of another shape.
    """
    real = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    if real.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask is {list(real.shape)}; for sequences of more than max_seq_len={max_seq_len} tokens it "
            f"must be {list(input_ids.shape)}."
        )
    count = real.long().cumsum(dim=1)
    longest = int(count[:, -1].max())
    if longest > max_seq_len:
        _warn_of_length(longest, max_seq_len)
    read = real & (count > count[:, -1:] - max_seq_len)
    index = (~read).to(torch.uint8).argsort(dim=1, stable=True)[:, : max(min(longest, max_seq_len), 1)]
    return index, read.gather(1, index).to(input_ids.dtype)


def fitting_positions(position_ids: torch.Tensor, input_ids: torch.Tensor, limit: int) -> torch.Tensor:
    """Positions that a caller brings, ``[B, T]`` or ``[1, T]``, for every row; ``ValueError`` where they do not fit."""
    batch, length = input_ids.shape
    if position_ids.dim() != 2 or position_ids.shape[0] not in (1, batch) or position_ids.shape[1] != length:
        raise ValueError(f"position_ids is {list(position_ids.shape)}; it must be [{batch}, {length}].")
    if int(position_ids.min()) < 0 or int(position_ids.max()) >= limit:
        raise ValueError(f"position_ids reach {int(position_ids.max())}; the context ends at max_seq_len={limit}.")
    return position_ids.expand(batch, -1)


def _warn_of_length(length: int, max_seq_len: int) -> None:
    logger.warning(
        "a sequence of %d tokens is longer than max_seq_len=%d: the last %d are read", length, max_seq_len, max_seq_len
    )


def _is_right_padded(real: torch.Tensor, past: int) -> bool:
    """Whether causality alone hides the padding: none before a real token, and with a cache none at all."""
    if past:
        return bool(real.all())
    return not bool((real[:, 1:] & ~real[:, :-1]).any())
