"""Examples of what re-ranking put right, against scores that are known."""

import torch

from bitgen.evaluation.put_right import put_right
from bitgen.evaluation.retrieval import rank_split
from support.splits import TableRunner, split_of


def test_only_captions_that_re_ranking_put_right_are_shown_in_their_order() -> None:
    # By cosine caption 0 finds its image, 1 and 2 find image 0, 3 finds image 2.
    images = torch.eye(4)
    texts = torch.tensor([[1.0, 0, 0, 0], [0.8, 0.6, 0, 0], [0.8, 0, 0.6, 0], [0, 0, 0.8, 0.6]])
    encoded = split_of(images, texts, [0, 1, 2, 3])
    table = torch.zeros(4, 4)
    table[0, 1] = table[1, 1] = table[3, 3] = 1.0  # wrong for caption 0; right for 1 and 3; nothing of 2
    ranking = rank_split(encoded, top_k=4)
    found = put_right(TableRunner(table), encoded, ranking, cosine_weight=0.5)  # type: ignore[arg-type]
    assert [example.caption for example in found] == [1, 3]
    assert [int(example.by_cosine[0]) for example in found] == [0, 2]
    assert [int(example.reranked[0]) for example in found] == [1, 3]
    for example in found:
        assert sorted(example.by_cosine.tolist()) == sorted(example.reranked.tolist()) == [0, 1, 2, 3]
    assert put_right(TableRunner(table), encoded, ranking, 0.5, wanted=1)[0].caption == 1  # type: ignore[arg-type]
    # With a heavy cosine nothing changes, so there is nothing to show.
    assert put_right(TableRunner(table), encoded, ranking, 50.0) == []  # type: ignore[arg-type]
