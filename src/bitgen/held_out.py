"""Validation as the trainer calls it: the scalars of a held-out split, and what TensorBoard shows of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from bitgen.evaluation.encode import EncodedSplit, Runner
from bitgen.evaluation.validation import validate
from bitgen.training.distributed import Precision
from bitgen.training.trainer import HeldOutResult

if TYPE_CHECKING:
    from bitgen.config import Config
    from bitgen.data.cached_pairs import CachedSplit
    from bitgen.data.dataset import PairDataset
    from bitgen.model.modeling_bitgen import BitGenModel

# Rows of the slot-usage picture.
_PICTURED_PAIRS = 32


class HeldOut:
    """Validates on a split; call it with the model and today's temperature."""

    def __init__(self, config: Config, dataset: PairDataset, device: torch.device, precision: Precision) -> None:
        self.dataset, self.device, self.precision = dataset, device, precision
        self.max_images = config.data.val_max_images
        self.batch_size = config.training.batch_size
        self.num_workers = config.data.num_workers if dataset.kind == "images" else 0

    def __call__(self, model: BitGenModel, temperature: float, split: CachedSplit | None = None) -> HeldOutResult:
        """Scalars under ``val/`` and pictures; ``split``: the same images as features computed earlier.

        Raises:
            ValueError: a record of the split cannot be read.
        """
        result = validate(
            model,
            self.dataset if split is None else split,
            temperature=temperature,
            max_images=self.max_images,
            batch_size=self.batch_size,
            device=self.device,
            autocast=self.precision.autocast,
            num_workers=self.num_workers,
        )
        return HeldOutResult(result.scalars, self._pictures(model, result.encoded))

    def _pictures(self, model: BitGenModel, encoded: EncodedSplit) -> dict[str, torch.Tensor]:
        # Here, because drawing takes a second to import, and only rank 0 of a run with held-out data draws.
        from bitgen.training.pictures import retrieval_pictures, slot_similarity, slot_usage

        dataset = self.dataset
        captions = [caption for row in range(encoded.num_images) for caption in dataset.captions_of(row)]
        has_pixels = dataset.kind == "images"
        pictures = retrieval_pictures(
            encoded.image_features,
            encoded.text_features,
            encoded.caption_image,
            captions,
            image_of=dataset.image_tensor if has_pixels else lambda row: None,
            name_of=dataset.reader.image_id,
        )
        if model.memory is not None:
            pictures["memory/slot_similarity"] = slot_similarity(model.memory.state)
            pictures["memory/slot_usage"] = slot_usage(self._slot_weights(model, encoded), what="pair")
        return pictures

    def _slot_weights(self, model: BitGenModel, encoded: EncodedSplit) -> torch.Tensor:
        """Mean squared read weights ``[n, K]`` of n true pairs spread over the split."""
        count = min(_PICTURED_PAIRS, encoded.num_texts)
        texts = torch.linspace(0, encoded.num_texts - 1, count).round().long()
        usage = torch.zeros(count, model.memory.gpm.slots)
        runner = Runner(model, self.batch_size, self.device, self.precision.autocast)
        for part, mask, fused in runner.fuse(encoded, texts, encoded.caption_image[texts]):
            weights = mask[..., None] / mask.sum(dim=1)[:, None, None]
            usage[part] = (fused.read_weights.float().square() * weights).sum(dim=1).cpu()
        return usage
