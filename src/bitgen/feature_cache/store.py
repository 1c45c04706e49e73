"""Patch features of every image of a dataset, computed once, kept on disk and memory-mapped by phase 1.

A cache is a folder ``<parent>/<key>``, where the key is the hash of all that the features depend on::

    cache.json      that description, in words, with the shape
    features.bin    [N, P, C] in C order, little-endian: float32, bf16 or int8
    scales.bin      int8 only: float32 [N, C], one scale for each channel of each image
    bad.bin         one byte an image: 1 where it could not be read, and its row means nothing
    done.bin        one byte a shard of consecutive images: 1 once its rows are on disk
    checks.bin      uint32 [N], CRC-32 of each image's rows of those files; caches of earlier versions have none

Another encoder, other preprocessing or other data have another key, so that a stale cache is never read. Shards are
written in any order by any process, each marked only after its rows are synced: what an interrupted process finished
stays, and the rest is computed later. A row is compared with its checksum when a process first reads it; the shard of
one that differs counts as not done, so that the next start computes it again.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bitgen.feature_cache.checks import Checks, bytes_of_rows, checksum
from bitgen.feature_cache.description import DTYPES, CacheDescription
from bitgen.guards.json_files import BadJson, read_json
from bitgen.machine.files import remove_leftovers, replacing

logger = logging.getLogger(__name__)

SIDECAR, FEATURES, SCALES = "cache.json", "features.bin", "scales.bin"
BAD, MARKS, CHECKS = "bad.bin", "done.bin", "checks.bin"
# Settings that make a cache smaller, as messages name them: stage 1 has both.
POOLED, ROUNDED = "--feature_cache_pool 7 (a fifth of 16 x 16)", "--feature_cache_dtype int8 (half of bf16)"
# Checkpoints and logs need room on the same disk.
_USABLE_SHARE = 0.95


class CacheError(ValueError):
    """A feature cache cannot be written, read or used; the message names the file and the remedy."""


class FeatureCache:
    """One cache folder: made by :meth:`create`, filled shard by shard, then read.

    ``cache.read(rows)`` copies rows out of the memory map, float32 or bf16 ``[len(rows), P, C]``. Pickling carries the
    path alone, so that a data worker maps the file itself.

    Args:
        parent: where caches lie.
        smaller: the settings that would make this one smaller, for a disk that is too small.
    """

    def __init__(
        self, parent: str | Path, description: CacheDescription, smaller: Sequence[str] = (POOLED, ROUNDED)
    ) -> None:
        self.description, self.smaller = description, " or ".join(smaller)
        self.parent = Path(parent)
        self.folder = self.parent / description.key
        self._features: torch.Tensor | None = None
        self._scales: torch.Tensor | None = None
        self._bad: torch.Tensor | None = None
        self._checks: Checks | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_features": None, "_scales": None, "_bad": None, "_checks": None}

    # ---------------------------------------------------------------- making

    def missing_bytes(self) -> int:
        """Bytes that are still to be written."""
        if not ((self.folder / SIDECAR).exists() and (self.folder / MARKS).exists()) or not self.description.shape[0]:
            return self.description.total_bytes
        rows = sum(len(self.description.rows_of(shard)) for shard in self.missing_shards())
        return self.description.total_bytes * rows // self.description.shape[0]

    def check_space(self, beside: int = 0) -> None:
        """Refuse a cache that the disk cannot hold.

        Args:
            beside: bytes that other caches of the run will take there.

        Raises:
            CacheError: with the bytes that are needed and those that are free.
        """
        need = self.missing_bytes()
        existing = next(path for path in (self.parent.absolute(), *self.parent.absolute().parents) if path.exists())
        free = shutil.disk_usage(existing).free
        if need + beside > _USABLE_SHARE * free:
            count, tokens, width = self.description.shape
            others = f", {gigabytes(beside)} more go into others of this run," if beside else ""
            raise CacheError(
                f"the feature cache {self.folder} needs {gigabytes(need)} ({count:,} images x {tokens} x {width} x "
                f"{self.description.dtype}){others} and {existing} has {gigabytes(free)} free. Write {self.smaller}, "
                "point --feature_cache to another disk, or write --feature_cache off."
            )

    @property
    def lock(self) -> Path:
        """The file that whoever fills the cache holds: another one's half-made files would be emptied."""
        return self.parent / f".{self.description.key}.lock"

    def is_complete(self) -> bool:
        """Whether every feature is there; where not, the parent folder is made, for :attr:`lock`.

        Raises:
            CacheError: the folder cannot be written, or holds something else.
        """
        if (self.parent / SIDECAR).exists():
            raise CacheError(
                f"{self.parent} is one cache itself, not a folder of caches: write --feature_cache "
                f"{self.parent.parent}, where it is found if it fits this encoder, or another folder."
            )
        try:
            if (self.folder / SIDECAR).exists():
                self._check()
                return not self.missing_shards()
            self.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._failure(error) from error
        return False

    def create(self) -> None:
        """Make the folder and its files, unless they are there; one process, which holds the lock, does this before the
        others open it.

        Raises:
            CacheError: the folder cannot be written, or holds something else.
        """
        description = self.description
        try:
            if (self.folder / SIDECAR).exists():
                self._check()
                return
            self._say_what_differs()
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.folder)
            for name, size in self._sizes().items():
                with open(self.folder / name, "wb") as file:
                    file.truncate(size)  # sparse: space is taken as shards are written
                    os.fsync(file.fileno())
            with replacing(self.folder / SIDECAR) as temporary:
                temporary.write_text(json.dumps(description.to_dict(), indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise self._failure(error) from error

    def _sizes(self) -> dict[str, int]:
        """Bytes of each file."""
        description, images = self.description, self.description.shape[0]
        sizes = {FEATURES: images * description.row_bytes, BAD: images, MARKS: description.shards}
        sizes[CHECKS] = images * 4
        if description.dtype == "int8":
            sizes[SCALES] = images * description.shape[2] * 4
        return sizes

    def _check(self) -> None:
        """That the folder is what its name says: a copy or a file cut short must not be read."""
        remedy = f"Remove {self.folder}; it is computed again"
        try:
            found = read_json(self.folder / SIDECAR, dict)
        except BadJson as error:
            raise CacheError(f"{self.folder / SIDECAR} is damaged: {error}. {remedy}.") from error
        if found != self.description.to_dict():
            differing = ", ".join(_differing(found, self.description.to_dict()))
            raise CacheError(
                f"{self.folder} is a cache of something else (its {differing} differ), renamed or copied over this "
                f"one. {remedy}."
            )
        for name, size in self._sizes().items():
            path = self.folder / name
            if name == CHECKS and not path.exists():  # of an earlier version
                continue
            if not path.exists() or path.stat().st_size != size:
                raise CacheError(f"{path} is missing or cut short: it should have {size:,} bytes. {remedy}.")

    def _say_what_differs(self) -> None:
        """Caches of other encoders or data in the same parent are left alone; which ones there are helps a person."""
        for sidecar in sorted(self.parent.glob(f"*/{SIDECAR}")):
            try:
                found = read_json(sidecar, dict)
            except (OSError, BadJson):
                continue
            differing = _differing(found, self.description.to_dict())
            if set(differing) <= {"data", "shape"}:  # the other split of this run, most of the time
                continue
            logger.info("feature cache %s is not of this run: other %s", sidecar.parent, ", ".join(differing))

    def missing_shards(self) -> list[int]:
        """Shards that are not on disk yet."""
        marks = np.fromfile(self.folder / MARKS, dtype=np.uint8)
        return np.flatnonzero(marks != 1).tolist()

    def write_shard(self, shard: int, features: torch.Tensor, bad: torch.Tensor | None = None) -> None:
        """Put the rows of a shard, ``[rows, P, C]``, on disk, then mark it; ``bad [rows]``: which could not be read.

        Not through the memory map: a disk that fills up would end the process by a signal instead of an error.

        Raises:
            CacheError: the disk is full or fails; shards finished before stay.
        """
        description, rows = self.description, self.description.rows_of(shard)
        bad = torch.zeros(len(rows)) if bad is None else bad
        assert tuple(features.shape) == (len(rows), *description.shape[1:])
        scales: torch.Tensor | None = None
        if description.dtype == "int8":
            values, scales = quantize(features)
        else:
            values = features.to(DTYPES[description.dtype])
        content = [bad.to(torch.uint8), values, *([scales] if scales is not None else [])]
        try:
            if scales is not None:
                _write_at(self.folder / SCALES, rows.start * description.shape[2] * 4, scales)
            _write_at(self.folder / FEATURES, rows.start * description.row_bytes, values)
            _write_at(self.folder / BAD, rows.start, content[0])
            if (self.folder / CHECKS).exists():
                sums = [checksum(bytes_of_rows(content, row)) for row in range(len(rows))]
                _write_at(self.folder / CHECKS, rows.start * 4, torch.tensor(sums, dtype=torch.uint32))
            _write_at(self.folder / MARKS, shard, torch.ones(1, dtype=torch.uint8))
        except OSError as error:
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> CacheError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = (
                f"Free {gigabytes(self.missing_bytes())} on its disk and start again: what is finished stays. Or write "
                f"{self.smaller}, or --feature_cache off"
            )
        else:
            remedy = "Write --feature_cache with a folder that you may write to"
        return CacheError(f"cannot write the feature cache {self.folder}: {error.strerror or error}. {remedy}.")

    # ---------------------------------------------------------------- reading

    def read(self, rows: torch.Tensor) -> torch.Tensor:
        """Features of images ``rows [B]`` int64: ``[B, P, C]``, float32 of a float32 cache, else bf16.

        Raises:
            CacheError: one of them is not what was written.
        """
        if self._features is None:
            self._map()
        assert self._features is not None
        self._compare(rows.tolist())
        values = self._features.index_select(0, rows)
        if self._scales is None:
            return values
        return values.to(torch.bfloat16) * self._scales.index_select(0, rows).to(torch.bfloat16)[:, None]

    def is_bad(self, row: int) -> bool:
        """Whether image ``row`` could not be read when the cache was filled. Errors as of :meth:`read`."""
        if self._bad is None:
            self._map()
        assert self._bad is not None
        self._compare([row])
        return bool(self._bad[row])

    def _compare(self, rows: Sequence[int]) -> None:
        damaged = self._checks.damaged(rows) if self._checks is not None else None
        if damaged is None:
            return
        shard = damaged // self.description.shard_rows
        remedy = f"start this run again, which computes {len(self.description.rows_of(shard)):,} images of it anew"
        try:
            _write_at(self.folder / MARKS, shard, torch.zeros(1, dtype=torch.uint8))
        except OSError:  # somebody else's cache, which may only be read
            remedy = f"remove {self.folder}; it is computed again"
        raise CacheError(
            f"{self.folder} is damaged: the features of image {damaged} are not what was written (their checksum "
            f"differs). Look whether the disk fails, and {remedy}."
        )

    def _map(self) -> None:
        missing = self.missing_shards()
        if missing:
            raise CacheError(f"{self.folder} is not complete: {len(missing)} of {self.description.shards} shards lack.")
        self._bad = _mapped(self.folder / BAD, torch.uint8, self.description.shape[:1])
        self._features = _mapped(self.folder / FEATURES, DTYPES[self.description.dtype], self.description.shape)
        if self.description.dtype == "int8":
            count, _, width = self.description.shape
            self._scales = _mapped(self.folder / SCALES, torch.float32, (count, width))
        if (self.folder / CHECKS).exists():
            sums = np.fromfile(self.folder / CHECKS, dtype="<u4")
            content = [self._bad, self._features, *([self._scales] if self._scales is not None else [])]
            self._checks = Checks(sums, content)


def quantize(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``[B, P, C]`` to int8 and float32 scales ``[B, C]`` (of bfloat16 precision): value = int8 x scale.

    A scale for each channel of each image: a ViT has a few channels that are many times larger than the rest, which
    one scale for all would round away.
    """
    # Rounded up to what reading multiplies by, so that nothing overflows 127.
    scales = (features.float().abs().amax(dim=1) / 127 * (1 + 2**-7)).to(torch.bfloat16).float()
    values = (features.float() / scales.clamp_min(1e-30)[:, None]).round().clamp(-127, 127)
    return values.to(torch.int8), scales


def gigabytes(count: int) -> str:
    """``12.3 GB``."""
    return f"{count / 1e9:,.2f} GB"


def _differing(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    return [name for name in wanted if found.get(name) != wanted[name]]


def _mapped(path: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    # Copy-on-write, because torch refuses read-only arrays; nothing writes to it. NumPy has no bfloat16: bytes.
    raw = np.memmap(path, dtype=np.uint8, mode="c")
    return torch.from_numpy(raw).view(dtype).view(shape)


def _write_at(path: Path, offset: int, tensor: torch.Tensor) -> None:
    content = tensor.contiguous().view(-1).view(torch.uint8).numpy().data
    descriptor = os.open(path, os.O_WRONLY)
    try:
        while content:
            written = os.pwrite(descriptor, content, offset)
            content, offset = content[written:], offset + written
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
