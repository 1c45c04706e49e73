"""Winoground's scores, and the pairs of scenes that they are taken of."""

import pytest
import torch

from bitgen.data.scenes.descriptions import is_held_out
from bitgen.data.scenes.reading import read_caption
from bitgen.data.scenes.swapped import SwappedScenes, swapped_pairs
from bitgen.evaluation.encode import EncodedSplit, Runner
from bitgen.evaluation.swapped_words import swapped_metrics, winoground_scores
from bitgen.trained import open_model
from support.runs import written_run
from support.splits import FeatureSplit, TableRunner, split_of


def test_the_scores_are_winogrounds_also_with_ties() -> None:
    scores = torch.randint(0, 4, (500, 2, 2), generator=torch.Generator().manual_seed(0)).float()
    text = image = group = 0
    for pair in scores.tolist():
        (c0_i0, c0_i1), (c1_i0, c1_i1) = pair
        is_text = c0_i0 > c1_i0 and c1_i1 > c0_i1
        is_image = c0_i0 > c0_i1 and c1_i1 > c1_i0
        text, image, group = text + is_text, image + is_image, group + (is_text and is_image)
    assert winoground_scores(scores) == pytest.approx(
        {"text": text / 5, "image": image / 5, "group": group / 5}, abs=1e-9
    )


def test_by_chance_they_are_25_25_and_17() -> None:
    found = winoground_scores(torch.rand(200_000, 2, 2, generator=torch.Generator().manual_seed(1)))
    assert found["text"] == pytest.approx(25, abs=0.5)
    assert found["image"] == pytest.approx(25, abs=0.5)
    assert found["group"] == pytest.approx(100 / 6, abs=0.5)


def test_both_captions_of_a_pair_have_the_same_words_and_say_their_own_scene() -> None:
    pairs = list(swapped_pairs(100, 42))
    assert len({pair.captions for pair in pairs}) == 100
    for (first, second), (one, other) in pairs:
        assert sorted(one.split()) == sorted(other.split())
        assert one != other
        assert first.meaning != second.meaning
        assert is_held_out(first) and is_held_out(second)
        for scene, caption in ((first, one), (second, other)):
            read = read_caption(caption)
            assert read is not None and read.meaning == scene.meaning
    assert list(swapped_pairs(10, 42)) == pairs[:10]
    assert list(swapped_pairs(10, 43)) != pairs[:10]


class Judge(TableRunner):
    """Encodes nothing; orders pairs by a table of scores."""

    def encode(self, split: FeatureSplit) -> EncodedSplit:
        cosine = torch.eye(split.image_count).flip(0)  # each caption is nearest to another pair's image
        return split_of(cosine, torch.eye(split.image_count), list(range(split.image_count)))


def test_a_judge_that_knows_the_pairs_and_cosines_that_do_not() -> None:
    split = FeatureSplit(6)
    table = torch.rand(6, 6, generator=torch.Generator().manual_seed(2))
    table.fill_diagonal_(2.0)
    judge = Judge(table)
    found = swapped_metrics(judge, split)  # type: ignore[arg-type]
    assert found == {
        "swapped_text": 100.0,
        "swapped_image": 100.0,
        "swapped_group": 100.0,
        "swapped_text_cosine": 0.0,
        "swapped_image_cosine": 0.0,
        "swapped_group_cosine": 0.0,
    }
    assert sorted(judge.pairs) == [(a + c, a + i) for a in (0, 2, 4) for c in (0, 1) for i in (0, 1)]


def test_scenes_through_a_model_are_encoded_in_their_order() -> None:
    trained = open_model(str(written_run()))
    split = SwappedScenes(4, 42, trained.processor)
    found = swapped_metrics(Runner(trained.model), split)
    assert set(found) == {f"swapped_{name}{end}" for name in ("text", "image", "group") for end in ("", "_cosine")}
    encoded = Runner(trained.model).encode(split)
    decoded = trained.tokenizer.batch_decode(encoded.input_ids.long(), skip_special_tokens=True)
    # The tiny model's captions are cut.
    assert all(caption.startswith(text.strip()) for text, caption in zip(decoded, split.captions, strict=True))
    assert len({tuple(row.tolist()) for row in encoded.image_features}) == 8
