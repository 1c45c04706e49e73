"""A question asked together with an image: which of the two asks the memory."""

from __future__ import annotations

import pytest
import torch

from bitgen.memory import EpisodicMemory, spoken
from bitgen.memory.spoken import Spoken
from bitgen.model.recall import Recall
from bitgen.model.speaking import BY_TEXT
from support.data import picture
from support.spoken_memories import TEXTS, finds, speaking_model


@pytest.fixture
def taught() -> EpisodicMemory:
    """Three pictures and two sentences."""
    memory = EpisodicMemory(*speaking_model())
    memory.write([picture(number) for number in range(3)], TEXTS[:3])
    memory.tell(TEXTS[3:5])
    return memory


def test_of_a_question_about_an_image_the_question_asks_first_if_it_has_a_name(taught, monkeypatch) -> None:
    finds(monkeypatch, everything=True)
    question, image = {"text": TEXTS[4]}, {"image": picture(0)}
    told, seen = taught.recalled(**question), taught.recalled(**image)
    assert told.facts != seen.facts and told.by_question and not seen.by_question

    def same(one: Spoken, other: Spoken) -> bool:
        return one[1:] == other[1:] and torch.equal(one.tokens.tokens, other.tokens.tokens)

    assert same(taught.recalled(**question, **image), seen)  # no word of a model without training is worth much
    monkeypatch.setattr(spoken, "has_names", lambda asked, least: torch.tensor([least == BY_TEXT.names]))
    assert same(taught.recalled(**question, **image), told)
    monkeypatch.setattr(Recall, "asked_names", lambda self, asked, values, least: torch.zeros(1, len(values)).bool())
    assert same(taught.recalled(**question, **image), seen)  # a name of which nothing was told
    assert not taught.recalled(**question).by_question
    with pytest.raises(ValueError, match="an image, a question"):
        taught.recalled()


@pytest.mark.parametrize(("text", "asks"), [(TEXTS[4], True), ("this is for two", False), ("?", False)])
def test_a_name_is_a_word_of_worth_that_was_taught(taught, monkeypatch, text, asks) -> None:
    names = Recall.asked_names
    finds(monkeypatch, everything=True)
    monkeypatch.setattr(Recall, "asked_names", names)
    taught.encoder.model.recall.word_worth[1].bias.data.fill_(2 * BY_TEXT.names)  # each word is a name
    assert taught.recalled(image=picture(0), text=text).by_question is asks


def test_the_surest_is_that_of_both_cues(taught, monkeypatch) -> None:
    finds(monkeypatch, everything=False)
    monkeypatch.setattr(spoken, "has_names", lambda asked, least: torch.ones(1, dtype=torch.bool))
    cues = {"image": picture(0)}, {"text": TEXTS[3]}
    both = taught.recalled(**cues[0], **cues[1])
    assert both.tokens is None and both.surest == max(taught.recalled(**cue).surest for cue in cues)
