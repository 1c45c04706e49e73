"""Everyday names in place of invented ones: of the part that training never draws, one for each, pictures untouched."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from memory_speaks_names import EVERYDAY, LED_IN, led_in, misspelt, of_another_relation, renamed, written

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


def test_what_people_write_begins_with_a_capital_and_is_else_what_it_was() -> None:
    for episode in episodes(5, held_out=True, sentences=12, sentence_queries=20):
        other = written(episode)
        for (old, picture), (new, same) in zip(episode.taught, other.taught, strict=True):
            assert same == picture and new == (old if picture is not None else f"{old[0].upper()}{old[1:]}.")
        for asked, new_asked in zip(episode.queries, other.queries, strict=True):
            assert replace(new_asked, prompt=asked.prompt) == asked
            assert new_asked.prompt == asked.prompt or asked.picture is None
            assert asked.picture is not None or new_asked.prompt == asked.prompt[0].upper() + asked.prompt[1:]
    assert any(written(episode) != episode for episode in episodes(2, held_out=True))


def test_near_misses_are_about_nobody_and_nearly_about_somebody() -> None:
    seen = {"misspelt": 0, "another": 0}
    for episode in episodes(6, held_out=True, pictures=2, sentences=6, picture_queries=2, sentence_queries=12):
        told = [text for text, picture in episode.taught if picture is None]
        names = {name for text in told for name in re.findall(r"\b[A-Z]\w+", text)}
        for kind, other in (("misspelt", misspelt(episode)), ("another", of_another_relation(episode))):
            assert other.taught == episode.taught and other.pictures == episode.pictures
            for query in other.queries:
                if query.picture is not None:
                    assert query in episode.queries
                    continue
                assert query.facts == () and query.answer == ""
                (name,) = re.findall(r"\b[A-Z]\w+", query.prompt)
                if kind == "misspelt":
                    assert name not in names
                    assert any(len(one) == len(name) and sum(map(str.__ne__, one, name)) == 1 for one in names)
                else:
                    (text,) = (text for text in told if name in text.split())
                    (told_of,) = (noun for noun, ways in RELATIONS.items() if _fits(text, ways.told[-1], name))
                    assert query.prompt != RELATIONS[told_of].asked[-1].format(s=name)
                    assert query.prompt in {ways.asked[-1].format(s=name) for ways in RELATIONS.values()}
                seen[kind] += 1
    assert min(seen.values()) > 10


def _fits(text: str, form: str, name: str) -> bool:
    return any(text == form.format(s=name, o=other) for other in text.split())
