"""What a feature cache holds and depends on, its name, and its division into shards."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import torch

FORMAT_VERSION = 1
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}
# Rows of a shard are in memory together, and lost together when a process is killed.
_SHARD_BYTES = 32 * 2**20


@dataclass(frozen=True)
class CacheDescription:
    """What a cache holds, and all that its features depend on.

    ``encoder``, ``preprocessing`` and ``data`` are fingerprints; ``compute`` is the number format that the encoder ran
    in; ``shape`` is ``(N, P, C)``.
    """

    encoder: str
    preprocessing: str
    data: str
    compute: str
    dtype: str
    shape: tuple[int, int, int]
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        assert self.dtype in DTYPES, self.dtype

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the sidecar."""
        return {**vars(self), "shape": list(self.shape)}

    @property
    def key(self) -> str:
        """Name of the cache's folder: 16 hex digits."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def row_bytes(self) -> int:
        """Bytes of one image's features, without scales."""
        return self.shape[1] * self.shape[2] * DTYPES[self.dtype].itemsize

    @property
    def total_bytes(self) -> int:
        """Bytes of the whole cache on disk, scales included."""
        scales = 4 * self.shape[2] if self.dtype == "int8" else 0
        return self.shape[0] * (self.row_bytes + scales)

    @property
    def shard_rows(self) -> int:
        """Images of a shard; the last one may have fewer."""
        return max(1, _SHARD_BYTES // self.row_bytes)

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.shape[0] // self.shard_rows)

    def rows_of(self, shard: int) -> range:
        """The images of a shard."""
        return range(shard * self.shard_rows, min((shard + 1) * self.shard_rows, self.shape[0]))
