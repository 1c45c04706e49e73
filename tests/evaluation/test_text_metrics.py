"""Scores of generated text, against other libraries' numbers and plain loops."""

from __future__ import annotations

import builtins
import json
import math
import random
import unicodedata
from pathlib import Path

import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st
from nltk.stem.porter import PorterStemmer
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from transformers import GenerationConfig

from bitgen.evaluation.caption_metrics import caption_metrics
from bitgen.evaluation.caption_metrics import words as of_stage_1
from bitgen.evaluation.text_metrics import METRICS, describe_decoding, longest_common, score_texts, words
from bitgen.show.tables import format_table
from support.captions import SCRIPTS, grams, plain_cider

ROUGE_SCORE = json.loads(Path(__file__).with_name("rouge_score_cases.json").read_text(encoding="utf-8"))
CANDIDATES = [case["candidate"] for case in ROUGE_SCORE["samples"]]
REFERENCES = [case["references"] for case in ROUGE_SCORE["samples"]]
WRITTEN = [" ".join(words(text)) for text in CANDIDATES]


@pytest.fixture(scope="module")
def scores():
    return score_texts(CANDIDATES, REFERENCES, (*METRICS, "chrf")).scores


def plain_bleu(candidates, references, order):
    """Papineni et al. 2002, of the corpus."""
    logs, length, closest = 0.0, 0, 0
    for n in range(1, order + 1):
        matched = total = 0
        for candidate, texts in zip(candidates, references, strict=True):
            counts = grams(candidate, n)
            matched += sum(min(k, max(grams(text, n)[gram] for text in texts)) for gram, k in counts.items())
            total += sum(counts.values())
        logs += math.log(matched / total) / order
    for candidate, texts in zip(candidates, references, strict=True):
        size = len(candidate.split())
        length += size
        closest += min((abs(len(text.split()) - size), len(text.split())) for text in texts)[1]
    return 100 * math.exp(logs + min(0.0, 1 - closest / length))


def plain_meteor(candidate, references):
    """Lavie and Agarwal 2007: exact matches, then stems, each from the right; the best reference."""
    stem, best = PorterStemmer().stem, 0.0
    for text in references:
        left, right = list(enumerate(candidate.split())), list(enumerate(text.split()))
        pairs, size = [], (len(left), len(right))
        for form in (str, stem):
            for i, word in reversed(list(left)):
                found = [(j, other) for j, other in right if form(other) == form(word)]
                if found:
                    pairs.append((i, found[-1][0]))
                    left.remove((i, word))
                    right.remove(found[-1])
        if pairs:
            pairs.sort()
            chunks = 1 + sum((a[0] + 1, a[1] + 1) != b for a, b in zip(pairs, pairs[1:], strict=False))
            precision, recall = len(pairs) / size[0], len(pairs) / size[1]
            mean = precision * recall / (0.9 * precision + 0.1 * recall)
            best = max(best, mean * (1 - 0.5 * (chunks / len(pairs)) ** 3))
    return best


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_bleu_is_sacrebleus_and_a_plain_loops(scores, order):
    streams = [[texts[i] if i < len(texts) else None for texts in REFERENCES] for i in range(4)]
    library = sacrebleu.BLEU(max_ngram_order=order, smooth_method="none", tokenize="none", force=True)
    assert scores[f"bleu{order}"] == pytest.approx(library.corpus_score(WRITTEN, streams).score, abs=1e-9)
    assert scores[f"bleu{order}"] == pytest.approx(plain_bleu(WRITTEN, REFERENCES, order), abs=1e-9)
    # COCO's code adds 1e-9 here and there, and takes the shortest reference of those that are as close.
    coco = Bleu(4).compute_score(dict(enumerate(REFERENCES)), {i: [t] for i, t in enumerate(WRITTEN)}, verbose=0)[0]
    assert scores[f"bleu{order}"] == pytest.approx(100 * coco[order - 1], abs=1e-4)
    assert 1 < scores[f"bleu{order}"] < 99


def test_rouge_l_is_rouge_scores_and_cocos(scores):
    wanted = sum(case["rouge_l_f1"] for case in ROUGE_SCORE["samples"]) / len(CANDIDATES)
    assert scores["rouge_l_f1"] == pytest.approx(100 * wanted, abs=1e-9)
    for case in ROUGE_SCORE["samples"]:
        found = score_texts([case["candidate"]], [case["references"]], ["rouge_l"]).scores["rouge_l_f1"]
        assert found == pytest.approx(100 * case["rouge_l_f1"], abs=1e-9)
    coco = Rouge().compute_score(dict(enumerate(REFERENCES)), {i: [text] for i, text in enumerate(WRITTEN)})[0]
    assert scores["rouge_l"] == 100 * float(coco)


@given(st.lists(st.sampled_from("abcd")), st.lists(st.sampled_from("abcde"), max_size=80))
def test_longest_common_subsequence(first, second):
    row = [0] * (len(second) + 1)
    for one in first:
        corner = 0
        for j, other in enumerate(second, 1):
            corner, row[j] = row[j], corner + 1 if one == other else max(row[j], row[j - 1])
    assert longest_common(first, second) == row[-1]


def test_cider_is_cocos_and_a_plain_loops(scores):
    found = Cider().compute_score(dict(enumerate(REFERENCES)), {i: [text] for i, text in enumerate(WRITTEN)})[0]
    assert scores["cider"] == 100 * float(found)
    assert scores["cider"] == pytest.approx(plain_cider(WRITTEN, REFERENCES))


def test_meteor_is_a_plain_loops(scores):
    found = [plain_meteor(text, texts) for text, texts in zip(WRITTEN, REFERENCES, strict=True)]
    assert scores["meteor"] == pytest.approx(100 * sum(found) / len(found))


@pytest.mark.parametrize(
    ("candidate", "reference", "wanted"),
    [
        ("a dog runs fast", "a dog runs fast", 1 - 0.5 / 4**3),  # one chunk of four words
        ("running dogs", "dog runs", 1 - 0.5),  # by stems, in two chunks
        ("a cat", "two dogs", 0),
        ("a picture", "an image", 0),  # no synonyms
    ],
)
def test_meteor_by_hand(candidate, reference, wanted):
    assert score_texts([candidate], [reference], ["meteor"]).scores["meteor"] == pytest.approx(100 * wanted)


def test_captions_in_latin_script_score_as_stage_1_scores_them(scores):
    found = caption_metrics(CANDIDATES, REFERENCES)
    assert all(found[name] == scores[name] for name in ("bleu4", "chrf", "rouge_l", "cider"))


@given(st.text(st.characters(codec="ascii")))
def test_ascii_text_has_the_words_of_stage_1(text):
    assert " ".join(words(text)) == of_stage_1(text)


@pytest.mark.parametrize("language", SCRIPTS)
def test_every_script_scores(language):
    first, second, expected, near = SCRIPTS[language]
    assert words(first) == unicodedata.normalize("NFKC", expected).split()
    perfect = score_texts([first, second], [first, second]).scores
    wrong = score_texts([near, second], [first, second]).scores
    assert perfect["bleu4"] == pytest.approx(100) and perfect["rouge_l_f1"] == pytest.approx(100)
    assert perfect["cider"] == pytest.approx(1000) and perfect["meteor"] > 99
    assert all(0 < wrong[name] < perfect[name] for name in perfect)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Ｔｈｅ ＤＯＧ！", "the dog"),
        ("ｶﾞｲﾄﾞ", "ガ イ ド"),
        ("\u1100\u1161\u11a8 개", "각 개"),  # letters apart are a syllable
        ("개가 猫와 the cat을 본다。", "개가 猫 와 the cat을 본다"),
        ("ﬁne ２ dogs", "fine 2 dogs"),
    ],
)
def test_compatible_forms_are_one(text, expected):
    assert " ".join(words(text)) == expected


def test_korean_words_are_those_between_spaces_and_chrf_sees_the_stem():
    scores = [score_texts([text], ["개가 달린다"], ["bleu", "chrf"]).scores for text in ("개는 달린다", "소는 달린다")]
    assert [found["bleu1"] for found in scores] == pytest.approx([50, 50])
    assert 0 < scores[1]["chrf"] < scores[0]["chrf"] < 100


def test_empty_candidates_score_nothing_and_are_counted():
    found = score_texts(["", "..."], ["a dog", ["a man", "!"]], (*METRICS, "chrf"), temporal=True)
    assert found.empty_candidates == 2 and found.references == 2 and found.distinct_candidates == 1
    assert all(value == 0 for name, value in found.scores.items() if name != "temporal_f1")
    assert found.scores["temporal_f1"] == 100  # nobody speaks of change
    assert ["texts without a word", "2"] in found.to_rows()


def test_one_sample_has_no_cider():
    found = score_texts(["a dog"], ["a dog"], ["cider", "bleu"])
    assert math.isnan(found.scores["cider"])
    assert found.to_rows()[0] == ["CIDEr-D x 100", "undefined"]
    assert found.to_dict()["cider"] is None and json.loads(json.dumps(found.to_dict(), allow_nan=False))


def test_tables_and_json_name_everything():
    decoding = describe_decoding({"max_new_tokens": 30})
    found = score_texts(CANDIDATES, REFERENCES, (*METRICS, "chrf"), temporal=True, decoding=decoding)
    rows = dict(found.to_rows())
    assert rows["METEOR (exact and stem, no synonyms), %"] == f"{found.scores['meteor']:.1f}"
    assert rows["decoding"] == "greedy, at most 30 new tokens"
    assert "BLEU-1, %" in format_table(["", ""], found.to_rows())
    values = found.to_dict()
    assert values["samples"] == 24 and values["decoding"] == decoding and values["bleu2"] == found.scores["bleu2"]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"max_new_tokens": 64, "num_beams": 1, "length_penalty": 2.0}, "greedy, at most 64 new tokens"),
        (
            {"max_new_tokens": 1024, "num_beams": 10, "length_penalty": 2.0},
            "10 beams, length penalty 2, at most 1024 new tokens",
        ),
        (
            {"max_new_tokens": 8, "do_sample": True, "temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.2},
            "sampled at temperature 0.7, top_p 0.9, repetition penalty 1.2, at most 8 new tokens",
        ),
        (
            {"max_new_tokens": 8, "num_beams": 3, "no_repeat_ngram_size": 3, "top_k": None},
            "3 beams, length penalty 1, no repeated n-gram of 3, at most 8 new tokens",
        ),
        (GenerationConfig(max_new_tokens=5, num_beams=2).to_dict(), "2 beams, length penalty 1, at most 5 new tokens"),
    ],
)
def test_decoding_is_described(settings, sentence):
    assert describe_decoding(settings) == sentence


def test_mistakes_are_named(monkeypatch):
    with pytest.raises(ValueError, match="no texts to score"):
        score_texts([], [])
    with pytest.raises(ValueError, match="2 texts for 1 lists"):
        score_texts(["a", "b"], ["a"])
    with pytest.raises(ValueError, match=r"sample 1 has no reference with a word in it: \['!'\]"):
        score_texts(["a", "b"], ["a", "!"])
    with pytest.raises(ValueError, match="sample 1 has no reference"):
        score_texts(["a", "b"], ["a", []])
    with pytest.raises(ValueError, match="spice is no metric of text; there are bleu, rouge_l, meteor, cider, chrf"):
        score_texts(["a"], ["a"], ["spice"])
    with pytest.raises(ValueError, match="sample 0: candidate or reference is no text"):
        score_texts([None], ["a"])
    with pytest.raises(ValueError, match="max_new_tokens"):
        describe_decoding({"num_beams": 2})
    real = builtins.__import__

    def without_nltk(name, *args, **kwargs):
        if name.startswith("nltk"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_nltk)
    with pytest.raises(ValueError, match="pip install nltk"):
        score_texts(["a"], ["a"])


def test_many_random_texts_agree_with_other_programs():
    rng = random.Random(0)
    pool = "the dogs dog running runs a child's kids play played ball".split()
    texts = [[" ".join(rng.choices(pool, k=rng.randint(1, 9))) for _ in range(3)] for _ in range(60)]
    found = score_texts([row[0] for row in texts], [row[1:] for row in texts]).scores
    split = [[" ".join(words(text)) for text in row] for row in texts]
    first, rest = [row[0] for row in split], [row[1:] for row in split]
    assert found["bleu4"] == pytest.approx(plain_bleu(first, rest, 4))
    assert found["cider"] == pytest.approx(plain_cider(first, rest))
    assert found["meteor"] == pytest.approx(100 * sum(map(plain_meteor, first, rest)) / 60)
