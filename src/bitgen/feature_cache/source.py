"""Phase 1 from a feature cache: whether it can, and a source of batches that reads it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from bitgen.checkpoint.format import read_base, short_hash, split_state
from bitgen.config import Config
from bitgen.data.dataset import PairDataset
from bitgen.data.loader_source import LoaderSource, TrainingData
from bitgen.feature_cache.filling import Filling, describe, encoder_fingerprint, fill
from bitgen.feature_cache.pairs import CachedPairs, CachedSplit, as_it_is
from bitgen.feature_cache.store import CacheError, FeatureCache
from bitgen.machine.devices import Precision
from bitgen.machine.ranks import Processes, from_main
from bitgen.model.modeling_bitgen import BitGenModel
from bitgen.stages import Stage

logger = logging.getLogger(__name__)

AUTO, OFF = "auto", "off"
AUTO_FOLDER = "feature_cache"


def uncachable(config: Config, train: TrainingData, val: PairDataset | None) -> str | None:
    """Why the data's features cannot be computed once; None: they can."""
    if train.why_uncached is not None:
        return train.why_uncached
    if config.data.image_augmentation:
        return "image_augmentation shows an image differently each time, so phase 1 runs the encoder"
    assert isinstance(train, PairDataset)  # the others say why not
    if train.images_vary or (val is not None and val.images_vary):
        return "the built-in scenes are drawn anew each time, so phase 1 runs the encoder"
    return None


def useless(config: Config, stage: Stage, train: PairDataset) -> str | None:
    """Why phase 1 gains nothing from a cache; None: it does, or a folder for one was named."""
    steps = min([stage.steps, *(phase.start for phase in stage.phases[1:])])
    if steps == 0:
        return "the run has no phase 1"
    training = config.training
    shown = steps * training.batch_size * training.grad_accum_steps * training.num_gpus
    if config.vision.feature_cache == AUTO and shown <= train.image_count:
        return f"phase 1 shows {shown:,} pairs of {train.image_count:,} images: computing all of them takes longer"
    return None


class RunCaches:
    """The feature caches of a run's two splits. See :meth:`prepare`.

    Args:
        collate: samples without images to a batch.
    """

    def __init__(
        self,
        config: Config,
        train: PairDataset,
        val: PairDataset | None,
        collate: Callable[[Sequence[dict]], dict[str, Any]],
    ) -> None:
        wanted = config.vision.feature_cache
        self.parent = Path(config.output.output_dir) / AUTO_FOLDER if wanted == AUTO else Path(wanted)
        self.config, self.train, self.val, self.collate = config, train, val, collate
        self.pairs: CachedPairs | None = None
        self.held_out: CachedSplit | None = None

    def prepare(self, model: BitGenModel, processes: Processes, precision: Precision) -> bool:
        """Compute what the caches of both splits lack; on all ranks together. False: ``auto`` found no room.

        Raises:
            CacheError: the disk is too small or full, the folder cannot be written or is damaged.
            ValueError: an image cannot be read.
        """
        fingerprint = from_main(encoder_fingerprint(model) if processes.is_main else None, processes)
        val_images = 0
        if self.val is not None:
            val_images = min(self.val.image_count, self.config.data.val_max_images or self.val.image_count)
        caches: list[tuple[FeatureCache, PairDataset]] = []
        for dataset, images in ((self.train, self.train.image_count), (self.val, val_images)):
            if dataset is not None and images:
                dtype = self.config.vision.feature_cache_dtype
                description = describe(model, dataset, images, precision, dtype, fingerprint)
                caches.append((FeatureCache(self.parent, description), dataset))
        problem = from_main(_no_room([cache for cache, _ in caches]) if processes.is_main else None, processes)
        if problem is not None:
            if self.config.vision.feature_cache == AUTO:
                logger.warning("feature cache off: %s", problem)
                return False
            raise CacheError(problem)
        for cache, dataset in caches:
            training, data = self.config.training, self.config.data
            show = self.config.output.progress
            side, see = dataset.processor.image_size, model.patch_features
            how = (processes, precision, training.batch_size, data.num_workers, show)
            fill(Filling(cache, dataset, side, see, *how))
        self.pairs = CachedPairs(self.train, caches[0][0], self.collate)
        if self.val is not None and val_images:
            self.held_out = CachedSplit(self.val, caches[1][0])
        return True


def _no_room(caches: list[FeatureCache]) -> str | None:
    beside = 0
    try:
        for cache in caches:
            cache.check_space(beside)
            beside += cache.missing_bytes()
    except CacheError as error:
        return str(error)
    return None


class CachedSource(LoaderSource):
    """A source whose phase 1 reads a feature cache, and later ones the images themselves.

    While it does, the frozen base of the tower is given up, and read back from the run's folder where phase 1 ends.

    Args:
        caches: filled by :meth:`prepare`, on all ranks together.
        model: whose tower the features are of; on its device.
        run_folder: where the base is kept.
        The rest: as of :class:`LoaderSource`.
    """

    def __init__(
        self,
        caches: RunCaches,
        model: BitGenModel,
        ranks: Processes,
        precision: Precision,
        run_folder: Path,
        *arguments: Any,
        **settings: Any,
    ) -> None:
        super().__init__(*arguments, **settings)
        self.caches, self.model, self.ranks, self.precision = caches, model, ranks, precision
        self.run_folder = run_folder
        self.is_cached = False
        self._base_hash: str | None = None

    def prepare(self, stage: Stage, step: int, validates: bool) -> None:
        """Fill the caches where phase 1, or a validation owed to it, will read them."""
        trains = step < stage.steps and stage.phase_at(step) == 1
        owed = validates and stage.phase_at(step - 1) == 1
        self.is_cached = (trains or owed) and self.caches.prepare(self.model, self.ranks, self.precision)

    def enter(self, phase: int) -> None:
        """Give up the base in phase 1; read it back where a later phase begins."""
        if not self.is_cached:
            return
        if phase == 1:
            self._base_hash = drop_base(self.model) or self._base_hash
        else:
            restore_base(self.model, self.run_folder, self._base_hash)

    def reads(self, phase: int) -> tuple[Any, Callable]:
        """In phase 1 the cache."""
        return (self.caches.pairs, as_it_is) if self.is_cached and phase == 1 else super().reads(phase)

    def held_out_in(self, phase: int) -> CachedSplit | None:
        """The held-out images as features, where a phase reads those; None: as images."""
        return self.caches.held_out if self.is_cached and phase == 1 else None


# ---- the tower's weights, which phase 1 then need not hold ----


def drop_base(model: BitGenModel) -> str | None:
    """Give up the memory of the frozen base, in place; the hash it is kept under, None where there is none or it is
    gone already. With ``full`` tuning checkpoints hold it, so it is kept."""
    base = split_state(model, model.base_names())[1]
    if not any(tensor.numel() for tensor in base.values()):
        return None
    kept = short_hash(base)
    names = model.base_names()
    for name, parameter in model.named_parameters():
        if name in names:
            parameter.data = torch.empty(0, dtype=parameter.dtype, device=parameter.device)
    return kept


def restore_base(model: BitGenModel, folder: Path, base_hash: str | None) -> None:
    """Read the base back from the run's folder where :func:`drop_base` gave it up.

    Raises:
        CheckpointError: the stored base is missing or damaged.
    """
    names = model.base_names()
    dropped = {name: p for name, p in model.named_parameters() if name in names and not p.numel()}
    if not dropped:
        return
    tensors = read_base(folder, base_hash)
    for name, parameter in dropped.items():
        parameter.data = tensors[name].to(device=parameter.device, dtype=parameter.dtype)
