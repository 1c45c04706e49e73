"""What a memory warns of that the model speaks from: texts too long for a value, and more facts than are read."""

from __future__ import annotations

import logging

import pytest

from bitgen.memory import EpisodicMemory
from support.data import picture
from support.memories import pairs
from support.spoken_memories import KEY, TEXTS, TOKENS, speaking_model, warnings


@pytest.fixture
def speaker() -> EpisodicMemory:
    return EpisodicMemory(*speaking_model())


@pytest.fixture
def taught(speaker) -> EpisodicMemory:
    """A picture and a sentence."""
    speaker.write([picture(0)], TEXTS[:1])
    speaker.tell(TEXTS[1:2])
    return speaker


@pytest.mark.parametrize("way", ["write", "tell", "edit"])
def test_what_a_value_cannot_hold_is_said_with_what_would_be_recalled(taught, caplog, way) -> None:
    long = "the cat sat on the mat and the dog ran"
    ids = taught.encoder.processor.encode([long])[0][1:-1]
    assert len(ids) > TOKENS
    with caplog.at_level(logging.WARNING):
        if way == "write":
            taught.write([picture(5)], [long])
        elif way == "tell":
            taught.tell([long])
        else:
            taught.edit("1", long)
    [said] = warnings(caplog, "can say")
    kept = taught.encoder.processor.tokenizer.decode(ids[:TOKENS])
    assert f"has {len(ids)} tokens and the model can say {TOKENS}" in said and f"recall '{kept}'" in said
    assert long.startswith(kept.strip())


def test_texts_that_a_value_holds_are_nothing_to_warn_of(taught, caplog) -> None:
    tokenizer = taught.encoder.processor.tokenizer
    fits = tokenizer.decode(taught.encoder.processor.encode(["the cat sat on the mat and the dog"])[0][1 : TOKENS + 1])
    with caplog.at_level(logging.WARNING):
        taught.tell([*TEXTS, fits])
        taught.write_codes(pairs(1), ["the cat sat on the mat and the dog ran"])  # which nothing is said of
    assert not warnings(caplog, "can say")


def test_of_many_texts_that_are_too_long_one_is_shown(taught, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        taught.tell(["the cat sat on the mat and the dog", "a cat", "a red dog ran over the hill and the mat"])
    [said] = warnings(caplog, "can say")
    assert said.startswith("2 of 3 texts are longer")


def test_more_facts_than_can_be_read_are_said_with_what_to_expect(speaker, caplog) -> None:
    texts = [f"{first} {second}" for first in ("cat", "dog", "hill", "mat") for second in ("sat", "red", "blue", "two")]
    with caplog.at_level(logging.WARNING):
        speaker.tell(texts[:KEY])
        assert not warnings(caplog, "holds") and speaker.state().capacity == KEY
        speaker.tell(texts[KEY:])
    [said] = warnings(caplog, "holds 16 episodes and can tell 12 apart")
    assert f"and {100 * speaker.state().expected_speech:.0f}% are read as they are to be said" in said
    speaker.resize(20, widen=True)
    assert speaker.state().expected_speech == 1.0 and speaker.state().capacity == 20
