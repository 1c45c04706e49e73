"""Examples for a person: captions whose image is first after re-ranking, and was not by cosine."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bitgen.evaluation.encode import EncodedSplit, Runner
from bitgen.evaluation.matching import RerankWeights, score_candidates
from bitgen.evaluation.retrieval import Ranking

# Captions that are looked at, spread over the split: a second's work.
AMONG = 96


class PutRight(NamedTuple):
    """Row of a caption, and its best images ``[k]``, best first, by cosine and after re-ranking."""

    caption: int
    by_cosine: Tensor
    reranked: Tensor


def put_right(
    runner: Runner, encoded: EncodedSplit, ranking: Ranking, cosine_weight: float, wanted: int = 3
) -> list[PutRight]:
    """At most ``wanted`` examples, of captions that are spread evenly over the split, in their order.

    Candidates are ordered by matching and ``cosine_weight`` times their cosine.
    """
    rows = torch.linspace(0, encoded.num_texts - 1, min(AMONG, encoded.num_texts)).round().long()
    few = ranking._replace(
        text_candidates=ranking.text_candidates[rows],
        image_candidates=ranking.image_candidates[:0],
    )
    scores, _ = score_candidates(runner, encoded, few, RerankWeights(cosine_weight), captions=rows)
    found = []
    for row, candidates, values in zip(rows.tolist(), few.text_candidates, scores, strict=True):
        order = candidates[values.argsort(descending=True, stable=True)]
        own = encoded.caption_image[row]
        if order[0] == own != candidates[0]:
            found.append(PutRight(row, candidates, order))
    return found[:wanted]
