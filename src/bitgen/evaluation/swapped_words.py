"""Whether a model knows which word belongs to which: Winoground's three scores (arXiv 2204.03162, section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor

from bitgen.evaluation.encode import EncodedSplit, Runner, Split
from bitgen.evaluation.retrieval import pair_cosines


def winoground_scores(scores: Tensor) -> dict[str, float]:
    """Text, image and group score in percent; by chance 25, 25 and 17. Ties count against the model.

    Args:
        scores: ``[N, 2, 2]``, of caption i (second index) with image j (third) of each pair.
    """
    right, wrong = scores.diagonal(dim1=1, dim2=2), scores.flip(2).diagonal(dim1=1, dim2=2)
    # wrong[:, i] is caption i with the other image; wrong.flip(1)[:, j] is image j with the other caption.
    text = (right > wrong.flip(1)).all(dim=1)
    image = (right > wrong).all(dim=1)
    shares = {"text": text, "image": image, "group": text & image}
    return {name: 100.0 * share.double().mean().item() for name, share in shares.items()}


def swapped_metrics(runner: Runner, split: Split) -> dict[str, float]:
    """``swapped_text``, ``swapped_image`` and ``swapped_group`` by what orders candidates in re-ranking, and the same
    by cosine (``*_cosine``).

    Args:
        split: images 2 i and 2 i + 1, with one caption each, are pair i.
    """
    encoded: EncodedSplit = runner.encode(split)
    first = torch.arange(0, encoded.num_images, 2)[:, None, None]
    captions = (first + torch.tensor([[0, 0], [1, 1]])).flatten()
    images = (first + torch.tensor([[0, 1], [0, 1]])).flatten()
    found: dict[str, float] = {}
    for ending, scores in (
        ("", runner.order(encoded, captions, images)),
        ("_cosine", pair_cosines(encoded, captions, images)),
    ):
        for name, value in winoground_scores(scores.view(-1, 2, 2)).items():
            found[f"swapped_{name}{ending}"] = value
    return found
