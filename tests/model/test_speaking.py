"""Which facts a cue means, and what of them the decoder is given to look at."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from bitgen.model import picture as pictures
from bitgen.model import speaking
from bitgen.model.picture import Picture, key_of_the_whole, nearness
from bitgen.model.recall import Recall
from bitgen.model.speaking import (
    BY_PICTURE,
    BY_TEXT,
    Found,
    Meaning,
    chosen,
    find,
    find_asked,
    recalled_for,
    told_last,
)
from support.speaking import RECALL


@pytest.fixture
def recall(open_model) -> Recall:
    return open_model(**RECALL).recall


def means(recall: Recall, keys: torch.Tensor, cues: torch.Tensor, meaning: Meaning) -> Found:
    """What cues ``[B, P, k]`` mean, of facts whose texts say nothing."""
    nothing = torch.zeros(len(keys), recall.value_width)
    return find(recall, keys, nothing, Picture(cues, torch.zeros(cues.shape[:2])), meaning)


def test_a_cue_finds_the_fact_whose_key_is_nearest_and_the_token_that_it_is_nearest_to(recall) -> None:
    random = torch.Generator().manual_seed(8)
    keys, cues = (F.normalize(torch.randn(*shape, 8, generator=random), dim=-1) for shape in ((5,), (3, 4)))
    cues[1, 2] = keys[3]
    picture = Picture(cues, torch.randn(3, 4, generator=random))
    with torch.no_grad():
        found = find(recall, keys.double(), torch.zeros(5, recall.value_width), picture)
        assert found.confidence.shape == found.at.shape == (3, 5)
        for row in range(3):
            for fact in range(5):
                cosines = [float(cue @ keys[fact]) for cue in cues[row]]
                assert int(found.at[row, fact]) == max(range(4), key=cosines.__getitem__)
                expected = torch.sigmoid(recall.logits(torch.tensor(max(cosines))) - math.log(5 / BY_PICTURE.facts))
                torch.testing.assert_close(found.confidence[row, fact], expected)
    assert int(found.confidence[1].argmax()) == 3 and int(found.at[1, 3]) == 2


def test_facts_and_nothing_share_one_probability_of_a_text(recall) -> None:
    random = torch.Generator().manual_seed(8)
    keys, cues = F.normalize(torch.eye(8)[:5] + 0.2, dim=-1), F.normalize(torch.randn(3, 8, generator=random), dim=-1)
    with torch.no_grad():
        recall.log_scale.fill_(1.0)
        recall.threshold.fill_(0.2)
        found = means(recall, keys, cues[:, None], BY_TEXT)
        for row, cue in enumerate(cues):
            odds = [float(recall.logits(cue @ key).exp()) for key in keys]
            for fact in range(5):
                assert float(found.confidence[row, fact]) == pytest.approx(odds[fact] / (1 + sum(odds)), rel=1e-5)
                wanted = F.cross_entropy(torch.tensor([*odds, 1.0]).log()[None], torch.tensor([fact]))
                assert float(found.confidence[row, fact].log()) == pytest.approx(-float(wanted), rel=1e-4)
        assert not means(recall, keys[:0], cues[:, None], BY_TEXT).confidence.numel()


def test_of_equal_keys_the_last_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = torch.eye(8)[[0, 1, 0, 2, 1, 1, 7]]
    for at_once in (1, 2, 256):  # however many are compared together
        monkeypatch.setattr(speaking, "_AT_ONCE", at_once)
        assert told_last(keys).tolist() == [False, False, True, True, False, True, True]
    assert told_last(keys[:0]).tolist() == []


@pytest.mark.parametrize("far", [0, 100])
def test_facts_that_answer_the_same_do_not_take_it_from_each_other(open_model, far: int) -> None:
    """Told three times in other words, and once more in the words of the first, beside others and many far ones."""
    recall, first = open_model(**RECALL | {"recall_dim": 128}).recall, torch.eye(128)[0]
    same = [F.normalize(first + 0.5 * torch.eye(128)[number], dim=0) for number in (1, 2, 3)]
    other = F.normalize(first + 1.5 * torch.eye(128)[4], dim=0)
    keys = torch.stack([*(-torch.eye(128)[20 : 20 + far]), *same, other, same[0]])
    with torch.no_grad():
        odds = [float(recall.logits(first @ key).exp()) for key in (same[1], other)]
        nothing = 1 + far * float(recall.logits(torch.zeros(())).exp())
        found = means(recall, keys, first[None, None], BY_TEXT).confidence[0, far:].tolist()
    told = odds[0] / (nothing + odds[0] + odds[1])
    assert found == pytest.approx([0, told, told, odds[1] / (nothing + sum([odds[1], 3 * odds[0]])), told], rel=1e-4)
    assert told > BY_TEXT.sure


@pytest.mark.parametrize(
    ("confidence", "at", "taken"),
    [
        ([0.1, 0.5, 0.4], [0, 1, 2], []),  # none is likelier than not
        ([0.1, 0.6, 0.4], [0, 1, 2], [1]),
        ([0.7, 0.6, 0.9], [0, 1, 2], [2, 0]),  # two at most, surest first
        ([0.7, 0.6, 0.9], [2, 1, 2], [2, 1]),  # of those at one place the surest
        ([0.7, 0.6, 0.9], [0, 0, 0], [2]),  # a text is one place
    ],
)
def test_which_facts_are_recalled(confidence: list[float], at: list[int], taken: list[int]) -> None:
    found = Found(torch.tensor([confidence, [0.0] * 3]), torch.tensor([at, at]), sure=0.5)
    assert chosen(found) == [taken, []]
    assert chosen(found, most=1) == [taken[:1], []]


def test_what_is_recalled_becomes_tokens_row_by_row(recall) -> None:
    random = torch.Generator().manual_seed(9)
    ids = torch.randint(3, 50, (4, 4), generator=random)
    with torch.no_grad():
        values = recall.values(ids, torch.ones_like(ids))
    image = torch.randn(3, 9, 16, generator=random)
    found = Found(torch.rand(3, 4, generator=random), torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7], [8, 0, 1, 2]]))
    facts, asked = [[2], [], [0, 3]], []

    def read(rows: torch.Tensor) -> torch.Tensor:
        asked.append(rows.tolist())
        return values[rows]

    seen = recalled_for(recall, facts, found, read, image)
    assert seen is not None and len(asked) == 1
    assert seen.present.tolist() == [[True] * 3 + [False] * 3, [False] * 6, [True] * 6]
    for row, facts_of_row in enumerate(facts):
        for place, fact in enumerate(facts_of_row):
            at = found.at[row : row + 1, fact : fact + 1]
            with torch.no_grad():
                seen_there = recall.seen(image[row : row + 1], at)
                one = recall.tokens(values[None, None, fact], seen_there, torch.tensor([[True]])).tokens
            torch.testing.assert_close(seen.tokens[row, 3 * place : 3 * place + 3], one[0])
    assert recalled_for(recall, [[], [], []], found, read, image) is None
    worded = recalled_for(recall, facts, found, read, None)
    assert worded is not None and torch.equal(worded.present, seen.present)
    assert (worded.tokens - seen.tokens)[seen.present].abs().amax(dim=-1).min() > 1e-4


# ---- how many facts there are ----


@pytest.mark.parametrize("meaning", [BY_PICTURE, BY_TEXT._replace(facts=64), BY_TEXT])
def test_twice_as_many_facts_halve_the_odds_of_each(open_model, meaning: Meaning) -> None:
    """The others are so far that they take no probability away; what was told again does not count."""
    recall, odds = open_model(**RECALL | {"recall_dim": 64}).recall, []
    with torch.no_grad():
        recall.log_scale.fill_(math.log(60.0))
        recall.threshold.fill_(0.95)
        for count in (1, 2, 4, 8, 64):
            keys = torch.eye(64)[[0, *range(1, count), *range(1, count)]]
            sure = float(means(recall, keys, torch.eye(64)[None, :1], meaning).confidence[0, 0])
            odds.append(sure / (1 - sure) * (count / meaning.facts if meaning.facts else 1))
    assert odds == pytest.approx([math.exp(3.0)] * 5, rel=2e-3)


# ---- pictures as a whole ----


def test_the_very_picture_that_was_taught_has_the_key_of_its_fact(recall) -> None:
    """With the text that it was taught with, as far as its value holds it, and with no other."""
    random = torch.Generator().manual_seed(3)
    image, ids = torch.randn(4, 9, 16, generator=random), torch.randint(3, 50, (4, 6), generator=random)
    ids[:, 0] = RECALL["bos_token_id"]
    mask = (torch.arange(6) < torch.tensor([[6], [3], [4], [5]])).long()  # the value holds three tokens
    with torch.no_grad():
        keys, values = recall.taught_image_key(image, ids, mask), recall.values(ids, mask)
        every = torch.ones(4, dtype=torch.bool)
        cosines, _ = nearness(recall.picture(image), keys, every, lambda rows: recall.looked_for_by(values[rows]))
        found = find(recall, keys, values.double(), recall.picture(image)).confidence
        cut = recall.looked_for(ids[:, :4], mask[:, :4])
        tokens = (recall.image_keys(image) @ keys.mT).amax(dim=1)
        other = recall.looked_for_by(values.roll(1, dims=0))
        turned = (key_of_the_whole(recall.picture(image), other) * keys).sum(dim=1)
        whole = torch.stack([key_of_the_whole(recall.picture(image[row : row + 1].expand(4, -1, -1)),
                                              recall.looked_for_by(values)) for row in range(4)])  # fmt: skip
    torch.testing.assert_close(recall.looked_for_by(values), cut)
    torch.testing.assert_close((whole * keys).sum(dim=-1).diagonal(), torch.ones(4))
    assert turned.max() < 1 - 1e-4, "of the same picture, with the text of another"
    odds = recall.logits(cosines) - math.log(4 / BY_PICTURE.facts)
    torch.testing.assert_close(found.where(found > 0, odds.sigmoid()), odds.sigmoid(), atol=1e-4, rtol=1e-4)
    expected = torch.maximum(tokens, (whole * keys).sum(dim=-1) - pictures._LESS)
    torch.testing.assert_close(cosines, expected, atol=1e-5, rtol=0)
    assert torch.allclose(cosines.diagonal(), tokens.diagonal().clamp_min(1 - pictures._LESS), atol=1e-5)


def test_the_facts_that_are_nearest_by_a_token_alone_are_compared_as_a_whole() -> None:
    random, asked = torch.Generator().manual_seed(4), []
    cues, keys = (F.normalize(torch.randn(*shape, 6, generator=random), dim=-1) for shape in ((2, 5), (9,)))

    def looked_for(rows: torch.Tensor) -> torch.Tensor:
        asked.extend(rows.tolist())
        return 1e6 * keys[rows]  # the token that is nearest to the fact counts alone

    seen, every = Picture(cues, torch.zeros(2, 5)), torch.ones(9, dtype=torch.bool)
    cosines, at = nearness(seen, keys, every, looked_for)
    tokens = cues @ keys.mT
    assert torch.equal(at, tokens.argmax(dim=1)) and torch.equal(cosines, tokens.amax(dim=1)), "nothing is added"
    nearest = tokens.amax(dim=1).argsort(dim=1, descending=True)[:, : pictures._CANDIDATES]
    assert sorted(asked) == sorted(set(nearest.flatten().tolist()))
    assert nearness(seen, keys[:0], every[:0], looked_for)[0].shape == (2, 0)
    asked.clear()
    nearness(seen, keys, ~every.scatter(0, torch.tensor([2, 5]), False), looked_for)
    assert sorted(asked) == [2, 5], "what does not count takes no place"


def test_a_picture_that_was_taught_again_and_again_recalls_the_last(recall) -> None:
    """The earlier ones take neither its place nor its odds; what cannot be said, whose key is zeros, neither."""
    seen = Picture(torch.eye(8)[None, :4], torch.zeros(1, 4))  # a token has a cosine of 0.5 with the whole
    with torch.no_grad():
        for weight in recall.text_weight.parameters():
            weight.zero_()  # every token counts alike
        recall.threshold.fill_(0.7)
        recall.log_scale.fill_(math.log(100.0))
        last = key_of_the_whole(seen, torch.zeros(1, 8))
        keys = torch.cat([torch.zeros(40, 8), last.expand(12, -1)])
        nothing = torch.zeros(52, recall.value_width)
        once, again = find(recall, last, nothing[:1], seen), find(recall, keys, nothing, seen)
    assert chosen(again) == [[51]] and torch.equal(again.confidence[0, 51], once.confidence[0, 0])


@pytest.mark.parametrize(
    ("later", "recalled"),
    [
        ([30, 31, 41], 1),  # the same but for the last word
        ([41, 31, 40], 1),  # and but for the first
        ([30, 31, 41, 42], 0),  # one word more
        ([30, 33, 41], 0),  # two words differ
        ([30, 31, 40], 0),  # none
    ],
)
def test_of_two_sentences_that_differ_in_one_word_the_later_is_meant(
    open_model, later: list[int], recalled: int
) -> None:
    """Though the earlier is nearer to the question, and both are meant."""
    recall = open_model(**(RECALL | {"recall_tokens": 6, "recall_code": 32})).recall
    keys = F.normalize(torch.tensor([[1.0, 0.0], [0.9, 0.4], [0.0, 1.0]]), dim=1)
    keys = F.pad(keys, (0, RECALL["recall_dim"] - 2))
    with torch.no_grad():
        recall.threshold.fill_(0.3)
        texts = [[0, 30, 31, 40, 1], [0, *later, 1], [0, 30, 31, 42, 1]]  # the third is far from the question
        values = torch.cat([recall.values(torch.tensor([text]), torch.ones(1, len(text))) for text in texts])
        question = recall.questions(torch.tensor([[0, 31, 1]]), torch.ones(1, 3))._replace(keys=keys[:1])
        found = find_asked(recall, keys, values, question)
        surest = find_asked(recall, keys, values, question, BY_TEXT._replace(names=None)).confidence.max()
    assert chosen(found) == [[recalled]]
    assert (found.confidence[0] > BY_TEXT.sure).sum() == (1 if recalled else 2)
    assert found.confidence.max() == surest, "the later one is as sure as the earlier was"


def test_words_of_values_are_their_tokens_without_marks(open_model) -> None:
    words = "".join({7: "0", 8: "1", 9: "1"}.get(token, "2") for token in range(50))
    recall = open_model(**(RECALL | {"recall_tokens": 6, "recall_code": 32, "recall_words": words})).recall
    with torch.no_grad():
        told = recall.values(
            torch.tensor([[0, 30, 8, 9, 7, 8], [0, 7, 7, 31, 1, 2]]), torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
        )
        assert recall.words_in(told.double()) == [[(30, 8, 9), (8,)], [(31,)]]
        assert recall.words_in(told[:0]) == []
