"""Filling a feature cache: what it depends on, and the frozen tower over all images, shared by the ranks."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch.utils.data import DataLoader, Dataset

from bitgen.data.bad_records import BadRecord
from bitgen.data.dataset import PairDataset
from bitgen.feature_cache.description import CacheDescription
from bitgen.feature_cache.store import CacheError, FeatureCache, gigabytes
from bitgen.machine.devices import Precision
from bitgen.machine.files import digest
from bitgen.machine.ranks import Processes, exclusive_for_all, from_main, gather_objects, main_first
from bitgen.model.modeling_bitgen import BitGenModel

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 30.0


def describe(
    model: BitGenModel, dataset: PairDataset, images: int, precision: Precision, dtype: str, encoder: str
) -> CacheDescription:
    """The cache of the first ``images`` of a dataset, as a frozen tower of fingerprint ``encoder`` sees it."""
    config = model.config
    return CacheDescription(
        encoder=encoder,
        preprocessing=dataset.processor.image_fingerprint,
        data=dataset.reader.fingerprint,
        compute=precision.name,
        dtype=dtype,
        shape=(images, config.image_tokens, config.vision_feature_dim),
    )


def encoder_fingerprint(model: BitGenModel) -> str:
    """Hash of all that decides the tower's output in phase 1: configuration and weights.

    Adapters that add nothing are left out, so that runs with other LoRA settings share a cache.
    """
    encoder = model.vision_encoder
    assert encoder is not None
    without_adapters = encoder.tuning == "lora" and encoder.adapters_are_identity()
    left_out = {name for name, _ in encoder.adapter_parameters()} if without_adapters else set()
    weights = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in encoder.state_dict().items()
        if name not in left_out
    }
    config = {k: v for k, v in encoder.tower.config.to_dict().items() if k[0] != "_" and k != "transformers_version"}
    text = json.dumps(config, sort_keys=True, default=str)
    if encoder.tuning == "lora" and not without_adapters:  # the same factors add more at another scale
        scales = {name: module.scaling for name, module in encoder.named_modules() if hasattr(module, "scaling")}
        text += json.dumps(scales, sort_keys=True)
    return digest([(text, torch.empty(0)), *sorted(weights.items())])


class Pictures(Protocol):
    """Images by row, as a frozen tower takes them."""

    def image_tensor(self, row: int) -> torch.Tensor:
        """``[3, S, S]``. Raises ``BadRecord`` where it cannot be read."""

    def record_of_image(self, row: int) -> str:
        """How messages call it."""


class _Images(Dataset):
    """Images by row and whether they are bad, for a DataLoader to decode in parallel."""

    def __init__(self, pictures: Pictures, side: int) -> None:
        self.pictures, self.side = pictures, side

    def __getitem__(self, row: int) -> tuple[torch.Tensor, bool]:
        try:
            return self.pictures.image_tensor(row), False
        except BadRecord:
            return torch.zeros(3, self.side, self.side), True


class Filling(NamedTuple):
    """What fills a cache: images of ``side`` pixels, the frozen tower that sees them, and how.

    ``features``: pictures ``[b, 3, S, S]`` on the processes' device to what the cache holds of them, ``[b, P, C]``.
    """

    cache: FeatureCache
    pictures: Pictures
    side: int
    features: Callable[[torch.Tensor], torch.Tensor]
    processes: Processes
    precision: Precision
    batch_size: int
    num_workers: int
    show_progress: bool = True


def fill(work: Filling) -> None:
    """Compute what the cache lacks: rank r every ``world_size``-th missing shard. All ranks call it together.

    Raises:
        CacheError: the disk is full, a feature is not finite; what is finished stays. On every rank.
        InUse: another process fills it.
    """
    cache, processes = work.cache, work.processes
    complete = False
    with main_first(processes):
        if processes.is_main:
            complete = cache.is_complete()
    if from_main(complete, processes):
        logger.info("feature cache %s is complete", cache.folder)
        return
    remedy = "Start this run again when that is done (it then reads what is there), or name another --feature_cache."
    with exclusive_for_all(processes, cache.lock, f"The feature cache {cache.folder}", remedy):
        _fill(work)


def _fill(work: Filling) -> None:
    cache, processes = work.cache, work.processes
    with main_first(processes):
        if processes.is_main:
            cache.create()
    missing: list[int] = from_main(cache.missing_shards() if processes.is_main else None, processes)
    left = sum(len(cache.description.rows_of(shard)) for shard in missing)
    logger.info("computing the features of %s images once, into %s", f"{left:,}", cache.folder)
    started, error = time.monotonic(), None
    try:
        _fill_shards(work, missing[processes.rank :: processes.world_size])
    except ValueError as caught:
        if not processes.is_distributed:
            raise
        error = str(caught)
    except KeyboardInterrupt:
        logger.error("stopped; %d shards of the feature cache are finished and stay", _finished(cache))
        raise SystemExit(130) from None
    problems = [problem for problem in gather_objects(error, processes) if problem is not None]
    if problems:
        raise CacheError(problems[0])
    seconds = time.monotonic() - started
    size = gigabytes(cache.description.total_bytes)
    logger.info("feature cache ready: %s, %.0f images/s", size, left / max(seconds, 1e-9))


def _finished(cache: FeatureCache) -> int:
    return cache.description.shards - len(cache.missing_shards())


def _fill_shards(work: Filling, shards: list[int]) -> None:
    cache, pictures = work.cache, work.pictures
    batches = [rows for shard in shards for rows in _batches(cache.description.rows_of(shard), work.batch_size)]
    loader = DataLoader(
        _Images(pictures, work.side),
        batch_sampler=batches,
        num_workers=work.num_workers,
        pin_memory=work.processes.device.type == "cuda",
        generator=torch.Generator(),  # the global one must be untouched: a resumed run fills nothing
    )
    features = _features(work, loader, batches)
    ticker = _Ticker(sum(len(rows) for rows in batches), work.show_progress and work.processes.is_main)
    for shard in shards:
        rows, parts = cache.description.rows_of(shard), []
        bad: list[torch.Tensor] = []
        while sum(len(part) for part in bad) < len(rows):
            part, is_bad = next(features)
            parts.append(part)
            bad.append(is_bad)
            ticker.advance(len(part))
        cache.write_shard(shard, torch.cat(parts), torch.cat(bad))
        for row in torch.cat(bad).nonzero().flatten().tolist():
            logger.warning("%s cannot be read, so it gets no features", pictures.record_of_image(rows[row]))
    ticker.close()


def _batches(rows: range, size: int) -> list[list[int]]:
    return [list(rows[start : start + size]) for start in range(0, len(rows), size)]


def _features(
    work: Filling, loader: DataLoader, batches: list[list[int]]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The frozen tower's patch features ``[b, P, C]`` of each batch of rows, on the CPU, and which rows are bad."""
    for rows, (pixel_values, bad) in zip(batches, loader, strict=True):
        with torch.no_grad(), work.precision.autocast():
            features = work.features(pixel_values.to(work.processes.device, non_blocking=True)).cpu()
        finite = features.isfinite().flatten(1).all(dim=1)
        if not finite.all():
            row = rows[int((~finite).nonzero()[0])]
            raise CacheError(
                f"{work.pictures.record_of_image(row)} has NaN or infinite features: look at this image and at the "
                "encoder's weights, or try --precision fp32."
            )
        yield features, bad


class _Ticker:
    """A progress bar on a terminal, a line every half minute elsewhere."""

    def __init__(self, total: int, shown: bool) -> None:
        from tqdm import tqdm

        self._bar = tqdm(total=total, desc="features", unit=" images", disable=None if shown else True)
        self._shown, self._total, self._done, self._said = shown, total, 0, time.monotonic()

    def advance(self, images: int) -> None:
        self._done += images
        self._bar.update(images)
        if self._shown and self._bar.disable and time.monotonic() - self._said > _SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            logger.info("features of %s of %s images", f"{self._done:,}", f"{self._total:,}")

    def close(self) -> None:
        self._bar.close()
