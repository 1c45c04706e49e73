"""Everyday names in place of invented ones: of the part that training never draws, one for each, pictures untouched."""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from memory_speaks_names import EVERYDAY, renamed

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
