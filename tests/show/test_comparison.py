"""The picture of several models: what is at one place is named there together."""

from __future__ import annotations

from bitgen.show.comparison import comparison_picture, places


def test_models_at_one_place_share_a_label() -> None:
    names, tokens, scores = ["a", "b", "c", "d"], [16.0, 16.0, 64.0, 64.0], [92.0, 92.2, 80.0, 90.0]
    assert places(names, tokens, scores) == {(16.0, 92.0): ["a", "b"], (64.0, 80.0): ["c"], (64.0, 90.0): ["d"]}
    assert places(["a", "b"], [1.0, 1.0], [2.0, 2.0]) == {(1.0, 2.0): ["a", "b"]}
    picture = comparison_picture(names, scores, {"tokens": tokens}, "right", "4 recipes")
    assert picture.shape[0] == 3 and 0 < (picture < 250).float().mean() < 0.5
