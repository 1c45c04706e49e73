"""Checksums of a feature cache's rows, compared when a process first reads a row: no start waits for a whole cache."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch


class Checks:
    """Which rows of some tensors are what was written.

    Args:
        sums: the CRC-32 of each row, uint32 ``[N]``.
        content: tensors ``[N, ...]``, whose rows are summed together.
    """

    def __init__(self, sums: np.ndarray, content: Sequence[torch.Tensor]) -> None:
        self._sums, self._content = sums, content
        self._compared = np.zeros(len(sums), dtype=bool)

    def damaged(self, rows: Sequence[int]) -> int | None:
        """The first of ``rows`` that is not what was written; None: all are. A row is summed once."""
        for row in rows:
            if not self._compared[row]:
                if checksum(bytes_of_rows(self._content, row)) != self._sums[row]:
                    return row
                self._compared[row] = True
        return None


def bytes_of_rows(content: Sequence[torch.Tensor], row: int) -> Iterator[memoryview]:
    """The bytes of one row of each tensor."""
    for tensor in content:
        yield tensor[row : row + 1].contiguous().view(-1).view(torch.uint8).numpy().data


def checksum(parts: Iterator[memoryview]) -> int:
    """CRC-32 of bytes one after the other: finds every flipped bit, and any damage within 32 bits."""
    value = 0
    for part in parts:
        value = zlib.crc32(part, value)
    return value
