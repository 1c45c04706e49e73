"""A picture may mean several facts, a text one, of which each word counts: the same rule wherever a memory is asked."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch

from bitgen.memory import EpisodicMemory
from bitgen.memory.answering import Speaker
from bitgen.memory.associative import AssociativeMemory
from bitgen.model import speaking
from bitgen.model.modeling_bitgen import BitGenModel
from bitgen.model.question import Question
from bitgen.model.recall import Recall
from bitgen.model.speaking import BY_PICTURE, BY_TEXT
from bitgen.model.spoken_memory import SpokenMemory
from support.data import picture
from support.memories import pairs
from support.speaking import dataset, episodes, make_objective
from support.spoken_memories import CODE, KEY, TEXTS, TOKENS, speaking_model

FACTS = 3  # with keys at right angles, each as likely as the others: alone surely meant, together hardly
ODDS = 2.5  # log odds
# How many facts a cue means, and the probability of the likeliest: of a memory asked by pictures or by texts.
Asked = Callable[[bool], Iterator[tuple[int, float]]]


@pytest.fixture(autouse=True)
def moderate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recall, "logits", lambda self, cosines: torch.full_like(cosines, ODDS))
    monkeypatch.setattr(Recall, "asked_odds", lambda self, asked, keys: torch.full((len(asked.keys), len(keys)), ODDS))
    worth_missing(monkeypatch, 0.0)


def worth_missing(monkeypatch: pytest.MonkeyPatch, nats: float) -> None:
    """Every question has a word of so much worth that no fact has."""

    def asked_names(self: Recall, asked: Question, values: torch.Tensor, least: float) -> torch.Tensor:
        return torch.full((len(asked.keys), len(values)), nats <= least)

    monkeypatch.setattr(Recall, "asked_names", asked_names)


def of_a_file() -> Asked:
    memory = EpisodicMemory(*speaking_model())
    spoken = torch.cat([torch.eye(KEY)[:FACTS], torch.randn(FACTS, TOKENS * CODE)], dim=1)
    memory.write_codes(pairs(FACTS), TEXTS[:FACTS], spoken=spoken)

    def asked(pictured: bool) -> Iterator[tuple[int, float]]:
        found = memory.recalled(image=picture(0)) if pictured else memory.recalled(text=TEXTS[0])
        yield len(found.facts), found.surest

    return asked


def exported() -> tuple[BitGenModel, SpokenMemory]:
    """A model with what an export has, and its memory of the first texts."""
    model, processor = speaking_model()
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.config, name, getattr(processor.tokenizer, name))
    memory = SpokenMemory(model)
    for text in TEXTS[:FACTS]:
        memory.teach(text, processor.tokenizer)
    return model, memory


def of_an_export() -> Asked:
    model, memory = exported()
    processor = speaking_model()[1]
    memory._facts = replace(memory._facts, keys=torch.eye(KEY)[:FACTS])
    image = model.pool_image_tokens(model.encode_image(processor.image(picture(0))[None]).image_tokens)

    def asked(pictured: bool) -> Iterator[tuple[int, float]]:
        ids = torch.tensor(processor.encode([TEXTS[0]]))[:, :-1]
        found = memory.answering(model, ids, {"image_tokens": image} if pictured else {})
        tokens = found["recalled_mask"][0].sum() if found else 0
        yield int(tokens), 0.0

    return asked


def of_episodes() -> Asked:
    speaker, (episode,) = (
        Speaker(make_objective(), dataset(held_out=True)),
        episodes(1, held_out=True, pictures=3, sentences=3, picture_queries=6, sentence_queries=6),
    )
    width = speaker.model.recall.key_width
    values = speaker.teach(speaker.tensors(episode)).halves(1)[:FACTS]
    memory = AssociativeMemory.empty(speaker.space).written(torch.cat([torch.eye(width)[:FACTS], values], dim=1))

    def asked(pictured: bool) -> Iterator[tuple[int, float]]:
        for answer in speaker.ask(memory, episode, speaker.tensors(episode), plain=False):
            if (answer.query.picture is not None) == pictured:
                yield len(answer.facts), answer.confidence

    return asked


DOORS = pytest.mark.parametrize("made", [of_a_file, of_an_export, of_episodes])


@DOORS
def test_facts_share_the_probability_of_a_text_and_not_of_a_picture(made: Callable[[], Asked]) -> None:
    seen, asks = math.exp(ODDS) * BY_PICTURE.facts / FACTS, math.exp(ODDS)
    assert asks / (1 + FACTS * asks) < BY_TEXT.sure < asks / (1 + asks) and BY_PICTURE.sure < seen / (1 + seen)
    asked = made()
    for pictured, sure in ((True, seen / (1 + seen)), (False, asks / (1 + FACTS * asks))):
        answers = list(asked(pictured))
        assert answers and all((facts > 0) == pictured for facts, _ in answers)
        if made is not of_an_export:  # which does not tell its probability
            assert [found for _, found in answers] == pytest.approx([sure] * len(answers), rel=1e-5)


@DOORS
def test_a_fact_without_a_name_of_the_question_is_not_meant_and_of_a_picture_there_are_none(
    made: Callable[[], Asked], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speaking, "_together", lambda logits, keys, meaning: logits.sigmoid())
    asked = made()
    for nats, answered in ((BY_TEXT.names - 0.01, True), (BY_TEXT.names + 0.01, False)):
        worth_missing(monkeypatch, nats)
        assert all(facts > 0 for facts, _ in asked(True))
        assert all((facts > 0) == answered for facts, _ in asked(False))


def by_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """A question means the fact whose numbers have the largest sum."""

    def largest(self: Recall, asked: Question, values: torch.Tensor, least: float) -> torch.Tensor:
        sums = values.double().sum(dim=1)
        return (sums == sums.max()).expand(len(asked.keys), -1)

    monkeypatch.setattr(Recall, "asked_names", largest)


def test_a_file_compares_a_question_with_the_values_of_its_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    by_values(monkeypatch)
    memory = EpisodicMemory(*speaking_model())
    values = torch.randn(5, TOKENS * CODE, generator=torch.Generator().manual_seed(6))
    memory.write_codes(pairs(5), TEXTS[:5], spoken=torch.cat([torch.eye(KEY)[:5], values], dim=1))
    ((found, _),) = memory.recalled(text=TEXTS[0]).facts
    assert found == memory.episodes[int(values.sum(dim=1).argmax())]


def test_an_export_compares_a_question_with_the_values_of_its_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    by_values(monkeypatch)
    model, memory = exported()
    values = torch.randn(FACTS, TOKENS * CODE, generator=torch.Generator().manual_seed(8))
    memory._facts = replace(memory._facts, keys=torch.eye(KEY)[:FACTS], values=values)
    recalled = memory.answering(model, torch.tensor([[0, 5]]), {})["recalled"][0]
    width = model.recall.place.shape[1]
    codes = recalled[:, width : width + CODE].flatten()
    torch.testing.assert_close(codes, values[int(values.sum(dim=1).argmax())])


def test_episodes_compare_questions_with_the_values_of_their_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    by_values(monkeypatch)
    speaker, (episode,) = Speaker(make_objective(), dataset(held_out=True)), episodes(1, held_out=True)
    tensors = speaker.tensors(episode)
    memory = speaker.teach(tensors)
    wanted = int(memory.halves(1).sum(dim=1).argmax())
    answers = [one for one in speaker.ask(memory, episode, tensors, plain=False) if one.query.picture is None]
    assert answers and all(one.facts == (wanted,) for one in answers)


@pytest.mark.parametrize("door", ["file", "export", "episodes"])
def test_a_picture_is_compared_with_what_the_texts_of_its_facts_look_for(
    monkeypatch: pytest.MonkeyPatch, door: str
) -> None:
    asked: list[torch.Tensor] = []

    def looked_for(self: Recall, values: torch.Tensor) -> torch.Tensor:
        asked.append(values.double())
        return torch.zeros(len(values), self.key_width)

    monkeypatch.setattr(Recall, "looked_for_by", looked_for)
    values = torch.randn(FACTS, TOKENS * CODE, generator=torch.Generator().manual_seed(8))
    keys = torch.eye(KEY)[[0, 0, 1]]  # the second says what the first said of the same thing
    if door == "file":
        file = EpisodicMemory(*speaking_model())
        file.write_codes(pairs(FACTS), TEXTS[:FACTS], spoken=torch.cat([keys, values], dim=1))
        file.recalled(image=picture(0))
    elif door == "export":
        model, memory = exported()
        memory._facts = replace(memory._facts, keys=keys, values=values)
        image = speaking_model()[1].image(picture(0))[None]
        tokens = model.pool_image_tokens(model.encode_image(image).image_tokens)
        memory.answering(model, None, {"image_tokens": tokens})
    else:
        speaker, (episode,) = Speaker(make_objective(), dataset(held_out=True)), episodes(1, held_out=True)
        tensors = speaker.tensors(episode)
        width, values = speaker.model.recall.key_width, speaker.teach(tensors).halves(1)[:FACTS]
        pairs_of = torch.cat([torch.eye(width)[[0, 0, 1]], values], dim=1)
        speaker.ask(AssociativeMemory.empty(speaker.space).written(pairs_of), episode, tensors, plain=False)
    assert len(asked) == 1
    torch.testing.assert_close(asked[0], values[1:].double())
