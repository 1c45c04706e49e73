"""Which of several captions belongs to a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from bitgen.api import Model
from bitgen.demo.searching import check_captions


class Matched(NamedTuple):
    """A caption; the probability that it belongs to the picture, where every second one does; its share among the
    captions that were given, if one of them does; and the cosine of the features, which were made apart."""

    caption: str
    probability: float
    share: float
    cosine: float


@torch.no_grad()
def match(model: Model, picture: str | Path, captions: Sequence[str]) -> list[Matched]:
    """How well each caption fits a picture, best first; the model reads each together with the picture.

    Raises:
        ValueError: a picture that cannot be read, no captions, or too many.
    """
    captions, encoder = check_captions(captions), model.encoder
    seen = encoder.looked_at([picture])
    ids, mask = encoder.tokens(captions)
    tokens = seen.image_tokens.expand(len(captions), -1, -1)
    odds = model.trained.model.log_odds(tokens, ids, mask).double().cpu()
    cosines = (encoder.texts(captions) @ seen.image_features.T)[:, 0].cpu()
    rows = zip(captions, odds.sigmoid().tolist(), odds.softmax(dim=0).tolist(), cosines.tolist(), strict=True)
    return sorted((Matched(*row) for row in rows), key=lambda one: -one.share)
