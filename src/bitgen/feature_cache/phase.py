"""Phase 1 from a feature cache: whether it can, and what of the trainer's differs while it does."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from bitgen.checkpoint.format import read_base
from bitgen.config import Config
from bitgen.data.dataset import PairDataset
from bitgen.data.text_and_pairs import TextAndPairs
from bitgen.feature_cache.filling import describe, encoder_fingerprint, fill
from bitgen.feature_cache.pairs import CachedPairs, CachedSplit
from bitgen.feature_cache.store import CacheError, FeatureCache
from bitgen.machine.devices import Precision
from bitgen.machine.ranks import Processes, from_main
from bitgen.model.modeling_bitgen import BitGenModel
from bitgen.training.phases import PhasePlan

if TYPE_CHECKING:
    from bitgen.training.trainer import Trainer

logger = logging.getLogger(__name__)

AUTO, OFF = "auto", "off"
AUTO_FOLDER = "feature_cache"


def uncachable(config: Config, train: PairDataset, val: PairDataset | None) -> str | None:
    """Why the data's features cannot be computed once; None: they can."""
    if isinstance(train, TextAndPairs):
        return "with text beside the pairs, phase 1 is not cached"
    if not isinstance(train, PairDataset):
        return "only one mapped data folder is cached, not several mixed and not a stream"
    if train.kind == "features":
        return "the data holds features computed earlier"
    if config.data.image_augmentation:
        return "image_augmentation shows an image differently each time, so phase 1 runs the encoder"
    if train.images_vary or (val is not None and val.images_vary):
        return "the built-in scenes are drawn anew each time, so phase 1 runs the encoder"
    return None


def _useless(config: Config, plan: PhasePlan, train: PairDataset) -> str | None:
    """Why phase 1 gains nothing from a cache; None: it does, or a folder for one was named."""
    steps = plan.total_steps if plan.boundary is None else min(plan.boundary, plan.total_steps)
    if steps == 0:
        return "the run has no phase 1"
    training = config.training
    shown = steps * training.batch_size * training.grad_accum_steps * training.num_gpus
    if config.vision.feature_cache == AUTO and shown <= train.image_count:
        return f"phase 1 shows {shown:,} pairs of {train.image_count:,} images: computing all of them takes longer"
    return None


class CachedPhase:
    """What a trainer asks where phase 1 reads a feature cache. See :meth:`prepare`.

    Args:
        collate: samples without images to a batch.
    """

    def __init__(self, config: Config, train: PairDataset, val: PairDataset | None, collate: object) -> None:
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
            if images:
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
            fill(cache, dataset, model, processes, precision, training.batch_size, data.num_workers, show)
        self.pairs = CachedPairs(self.train, caches[0][0], self.collate)
        self.held_out = CachedSplit(self.val, caches[1][0]) if val_images else None
        return True


def _no_room(caches: list[FeatureCache]) -> str | None:
    try:
        for cache in caches:
            cache.check_space()
    except CacheError as error:
        return str(error)
    return None


def plan_cached_phase(trainer: Trainer, train: PairDataset, val: PairDataset | None) -> CachedPhase | None:
    """The cached phase 1 that the configuration asks for, or None, with the reason in the log."""
    config = trainer.config
    if config.vision.feature_cache == OFF:
        return None
    reason = uncachable(config, train, val) or _useless(config, trainer.plan, train)
    if reason is not None:
        logger.warning("feature cache off: %s", reason)
        return None
    return CachedPhase(config, train, val, trainer.collate)


# ---- the tower's weights, which phase 1 then need not hold ----


def drop_base(model: BitGenModel) -> None:
    """Give up the memory of the frozen base, in place. With ``full`` tuning checkpoints hold it, so it is kept."""
    if model.config.vision_tuning == "full":
        return
    for _, parameter in model.vision_encoder.base_parameters():
        parameter.data = torch.empty(0, dtype=parameter.dtype, device=parameter.device)


def restore_base(model: BitGenModel, folder: Path, base_hash: str | None) -> None:
    """Read the base back from the run's folder where :func:`drop_base` gave it up.

    Raises:
        CheckpointError: the stored base is missing or damaged.
    """
    dropped = {f"vision_encoder.{name}": p for name, p in model.vision_encoder.base_parameters() if not p.numel()}
    if not dropped:
        return
    tensors = read_base(folder, base_hash)
    for name, parameter in dropped.items():
        _refill(parameter, tensors[name])


def _refill(parameter: nn.Parameter, tensor: torch.Tensor) -> None:
    parameter.data = tensor.to(device=parameter.device, dtype=parameter.dtype)
