"""The scores of captions, against calculations by hand and by brute force."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitgen.evaluation.caption_metrics import caption_metrics, words
from support.captions import SCRIPTS, grams, plain_cider

CAPTIONS = ["a dog runs on the grass", "two children play with a ball", "a man rides a bike", "the the the cat"]
REFERENCES = [
    ["A brown dog runs over the grass .", "a dog is running on grass"],
    ["Two children play with the red ball", "kids play with a ball outside", "children with a ball"],
    ["a man on a bike rides down the street"],
    ["the cat sat"],
]


def plain_bleu4(captions, references):
    """Papineni et al. 2002, corpus level."""
    matched, total, length, closest = [0] * 4, [0] * 4, 0, 0
    for caption, texts in zip(captions, references, strict=True):
        size = len(caption.split())
        length += size
        closest += min((abs(len(text.split()) - size), len(text.split())) for text in texts)[1]
        for n in range(4):
            counts = grams(caption, n + 1)
            most = Counter()
            for text in texts:
                most |= grams(text, n + 1)
            matched[n] += sum((counts & most).values())
            total[n] += sum(counts.values())
    brevity = min(1.0, math.exp(1 - closest / length))
    return 100 * brevity * math.prod(m / t for m, t in zip(matched, total, strict=True)) ** 0.25


def common(one, two):
    """Length of the longest common subsequence."""
    if not one or not two:
        return 0
    if one[0] == two[0]:
        return 1 + common(one[1:], two[1:])
    return max(common(one[1:], two), common(one, two[1:]))


def plain_rouge_l(captions, references):
    total = 0.0
    for caption, texts in zip(captions, references, strict=True):
        lengths = [(common(caption.split(), text.split()), len(text.split())) for text in texts]
        precision = max(length for length, _ in lengths) / len(caption.split())
        recall = max(length / size for length, size in lengths)
        total += (1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision)
    return 100 * total / len(captions)


def test_scores_are_those_of_the_papers():
    found = caption_metrics(CAPTIONS, REFERENCES)
    references = [[words(text) for text in texts] for texts in REFERENCES]
    # Of four words in a row none is right in "a man rides a bike" and the last, but some are elsewhere.
    assert found["bleu4"] == pytest.approx(plain_bleu4(CAPTIONS, references))
    assert 0 < found["bleu4"] < 100
    assert found["cider"] == pytest.approx(plain_cider(CAPTIONS, references))
    assert found["rouge_l"] == pytest.approx(plain_rouge_l(CAPTIONS, references))


def test_bleu_by_hand():
    # 5 of 6 words, 3 of 5 pairs, 2 of 4 triples, 1 of 3 of four; six words in each: no brevity penalty.
    found = caption_metrics(["a dog runs on the grass"], [["a dog runs on green grass"]])
    assert found["bleu4"] == pytest.approx(100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)


def test_chrf_by_hand():
    # Characters of "ab" and "ac": one of two right; pairs: none of one; longer ones: there are none.
    found = caption_metrics(["ab"], [["ac"]])
    assert found["chrf"] == pytest.approx(100 * (0.5 + 0.0) / 2)


def test_perfect_captions_score_fully():
    captions = [texts[-1] for texts in REFERENCES[:3]]
    found = caption_metrics(captions, REFERENCES[:3])
    for name in ("bleu4", "chrf", "rouge_l"):
        assert found[name] == pytest.approx(100)
    alone = caption_metrics(captions, [[caption] for caption in captions])
    assert alone["cider"] == pytest.approx(1000)


def test_every_reference_counts_wherever_it_stands():
    captions = ["a b c d e", "k l m n o"]
    right = caption_metrics(captions, [["a b c d e"], ["x y", "k l m n o", "z"]])
    assert right["bleu4"] == pytest.approx(100) and right["references"] == 4
    assert caption_metrics(captions, [["a b c d e"], ["x y", "z"]])["bleu4"] < 60


def test_captions_of_no_word_score_nothing_and_are_counted():
    found = caption_metrics(["", "..."], [["a dog", "a cat"], ["a man"]])
    assert found["empty_captions"] == 2 and found["mean_words"] == 0 and found["distinct_captions"] == 1
    assert [found[name] for name in ("bleu4", "chrf", "rouge_l", "cider")] == [0, 0, 0, 0]


def test_counts():
    found = caption_metrics(["a dog", "A dog."], [["a dog runs", "!"], ["one two three"]])
    assert (found["images"], found["references"], found["distinct_captions"]) == (2, 2, 1)
    assert found["mean_words"] == 2 and found["mean_reference_words"] == 3


def test_one_image_has_no_cider():
    assert math.isnan(caption_metrics(["a dog"], [["a dog"]])["cider"])


@given(st.text(st.characters(codec="ascii")) | st.text("abn't -sSrevld\u2019é,."))
def test_latin_text_has_the_words_it_always_had(text):
    """The pattern of COCO's words for English, by itself."""
    plain = re.compile(r"\w+(?=n't\b)|n't\b|'(?:s|re|ve|ll|d|m)\b|\w+(?:-\w+)*")
    assert words(text) == " ".join(plain.findall(text.lower().replace("\u2019", "'")))


@pytest.mark.parametrize("language", SCRIPTS)
def test_every_script_has_words_and_scores(language):
    first, second, expected, near = SCRIPTS[language]
    assert words(first) == unicodedata.normalize("NFC", expected)
    perfect = caption_metrics([first, second], [[first], [second]])
    assert perfect["bleu4"] == pytest.approx(100) and perfect["cider"] == pytest.approx(1000)
    wrong = caption_metrics([near, second], [[first], [second]])
    for name in ("bleu4", "rouge_l", "cider", "chrf"):
        assert 0 < wrong[name] < perfect[name]


def test_an_accent_written_apart_is_the_same_letter():
    assert words("Cafe\u0301 a\u0300 la n\u0303") == words("Café à la ñ") == "café à la ñ"
    assert words("I \u2764\ufe0f it") == "i it"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A man 's dog, running .", "a man 's dog running"),
        ("The man\u2019s T-shirt doesn't fit!", "the man 's t-shirt does n't fit"),
        ("'quoted' dogs' (two)", "quoted dogs two"),
        ("Ein Mädchen läuft – schnell", "ein mädchen läuft schnell"),
        ("... - !", ""),
    ],
)
def test_words(text, expected):
    assert words(text) == expected


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="no captions"):
        caption_metrics([], [])
    with pytest.raises(ValueError, match="2 captions for 1 lists"):
        caption_metrics(["a", "b"], [["a"]])
    with pytest.raises(ValueError, match=r"image 1 has no reference with a word in it: \['!'\]"):
        caption_metrics(["a", "b"], [["a"], ["!"]])
