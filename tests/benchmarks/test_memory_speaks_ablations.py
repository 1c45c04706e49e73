"""A part that is taken away changes what it should, and is back afterwards."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from memory_speaks_ablations import GATES, NOISES, gated, silent, without_parts, without_words

from bitgen.memory.answering import Speaker, measures
from bitgen.model.recall import Recall
from support.speaking import dataset, episodes, make_objective


@pytest.fixture(scope="module")
def speaker() -> Speaker:
    return Speaker(make_objective(), dataset(held_out=True))


def test_each_change_is_one_and_leaves_the_model_as_it_was(speaker: Speaker) -> None:
    (episode,) = episodes(1, held_out=True, pictures=3, sentences=3, picture_queries=20, sentence_queries=6)
    with torch.no_grad():
        speaker.model.recall.threshold.fill_(0.0)
        speaker.model.recall.log_scale.fill_(3.0)  # all that points the same way is recalled
    tensors = speaker.tensors(episode)
    memory = speaker.teach(tensors)
    before = speaker.ask(memory, episode, tensors)
    found = without_parts(speaker, episode)
    assert speaker.ask(memory, episode, tensors) == before
    assert set(found) >= {("gate", gate) for gate in GATES} | {("noise", noise) for noise in NOISES}
    assert ("no words", 0.0) in found
    assert all({name.split("_")[0] for name in shares} == {"said", "unchanged"} for shares in found.values())
    about_nothing = [answer for answer in before if not answer.query.facts]
    pictured = [answer for answer in about_nothing if answer.query.picture is not None]
    assert pictured and found["gate", 0.7]["unchanged_pictures"] == measures(pictured)["unchanged_unknown"]


def test_a_gate_that_nothing_passes_leaves_every_answer(speaker: Speaker) -> None:
    (episode,) = episodes(1, held_out=True, pictures=3, sentences=3, picture_queries=6, sentence_queries=6)
    tensors = speaker.tensors(episode)
    shut = speaker.ask(speaker.teach(tensors), episode, tensors, meaning=gated(1.0))
    assert all(answer.said == answer.plain and not answer.facts for answer in shut)
    opened = speaker.ask(speaker.teach(tensors), episode, tensors, meaning=gated(0.0))
    assert all(answer.facts for answer in opened)


def test_without_words_and_above_no_level_facts_are_recalled_that_lack_every_name(
    speaker: Speaker, monkeypatch
) -> None:
    (episode,) = episodes(1, held_out=True, pictures=3, sentences=3, picture_queries=6, sentence_queries=6)
    near = Recall.asked_odds
    monkeypatch.setattr(Recall, "asked_odds", lambda *given: near(*given) * 0 + 9)
    monkeypatch.setattr(
        Recall, "asked_names", lambda self, asked, values, least: torch.zeros(len(asked.keys), len(values)).bool()
    )
    memory, tensors = speaker.teach(speaker.tensors(episode)), speaker.tensors(episode)
    for meaning, recalled in ((gated(0.3), False), (gated(0.0), True), (without_words(), True)):
        answers = speaker.ask(
            memory, episode, tensors, plain=False, meaning=(meaning[0], meaning[1]._replace(alike=-2.0))
        )
        worded = [answer for answer in answers if answer.query.picture is None]
        assert worded and all(bool(answer.facts) == recalled for answer in worded)


@pytest.mark.parametrize("given_back", [True, False])
def test_a_silent_part_gives_back_what_it_got_or_nothing_and_speaks_again(given_back: bool) -> None:
    part, given = torch.nn.Linear(4, 4), torch.randn(2, 4)
    spoken = part(given)
    with silent(part, given_back=given_back):
        assert torch.equal(part(given), given if given_back else torch.zeros(2, 4))
    assert torch.equal(part(given), spoken)
