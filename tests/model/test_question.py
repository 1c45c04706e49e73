"""Words of a question that a fact does not hold count against it, by what each is worth."""

from __future__ import annotations

import re

import pytest
import torch
from torch.nn import functional as F

from bitgen.model import question
from bitgen.model.question import (
    BEHIND_SPACE,
    IN_A_ROW,
    LETTERS,
    NO_WORD,
    Question,
    depth_in_words,
    has_names,
    lacking,
    names_held,
    same_token,
)
from bitgen.model.recall import Recall
from bitgen.model.speaking import BY_TEXT, chosen, find_asked
from support.speaking import RECALL
from support.speaking import make_objective as objective_of

VOCABULARY = 12
CODES = torch.eye(VOCABULARY)  # of tokens that are told apart for certain
PADDING = -1


def values(*texts: list[int]) -> torch.Tensor:
    """``[E, L d]`` of texts of tokens."""
    longest = max(map(len, texts))
    rows = [[*text, *[PADDING] * (longest - len(text))] for text in texts]
    return torch.stack([torch.cat([_code(token) for token in row]) for row in rows])


def _code(token: int) -> torch.Tensor:
    return CODES[token] if token >= 0 else torch.zeros(VOCABULARY)


def asked(texts: list[list[int]], worth: torch.Tensor | None = None, words: torch.Tensor | None = None) -> Question:
    """Questions of tokens, each of which is worth 1, 10 and 100 alone, behind one, and behind two; ``words [V]``: what
    tokens are of words, None: each is one."""
    codes = values(*texts).unflatten(-1, (-1, VOCABULARY))
    real = codes.any(dim=-1)
    worth = torch.tensor([1.0, 10.0, 100.0]).expand(*codes.shape[:2], 3) if worth is None else worth
    kinds = torch.full((VOCABULARY,), BEHIND_SPACE) if words is None else words
    return Question(torch.zeros(len(texts), 4), codes, worth * real[..., None], kinds[codes.argmax(dim=-1)] * real)


def lacking_by_hand(words: list[int], worth: torch.Tensor, fact: list[int]) -> float:
    lost = 0.0
    for at in range(len(words)):
        for run in range(min(IN_A_ROW, at + 1)):
            wanted = words[at - run : at + 1]
            found = any(fact[start : start + run + 1] == wanted for start in range(len(fact) - run))
            lost += 0.0 if found else float(worth[at, run])
    return lost


def test_what_is_lacking_against_plain_loops() -> None:
    random = torch.Generator().manual_seed(3)
    texts = [torch.randint(0, 4, (length,), generator=random).tolist() for length in (7, 3, 5, 1)]
    facts = [torch.randint(0, 4, (length,), generator=random).tolist() for length in (6, 2, 9, 4, 8)]
    worth = torch.rand(4, 7, 3, generator=random)
    found = lacking(asked(texts, worth), values(*facts))
    expected = [[lacking_by_hand(text, worth[row], fact) for fact in facts] for row, text in enumerate(texts)]
    torch.testing.assert_close(found, torch.tensor(expected))
    assert found.min() < found.max()


@pytest.mark.parametrize(
    ("words", "fact", "lost"),
    [
        ([5], [5], 0),
        ([5, 6, 7], [9, 5, 6, 7], 0),
        ([5, 6, 7], [7, 6, 5], 10 + 110),  # the words are there, in another order
        ([5, 6, 7], [5, 6, 8, 7], 110),
        ([5, 6, 7], [8], 1 + 11 + 111),  # before the first nothing stands, and one before the second
        ([5, 6, 7], [], 1 + 11 + 111),
    ],
)
def test_by_hand(words: list[int], fact: list[int], lost: float) -> None:
    assert lacking(asked([words]), values([*fact, PADDING])).item() == lost


def test_facts_are_compared_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    texts, facts = asked([[1, 2, 3], [4, 5]]), values([1, 2], [2, 3], [3, 3, 4, 5], [9])
    whole = lacking(texts, facts)
    for at_once in (1, 20, 50):
        monkeypatch.setattr(question, "_AT_ONCE", at_once)
        assert torch.equal(lacking(texts, facts), whole)
    assert lacking(texts, facts[:0]).shape == (2, 0)
    torch.testing.assert_close(lacking(texts, facts.double()), whole)  # values are held in any precision


def test_codes_of_two_tokens_are_not_the_same_up_to_a_half() -> None:
    assert same_token(torch.tensor([-1.0, 0.0, 0.5, 0.75, 1.0])).tolist() == [0, 0, 0, 0.5, 1]


# ---- names ----

# Tokens 0 and 1 are a space and a mark, 2 to 6 letters, and 7 to 11 the same letters behind a space.
KINDS = torch.tensor([NO_WORD, NO_WORD, *[LETTERS] * 5, *[BEHIND_SPACE] * 5])
SPELLED = " ?abcdeABCDE"


def kinds_of(told: torch.Tensor) -> torch.Tensor:
    codes = told.unflatten(-1, (-1, VOCABULARY))
    return KINDS[codes.argmax(dim=-1)] * codes.any(dim=-1)


def spelled(tokens: list[int]) -> list[tuple[str, list[int]]]:
    """The words of a text, and where the tokens of each stand; words of the same letters of other tokens are others."""
    text = "".join(SPELLED[token] for token in tokens)
    return [(found[0], list(range(*found.span()))) for found in re.finditer("[A-E][a-e]*|[a-e]+", text)]


def test_names_against_words_as_they_are_spelled(monkeypatch: pytest.MonkeyPatch) -> None:
    random = torch.Generator().manual_seed(11)

    def drawn(most: int) -> list[int]:
        return torch.randint(
            0, VOCABULARY, (int(torch.randint(1, most, (1,), generator=random)),), generator=random
        ).tolist()

    texts, facts = [drawn(7) for _ in range(60)], [drawn(12) for _ in range(80)]
    worth = torch.rand(60, 6, 3, generator=random)
    questions = asked(texts, worth, KINDS)
    expected = [
        [
            all(
                word in [other for other, _ in spelled(fact)]
                for word, places in spelled(text)
                if worth[row, places].sum() > 2.5
            )
            for fact in facts
        ]
        for row, text in enumerate(texts)
    ]
    for at_once in (8_000_000, 500):
        monkeypatch.setattr(question, "_AT_ONCE", at_once)
        found = names_held(questions, values(*([*fact, PADDING] for fact in facts)), kinds_of, 2.5)
        assert found.tolist() == expected
    assert 0.2 < found.float().mean() < 0.8


@pytest.mark.parametrize(
    ("words", "fact", "held"),
    [
        ([7, 2], [8, 7, 2, 1], True),  # "Aa" in "B Aa ?"
        ([7, 2, 1], [7, 2], True),  # a mark is no name
        ([7, 2], [7, 2, 3], False),  # "Aa" in "Aab"
        ([7, 2], [7], False),
        ([2, 3], [7, 2, 3], False),  # "ab" in "Aab"
        ([2, 3], [0, 2, 3, 0], True),
        ([2, 3], [2, 3], True),
        ([7, 8], [8, 7], True),  # two names, in another order
        ([7, 8], [7, 9], False),
        ([0, 1], [9], True),  # no name at all
    ],
)
def test_names_by_hand(words: list[int], fact: list[int], held: bool) -> None:
    question = asked([words], words=KINDS)
    assert names_held(question, values([*fact, PADDING]), kinds_of, 5.0).item() == held
    assert has_names(question, 5.0).item() == (words != [0, 1])


def test_a_word_that_is_worth_little_is_no_name() -> None:
    worth = torch.tensor([[[2.5, 0.0, 0.0], [0.5, 1.0, 1.0]]])  # of one word, 5 nats together
    for least, held in ((4.9, False), (5.0, True)):
        assert names_held(asked([[7, 2]], worth, KINDS), values([8]), kinds_of, least).item() == held
        assert has_names(asked([[7, 2]], worth, KINDS), least).item() == (not held)  # the fact has none of its words


def test_a_word_that_may_be_cut_at_a_value_s_end_is_no_whole_one() -> None:
    question = asked([[7, 2]], words=KINDS)
    assert not names_held(question, values([8, 7, 2]), kinds_of, 5.0).any(), "Aa, or the beginning of Aab"
    assert names_held(question, values([8, 7, 2, 1]), kinds_of, 5.0).all()
    assert names_held(question, values([7, 2, 8]), kinds_of, 5.0).all()


def test_what_tokens_are_of_words_is_looked_up_in_the_facts_alone_that_may_have_a_name() -> None:
    looked_up: list[int] = []

    def kinds(told: torch.Tensor) -> torch.Tensor:
        looked_up.append(len(told))
        return kinds_of(told)

    facts = values([7, 2, 1], [8, 2, 1], [7, 2, 3], [9, 1, 1])
    assert names_held(asked([[0, 1]], words=KINDS), facts, kinds, 5.0).all()
    assert names_held(asked([[7, 2, 1], [0, 1]], words=KINDS), facts, kinds, 5.0)[0].tolist() == [True, *[False] * 3]
    assert looked_up == [0, 2]


def test_no_facts_and_no_words() -> None:
    assert names_held(asked([[7]], words=KINDS), values([8])[:0], kinds_of, 5.0).shape == (1, 0)
    none = asked([[7], [8]], words=KINDS)
    none = Question(none.keys, none.codes[:, :0], none.worth[:, :0], none.words[:, :0])
    assert names_held(none, values([8], [9]), kinds_of, 5.0).all()


# ---- of a model ----


@pytest.fixture(scope="module")
def recall() -> Recall:
    recall = objective_of(**RECALL | {"recall_tokens": 12, "recall_code": 32}).eval().recall
    with torch.no_grad():
        recall.word_worth[1].weight.zero_()
        recall.word_worth[1].bias.fill_(7.0)  # 5 nats of each word
    return recall


def sequences(*texts: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, texts))
    ids = torch.tensor([[0, *text, 1, *[2] * (longest - len(text))] for text in texts])
    mask = torch.tensor([[1] * (len(text) + 2) + [0] * (longest - len(text)) for text in texts])
    return ids, mask


NAMES = [[30, 40, 50, 31, 60], [30, 40, 51, 31, 60]]  # two sentences that differ in one token of a name


def test_a_name_is_told_from_another_whose_key_is_the_same(recall) -> None:
    """The very case: both facts have the key of the question."""
    with torch.no_grad():
        told = recall.values(*sequences(*NAMES))
        questions = recall.questions(*sequences([40, 50], [40, 51], [40, 52]))
        keys = questions.keys[:1].expand(2, -1)
        near = questions._replace(keys=keys[:1].expand(3, -1))
        apart = BY_TEXT._replace(same=2.0, alike=2.0)  # though the keys are equal, both count
        recall.threshold.fill_(0.0)
        recall.log_scale.fill_(torch.tensor(35.0).log())
        found = find_asked(recall, keys, told, near, apart)
    assert chosen(found, most=1) == [[0], [1], []]
    assert found.confidence[2].max() == 0.0 < 0.98 < found.confidence.diagonal()[:2].min()


def test_probabilities_are_those_of_keys_of_facts_that_have_the_names(recall) -> None:
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        told = recall.values(*sequences(*NAMES, [7, 8, 9]))
        questions = recall.questions(*sequences([40, 50], [7, 8], [40, 31]))
        keys = F.normalize(torch.randn(3, 8, generator=random), dim=-1)
        held = recall.asked_names(questions, told, BY_TEXT.names)
        near = recall.log_scale[1].exp() * (questions.keys @ keys.mT - recall.threshold[1])
        odds = near.exp() * held
        found = find_asked(recall, keys, told, questions, BY_TEXT._replace(alike=2.0)).confidence
    torch.testing.assert_close(found, odds / (1 + odds.sum(dim=1, keepdim=True)))
    assert held.tolist() == [[True, False, False], [False, False, True], [True, True, False]]


def test_neither_padding_nor_begin_nor_end_is_a_word(recall) -> None:
    texts = [[33, 40, 50, 60, 61], [7, 8], [9]]
    with torch.no_grad():
        told = recall.values(*sequences(*NAMES, [7, 8, 9]))
        together = recall.questions(*sequences(*texts))
        assert (together.worth[..., 0] > 0).sum(dim=1).tolist() == [5, 2, 1]
        torch.testing.assert_close(together.keys, recall.text_keys(*sequences(*texts)))
        for row, text in enumerate(texts):
            alone = recall.questions(*sequences(text))
            torch.testing.assert_close(lacking(alone, told)[0], lacking(together, told)[row], atol=1e-5, rtol=1e-5)


def test_each_word_is_worth_what_its_own_place_tells() -> None:
    recall = objective_of(**RECALL).recall.eval()
    with torch.no_grad():
        recall.word_worth[1].weight.normal_(generator=torch.Generator().manual_seed(2))
        ids, mask = sequences([33, 40, 50, 60], [7, 8])
        hidden, _ = recall._text(ids, mask)
        found = recall.questions(ids, mask).worth
    for row, length in ((0, 4), (1, 2)):
        for word in range(4):
            by_hand = F.softplus(recall.word_worth(hidden[row, word + 1]) - 2) * (word < length)
            # Of the first word nothing stands before it, and of the second one word.
            torch.testing.assert_close(found[row, word], by_hand * (torch.arange(3) <= word))
    assert found[0, 2:].std(dim=0).min() > 1e-3


def test_words_that_a_key_leaves_out_in_training_still_count(monkeypatch: pytest.MonkeyPatch) -> None:
    recall = objective_of(**RECALL).recall.train()
    monkeypatch.setattr(torch, "rand", lambda shape, device=None: torch.zeros(shape))  # all are left out
    found = recall.questions(*sequences([33, 40, 50, 60], [7, 8]))
    torch.testing.assert_close(found.keys[0], found.keys[1])  # of BOS alone
    assert (found.worth[..., 0] > 0).tolist() == [[True] * 4, [True, True, False, False]]


def test_in_half_precision_nats_are_whole(recall) -> None:
    with torch.no_grad():
        told, questions = recall.values(*sequences(*NAMES)), recall.questions(*sequences([33, 40, 50]))
        exact = lacking(questions, told)
        with torch.autocast("cpu", torch.bfloat16):
            found = lacking(questions, told)
    assert found.dtype == torch.float32
    assert torch.equal(found, exact)


@pytest.mark.parametrize("others", [3, 100])
def test_of_equal_keys_the_last_counts_though_its_words_are_far_from_the_question(recall, others: int) -> None:
    """Also where many other facts are nearer."""
    with torch.no_grad():
        told = recall.values(*sequences([33, 40, 50], *[[33, 40, 50, 51]] * others, [7, 8, 9]))
        keys = F.normalize(torch.randn(others + 2, 128, generator=torch.Generator().manual_seed(7)), dim=-1)
        keys[1:-1] *= -(keys[1:-1] @ keys[0]).sign()[:, None]  # none of the others is near
        keys[-1] = keys[0]
        questions = recall.questions(*sequences([33, 40, 50]))._replace(keys=keys[:1])
        assert recall.asked_names(questions, told, BY_TEXT.names)[0].tolist() == [True] * (others + 1) + [False]
        found = find_asked(recall, keys, told, questions, BY_TEXT)
        assert chosen(found._replace(confidence=found.confidence[:, 1:])) == [[]] and found.confidence[0, 0] == 0
        assert chosen(find_asked(recall, keys[:-1], told[:-1], questions, BY_TEXT)) == [[0]]


def test_a_question_with_nan_means_nothing(recall) -> None:
    with torch.no_grad():
        told, questions = recall.values(*sequences(*NAMES)), recall.questions(*sequences([33, 40], [33, 41]))
        keys = recall.text_keys(*sequences(*NAMES))
        for broken in (questions._replace(keys=questions.keys * torch.nan),
                       questions._replace(worth=questions.worth * torch.nan)):  # fmt: skip
            assert not find_asked(recall, keys, told, broken).confidence.any()


def test_what_words_are_worth_is_learned_and_their_codes_are_not_by_it(recall) -> None:
    told, questions = recall.values(*sequences(*NAMES)), recall.questions(*sequences([33, 40, 50]))
    recall.zero_grad()
    lacking(questions, told).sum().backward()
    assert recall.word_worth[1].weight.grad.any()
    assert recall.code_embedding.weight.grad is None
    recall.zero_grad()


def test_pictures_questions_and_their_keys_alone_have_thresholds_of_their_own(recall) -> None:
    random = torch.Generator().manual_seed(4)
    keys = F.normalize(torch.randn(3, 8, generator=random), dim=-1)
    with torch.no_grad():
        recall.threshold.copy_(torch.tensor([0.1, 0.2, 0.3]))
        recall.log_scale.copy_(torch.tensor([2.0, 3.0, 5.0]).log())
        told, questions = recall.values(*sequences(*NAMES, [7, 8, 9])), recall.questions(*sequences([33, 40, 50]))
        cosines = questions.keys @ keys.mT
        torch.testing.assert_close(recall.logits(cosines), 2 * (cosines - 0.1))
        torch.testing.assert_close(recall.asked_odds(questions, keys), 3 * (cosines - 0.2))
        torch.testing.assert_close(recall.asked_lacking(questions, told), lacking(questions, told))
        torch.testing.assert_close(recall.asked_by_keys(questions, keys), 5 * (cosines - 0.3))


def test_before_a_fact_s_first_word_stands_a_space() -> None:
    """The name asked for counts as found at a fact's beginning as it does inside another text."""
    space, name, other = 3, [40, 50], [41, 50]
    recall = objective_of(**RECALL | {"recall_tokens": 12, "recall_code": 32, "recall_space": space}).eval().recall
    asked_for = sequences([33, space, *name])
    with torch.no_grad():
        recall.word_worth[1].weight.normal_(generator=torch.Generator().manual_seed(4))
        recall.word_worth[1].bias.fill_(1.0)
        questions = recall.questions(*asked_for)
        lost = {}
        for label, text in (
            ("first", [*name, 31, 7]),
            ("inside", [31, space, *name, 7]),
            ("without", [31, *name, 7]),  # " name" stands nowhere, as in "Hername" none does
            ("other", [*other, 31, 7]),
        ):
            told = recall.values(*sequences(text))
            lost[label] = recall.asked_lacking(questions, told).item()
            behind = lacking(questions, recall.values(*sequences([space, *text])))
            assert lost[label] == pytest.approx(behind.item(), abs=1e-4)
    assert lost["first"] == pytest.approx(lost["inside"], abs=1e-4)
    assert lost["first"] < min(lost["without"], lost["other"]) - 0.1


def test_a_model_that_does_not_know_its_words_says_what_to_do() -> None:
    recall = objective_of(recall_words=None).eval().recall
    with torch.no_grad(), pytest.raises(ValueError, match=r"written by an earlier release .* or export it again"):
        find_asked(recall, torch.ones(1, 8), torch.zeros(1, 48), recall.questions(*sequences([33])))


def test_words_are_those_of_the_tokens_that_values_hold() -> None:
    recall = objective_of(recall_words="".join(str(token % 3) for token in range(60)), recall_code=32).eval().recall
    with torch.no_grad():
        told = recall.values(*sequences([33, 40, 50, 59], [7]))
        assert recall._words_of(told.double())[:, :5].tolist() == [[0, 1, 2, 2, 1], [1, 1, 0, 0, 0]]  # and EOS, 1
        assert recall.questions(*sequences([33, 40, 50], [7])).words.tolist() == [[0, 1, 2], [1, 0, 0]]


def test_tokens_of_a_word_are_counted_from_its_first() -> None:
    words = torch.tensor([[2, 1, 1, 0, 1, 1, 2, 1], [1, 1, 0, 0, 1, 2, 2, 0]])
    assert depth_in_words(words).tolist() == [[0, 1, 2, 0, 0, 1, 0, 1], [0, 1, 0, 0, 0, 0, 0, 0]]
    assert depth_in_words(words[:, :0]).shape == (2, 0)
