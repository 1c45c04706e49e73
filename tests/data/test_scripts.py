"""Words and their number in any script."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitgen.data.scripts import count_words, is_unspaced, split_words


@pytest.mark.parametrize(
    ("text", "found", "count"),
    [
        ("A dog runs .", ["a", "dog", "runs"], 4),
        ("一只狗，在跑。", ["一", "只", "狗", "在", "跑"], 5),
        ("茶色の犬", ["茶", "色", "の", "犬"], 4),
        ("วิ่งบน", ["วิ่", "ง", "บ", "น"], 4),
        ("갈색 개가 달린다", ["갈색", "개가", "달린다"], 3),
        ("一只dog在the grass上 .", ["一", "只", "dog", "在", "the", "grass", "上"], 8),
        ("the 猫", ["the", "猫"], 2),
        ("Привет, мир", ["привет", "мир"], 2),
        ("", [], 0),
        ("・", [], 1),
    ],
)
def test_words(text, found, count):
    assert split_words(text) == found
    assert count_words(text) == count


@given(st.text())
def test_words_hold_no_space_and_spaced_text_counts_as_it_always_did(text):
    assert all(word and not any(map(str.isspace, word)) for word in split_words(text))
    if not is_unspaced(text):
        assert count_words(text) == len(text.split())


@given(st.text("猫犬のข่ abc\n,."))
def test_every_unspaced_character_that_is_a_letter_counts(text):
    assert count_words(text) >= sum(character in "猫犬のข" for character in text)
    assert count_words(text) >= len(text.split())
