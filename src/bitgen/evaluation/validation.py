"""What training looks at between steps: held-out retrieval and losses, from one pass over the split."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from bitgen.evaluation.encode import EncodedSplit, Runner, Split
from bitgen.evaluation.matching import HardPairs, balanced_accuracy, hard_pairs
from bitgen.evaluation.memory_metrics import memory_metrics
from bitgen.evaluation.retrieval import Ranking, rank_split, retrieval_metrics
from bitgen.model.modeling_bitgen import BitGenModel

# The contrastive loss depends on the number of candidates: a fixed one makes steps comparable.
CONTRASTIVE_BATCH = 128


class Validation(NamedTuple):
    """`scalars` under their `val/` names; `encoded` and `ranking` for whoever draws pictures of them."""

    scalars: dict[str, float]
    encoded: EncodedSplit
    ranking: Ranking


def validate(
    model: BitGenModel,
    dataset: Split,
    *,
    temperature: float | None = None,
    max_images: int | None = None,
    itm_images: int = 256,
    batch_size: int = 128,
    device: torch.device | str = "cpu",
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    num_workers: int = 0,
) -> Validation:
    """Validate on the first `max_images` images of a held-out split; the model's train/eval mode comes back.

    Recalls are percentages: val/i2t_R@1, 5, 10, val/t2i_R@..., and median ranks. As in training, accuracies are shares:
    val/itm_acc and val/itm_loss over the hard pairs of `itm_images` images spread over the split (their hardest wrong
    partners come from the whole split), and with `temperature` val/contrastive_loss, val/acc_i2t and val/acc_t2i over
    batches of 128 images with one caption each. val/memory_* where the model has a memory.
    """
    runner = Runner(model, batch_size, device, autocast, num_workers)
    encoded = runner.encode(dataset, max_images)
    ranking = rank_split(encoded, device=device)
    metrics: dict[str, Any] = dict(retrieval_metrics(encoded, ranking))
    if encoded.num_images > 1:
        metrics.update(_matching(runner, encoded, ranking, itm_images))
    if temperature is not None:
        metrics.update(_contrastive(encoded, temperature))
    if model.memory is not None:
        metrics.update({name: value / 100.0 for name, value in memory_metrics(runner, encoded).items()})
    return Validation({f"val/{name}": float(value) for name, value in metrics.items()}, encoded, ranking)


def _matching(runner: Runner, encoded: EncodedSplit, ranking: Ranking, itm_images: int) -> dict[str, float]:
    pairs = hard_pairs(encoded, ranking)
    if encoded.num_images > itm_images:
        kept = torch.zeros(encoded.num_images, dtype=torch.bool)
        kept[torch.linspace(0, encoded.num_images - 1, itm_images).round().long()] = True
        chosen = torch.cat([kept[encoded.caption_image].repeat(2), kept])  # the order in which hard_pairs lists them
        pairs = HardPairs(*(part[chosen] for part in pairs))
    logits = runner.match(encoded, pairs.texts, pairs.images)
    losses = F.binary_cross_entropy_with_logits(logits, pairs.labels.float(), reduction="none")
    return {
        "itm_acc": balanced_accuracy(logits > 0, logits <= 0, pairs.labels) / 100.0,
        # Weighted as in training, where there are as many true pairs as hard ones.
        "itm_loss": ((losses[pairs.labels].mean() + losses[~pairs.labels].mean()) / 2).item(),
    }


def _contrastive(encoded: EncodedSplit, temperature: float) -> dict[str, float]:
    """Symmetric cross-entropy and top-1 accuracy in batches of images spread over the split, one caption each."""
    size = min(CONTRASTIVE_BATCH, encoded.num_images)
    count = encoded.num_images // size
    first_caption = torch.full((encoded.num_images,), encoded.num_texts)
    first_caption.scatter_reduce_(0, encoded.caption_image, torch.arange(encoded.num_texts), "amin")
    sums = torch.zeros(3, dtype=torch.float64)
    target = torch.arange(size)
    for start in range(count):
        rows = torch.arange(start, encoded.num_images, count)[:size]
        logits: Tensor = encoded.image_features[rows] @ encoded.text_features[first_caption[rows]].T / temperature
        loss = 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))
        hits = [(matrix.argmax(dim=1) == target).double().mean() for matrix in (logits, logits.T)]
        sums += torch.stack([loss.double(), *hits])
    loss, acc_i2t, acc_t2i = (sums / count).tolist()
    return {"contrastive_loss": loss, "acc_i2t": acc_i2t, "acc_t2i": acc_t2i}
