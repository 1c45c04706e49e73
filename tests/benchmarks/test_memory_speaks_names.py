"""Everyday names in place of invented ones: of the part that training never draws, one for each, pictures untouched."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from memory_speaks_names import EVERYDAY, LED_IN, led_in, renamed

from bitgen.data.episodes.facts import BEFORE_QUESTION, RELATIONS
from bitgen.data.episodes.names import is_held_out_name
from support.speaking import episodes

NAME = re.compile(r"\b[A-Z]\w*")


def test_everyday_names_are_those_that_training_never_draws() -> None:
    assert len(set(EVERYDAY)) == len(EVERYDAY) and all(is_held_out_name(name) for name in EVERYDAY)


def test_each_name_of_a_sentence_has_one_of_its_own_and_pictures_stay() -> None:
    for episode in episodes(5, held_out=True, sentences=12, sentence_queries=20):
        other, exchanged = renamed(episode), {}
        assert renamed(episode) == other
        for (old, picture), (new, same) in zip(episode.taught, other.taught, strict=True):
            assert same == picture and (picture is None or new == old)
            if picture is None:
                exchanged |= dict(zip(NAME.findall(old), NAME.findall(new), strict=True))
        assert set(exchanged.values()) <= set(EVERYDAY) and len(set(exchanged.values())) == len(exchanged) > 12
        for old, new in zip(episode.queries, other.queries, strict=True):
            if old.picture is not None:
                assert new == old
            elif old.facts:
                assert new.answer == exchanged[old.answer]
                assert NAME.findall(new.prompt) == [exchanged[name] for name in NAME.findall(old.prompt)]
                assert {new.answer, *NAME.findall(new.prompt)} == set(NAME.findall(other.taught[new.facts[0]][0]))


def test_only_questions_about_sentences_are_led_in_by_what_no_question_of_training_begins_with() -> None:
    begun = [*BEFORE_QUESTION, *(form for ways in RELATIONS.values() for form in (*ways.asked, *ways.asked_back))]
    assert not any(form.strip() and form.startswith(words.strip(" ,:!")) for words in LED_IN for form in begun)
    led: set[str] = set()
    for episode in episodes(20, held_out=True, sentences=12, sentence_queries=20):
        other = led_in(episode)
        assert led_in(episode) == other and other.taught == episode.taught
        for old, new in zip(episode.queries, other.queries, strict=True):
            before = new.prompt.removesuffix(old.prompt)
            assert replace(new, prompt=old.prompt) == old
            assert before == "" if old.picture is not None else before in LED_IN
            led.add(before)
    assert led == {"", *LED_IN}
