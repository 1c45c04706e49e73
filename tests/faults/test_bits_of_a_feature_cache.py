"""A flipped bit in a finished feature cache is found when its image is read, and its shard computed again."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bitgen.feature_cache import description as described
from bitgen.feature_cache.description import CacheDescription
from bitgen.feature_cache.store import BAD, CHECKS, FEATURES, MARKS, SCALES, CacheError, FeatureCache
from faults.harness import flip, spread_bits

IMAGES, TOKENS, WIDTH = 10, 4, 6
SHARD = 3  # images


@pytest.fixture
def filled(tmp_path: Path, monkeypatch) -> Callable[[str], FeatureCache]:
    """A finished cache of a number format, image 7 of which could not be read."""

    def fill(dtype: str) -> FeatureCache:
        monkeypatch.setattr(described, "_SHARD_BYTES", SHARD * TOKENS * WIDTH * described.DTYPES[dtype].itemsize)
        cache = FeatureCache(tmp_path, CacheDescription("e", "p", "d", "fp32", dtype, (IMAGES, TOKENS, WIDTH)))
        cache.create()
        for shard in range(cache.description.shards):
            write(cache, shard)
        assert cache.is_complete() and cache.description.shards == 4
        return cache

    return fill


def write(cache: FeatureCache, shard: int) -> None:
    rows = cache.description.rows_of(shard)
    everything = torch.randn(IMAGES, TOKENS, WIDTH, generator=torch.Generator().manual_seed(0))
    cache.write_shard(shard, everything[rows.start : rows.stop], torch.tensor([row == 7 for row in rows]))


def read(cache: FeatureCache) -> tuple[torch.Tensor, list[bool]]:
    """All of a cache as a process reads it that has just opened it."""
    again = FeatureCache(cache.parent, cache.description)
    return again.read(torch.arange(IMAGES)), [again.is_bad(row) for row in range(IMAGES)]


@pytest.mark.parametrize(
    ("dtype", "name"),
    [(dtype, name) for dtype in ("float32", "bf16", "int8") for name in (FEATURES, BAD, CHECKS)] + [("int8", SCALES)],
)
def test_each_flipped_bit_is_found_and_costs_one_shard(filled, dtype: str, name: str) -> None:
    cache = filled(dtype)
    features, bad = read(cache)
    assert bad == [row == 7 for row in range(IMAGES)]
    for bit in spread_bits(cache.folder / name, 30):
        flip(cache.folder / name, bit)
        with pytest.raises(CacheError, match="image [0-9] are not what was written.*start this run again") as caught:
            read(cache)
        assert str(cache.folder) in str(caught.value) and "\n" not in str(caught.value)
        image = int(re.search(r"image (\d)", str(caught.value))[1])
        assert image == bit // 8 * IMAGES // (cache.folder / name).stat().st_size
        assert cache.missing_shards() == [image // SHARD]
        write(cache, image // SHARD)
        found, found_bad = read(cache)
        assert torch.equal(found, features) and found_bad == bad, bit


def test_a_flipped_bit_in_the_marks_computes_a_shard_again(filled) -> None:
    cache = filled("bf16")
    for bit in range(8 * cache.description.shards):
        flip(cache.folder / MARKS, bit)
        assert cache.missing_shards() == [bit // 8] and not cache.is_complete()
        flip(cache.folder / MARKS, bit)


def test_a_shard_that_was_marked_but_never_written_is_found(filled) -> None:
    cache = filled("float32")
    for name in (FEATURES, BAD, CHECKS):
        size = (cache.folder / name).stat().st_size
        (cache.folder / name).write_bytes(b"\0" * size)
    with pytest.raises(CacheError, match="image 0 are not what was written"):
        read(cache)


def test_a_row_is_summed_once_by_a_process_and_is_found_before_it_is_called_bad(filled, monkeypatch) -> None:
    cache = filled("int8")
    first = FeatureCache(cache.parent, cache.description)
    first.read(torch.tensor([2, 3]))
    monkeypatch.setattr("bitgen.feature_cache.checks.checksum", lambda parts: pytest.fail("summed again"))
    first.read(torch.tensor([3, 2]))
    assert not first.is_bad(2)
    monkeypatch.undo()
    flip(cache.folder / BAD, 8 * 5)
    with pytest.raises(CacheError, match="image 5"):
        FeatureCache(cache.parent, cache.description).is_bad(5)


def test_where_the_cache_may_only_be_read_the_remedy_is_to_remove_it(filled, monkeypatch) -> None:
    cache = filled("bf16")
    flip(cache.folder / FEATURES, 0)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("bitgen.feature_cache.store._write_at", refuse)
    with pytest.raises(CacheError, match=f"remove {cache.folder}; it is computed again"):
        read(cache)


@pytest.mark.parametrize("when", ["finished", "half filled"])
def test_a_cache_of_an_earlier_version_has_no_checksums_and_is_read(filled, when: str) -> None:
    cache = filled("bf16")
    features, _ = read(cache)
    (cache.folder / CHECKS).unlink()
    assert cache.is_complete() and torch.equal(read(cache)[0], features)
    if when == "half filled":
        shutil.copy(cache.folder / MARKS, cache.folder / "before")
        (cache.folder / MARKS).write_bytes(b"\1\0\1\1")
        cache.create()
        write(cache, 1)
        assert cache.is_complete() and torch.equal(read(cache)[0], features)
    assert not (cache.folder / CHECKS).exists()
