"""How answers to the queries of episodes are got and counted."""

from __future__ import annotations

import pytest
import torch

from bitgen.data.episodes.dataset import Query
from bitgen.data.sampler import SampleKey
from bitgen.data.scenes.descriptions import Scene, Thing
from bitgen.data.scenes.named import Entity
from bitgen.memory.answering import Answer, Speaker, answer_episode, measures, says, score, whole_caption
from support.speaking import dataset, make_objective

SCENE = Scene("relation", (Thing("red", "star", "small"), Thing("blue", "ring", "large")), "left of")
REX, BLICK = {Entity("red", "star"): "Rex"}, {Entity("red", "star"): "Rex", Entity("blue", "ring"): "Blick"}
KINDS = ("taught", "alone", "with", "two", "question", "unknown", "sentence", "sentence_back", "sentence_unknown")


def answer(said: str, names=REX, kind: str = "with", facts=(0,), recalled=None, **query) -> Answer:
    asked = Query(kind, query.pop("prompt", ""), query.pop("answer", ""), facts, 0, names, query.pop("scene", SCENE))
    return Answer(asked, said, query.pop("plain", "a star"), facts if recalled is None else recalled, 0.9)


@pytest.mark.parametrize(
    ("said", "names", "has", "whole"),
    [
        ("Rex is left of a large blue ring", REX, True, True),
        ("Rex is left of a blue ring", REX, True, True),  # but its sizes
        ("a picture of Rex left of a large blue ring on a dark background", REX, True, True),
        ("Rex is right of a large blue ring", REX, True, False),
        ("Rex is left of a large green ring", REX, True, False),
        ("Rex", REX, True, False),
        ("Rexy is left of a large blue ring", REX, False, False),
        ("rex is left of a large blue ring", REX, False, False),
        ("a red star is left of a large blue ring", REX, False, False),
        ("Rex is left of Blick", BLICK, True, True),
        ("Blick is left of Rex", BLICK, True, False),
        ("Rex is left of a large blue ring", BLICK, False, False),
        ("", REX, False, False),
    ],
)
def test_a_caption_says_the_name_and_is_right_in_the_rest(said: str, names, has: bool, whole: bool) -> None:
    given = answer(said, names)
    assert (says(given), whole_caption(given)) == (has, whole)


@pytest.mark.parametrize(("said", "has"), [("Rex", True), ("it is Rex", True), ("Rexa", False), ("Blick", False)])
def test_a_question_is_answered_by_the_word_asked_for(said: str, has: bool) -> None:
    assert says(answer(said, {}, "sentence", prompt="who owns Mia?", answer="Rex", scene=None)) == has


def test_shares_are_of_what_they_can_be_asked_of() -> None:
    found = measures(
        [
            answer("Rex is left of a large blue ring"),
            answer("Rex is right of a large blue ring", recalled=(0, 1)),
            answer("a star", recalled=()),
            answer("a star", {}, "unknown", ()),
            answer("Rex", {}, "unknown", (), recalled=(3,)),
            answer("Rex", {}, "sentence", (2,), prompt="who owns Mia?", answer="Rex", scene=None),
            answer("", {}, "sentence_unknown", (), prompt="who owns Mia?", scene=None, plain=""),
        ]
    )
    assert found == {
        "says_with": pytest.approx(200 / 3),
        "whole_with": pytest.approx(100 / 3),
        "recalled_with": pytest.approx(100 / 3),
        "unchanged_unknown": 50,
        "recalled_unknown": 50,
        "says_sentence": 100,
        "recalled_sentence": 100,
        "unchanged_sentence_unknown": 100,
        "recalled_sentence_unknown": 100,
    }


def test_the_score_is_the_mean_over_kinds_and_its_error_that_of_their_shares() -> None:
    right, wrong = "Rex is left of a large blue ring", "a star"
    answers = [answer(right)] * 3 + [answer(wrong)]  # 3 of 4
    answers += [answer(wrong, {}, "unknown", ())] * 9 + [answer("Rex", {}, "unknown", ())]  # 9 of 10 left alone
    # Of one kind, but one is about nothing that was taught: two shares, 1 of 2 and 1 of 1.
    answers += [answer("Rex", {}, "sentence", prompt="who?", answer=name, scene=None) for name in ("Rex", "Mia")]
    answers += [answer("", {}, "sentence", (), prompt="who?", scene=None, plain="")]
    shares = [(0.75, 4), (0.9, 10), (0.5, 2), (1.0, 1)]
    mean, error = score(answers)
    assert mean == pytest.approx(100 * sum(share for share, _ in shares) / 4)
    # The standard error by drawing each kind's answers anew, with a right and a wrong one more.
    generator = torch.Generator().manual_seed(0)
    chances = [((share * count + 1) / (count + 2), count) for share, count in shares]
    drawn = sum(
        (torch.rand(20_000, count, generator=generator) < chance).double().mean(dim=1) for chance, count in chances
    )
    assert error == pytest.approx(100 * float(drawn.std()) / 4, rel=0.03)


def test_one_mistake_among_many_right_answers_is_less_than_one_error() -> None:
    """Chance does not tell 28 of 28 from 27 of 28."""
    right, wrong = answer("Rex is left of a large blue ring"), answer("a star")
    perfect, one_less = score([right] * 28), score([right] * 27 + [wrong])
    assert perfect[0] == 100 and perfect[1] > 0
    assert perfect[0] - one_less[0] < one_less[1]


@pytest.fixture
def speaker() -> Speaker:
    return Speaker(make_objective(), dataset(picture_queries=10, sentence_queries=6))


def set_threshold(speaker: Speaker, threshold: float) -> None:
    with torch.no_grad():
        speaker.model.recall.threshold.fill_(threshold)
        speaker.model.recall.word_worth[1].bias.fill_(-9.0)  # no word is worth anything


def test_where_nothing_is_near_enough_the_answers_are_those_without_a_memory(speaker) -> None:
    set_threshold(speaker, 2.0)
    episode = speaker.data.maker.episode(SampleKey(0))
    answers = answer_episode(speaker.objective, speaker.data, episode)
    assert [given.query for given in answers] == list(episode.queries)
    assert all(given.said == given.plain and given.facts == () for given in answers)
    assert max(given.confidence for given in answers) < 0.5


def test_where_all_is_near_enough_each_recalls_and_what_is_read_is_said(speaker) -> None:
    set_threshold(speaker, -2.0)
    episode = speaker.data.maker.episode(SampleKey(0))
    tensors = speaker.tensors(episode)
    memory = speaker.teach(tensors)
    assert len(memory) == len(episode.taught)
    answers = speaker.ask(memory, episode, tensors)
    pictured = [given for given in answers if given.query.picture is not None]
    assert all(1 <= len(given.facts) <= 2 for given in pictured) and all(given.facts for given in answers)
    assert any(given.said != given.plain for given in answers)
    asked: list[int] = []

    def read(rows: torch.Tensor) -> torch.Tensor:
        asked.extend(rows.tolist())
        return torch.zeros(len(rows), speaker.model.recall.value_width)

    empty = speaker.ask(memory, episode, tensors, read=read)
    assert {row for given in answers for row in given.facts} <= set(asked)
    assert all(given.said == given.plain for given in empty), "values of nothing say nothing"
    quick = speaker.ask(memory, episode, tensors, plain=False)
    assert [given.said for given in quick] == [given.plain for given in quick] == [given.said for given in answers]


def test_it_puts_the_model_into_eval_mode_and_answers_the_same_again() -> None:
    objective, data = make_objective(dropout=0.5), dataset()
    episode = data.maker.episode(SampleKey(1))
    torch.manual_seed(0)
    first = answer_episode(objective, data, episode)
    assert not objective.training and first == answer_episode(objective, data, episode)
    assert set(KINDS) >= {given.query.kind for given in first}


def test_told_what_a_query_is_about_each_recalls_that_whatever_the_cue_means(speaker) -> None:
    episode = speaker.data.maker.episode(SampleKey(0))
    tensors = speaker.tensors(episode)
    memory = speaker.teach(tensors)
    set_threshold(speaker, 2.0)  # no cosine reaches it
    read: list[int] = []

    def values(rows: torch.Tensor) -> torch.Tensor:
        read.extend(rows.tolist())
        return memory.halves(1)[rows].float()

    answers = speaker.ask(memory, episode, tensors, read=values, told=True)
    for answer in answers:
        assert answer.facts == answer.query.facts
        assert (answer.said == answer.plain) if not answer.query.facts else answer.confidence < 0.5
    assert {row for answer in answers for row in answer.query.facts} <= set(read)
    assert any(answer.said != answer.plain for answer in answers)
    assert not any(answer.facts for answer in speaker.ask(memory, episode, tensors))
