"""A memory that the model speaks from, on small models with random weights: what is held, recalled, and left alone."""

from __future__ import annotations

import functools
import logging
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitgen.memory import EpisodicMemory, Whitening
from bitgen.memory.address_space import IMAGE, TEXT
from bitgen.memory.episodes import Episode
from bitgen.memory.picture import draw_memory
from bitgen.memory.spoken import FactEncoder, Spoken, recalled_by
from bitgen.model.question import IN_A_ROW, Question
from bitgen.model.speaking import MOST_RECALLED
from bitgen.objectives.recall import RecallObjective
from support.data import picture
from support.memories import pairs
from support.spoken_memories import (
    CODE,
    KEY,
    TEXTS,
    TOKENS,
    assert_same_spoken,
    finds,
    keys,
    speaking_model,
    spoken_contents,
)


@pytest.fixture
def speaker() -> EpisodicMemory:
    return EpisodicMemory(*speaking_model())


@pytest.fixture
def taught(speaker) -> EpisodicMemory:
    """Three pictures and two sentences."""
    speaker.write([picture(number) for number in range(3)], TEXTS[:3])
    speaker.tell(TEXTS[3:5])
    return speaker


# ---------------------------------------------------------------- what is held


def test_keys_and_values_are_those_of_training(taught) -> None:
    model, processor = speaking_model()
    texts = processor.texts(TEXTS[:5])
    pictures = processor.images([picture(number) for number in range(3)])
    episode = {
        "taught_ids": texts["input_ids"],
        "taught_mask": texts["attention_mask"],
        "taught_pictures": pictures,
    }
    with torch.no_grad():
        written = RecallObjective(model).eval().write(episode)
    torch.testing.assert_close(taught.spoken.pairs, torch.cat(written, dim=1).double(), atol=1e-5, rtol=1e-5)
    assert taught.spoken.pairs.shape == (5, KEY + TOKENS * CODE)
    assert taught.codes.halves(IMAGE)[3:].eq(0).all() and taught.codes.halves(TEXT)[3:].ne(0).any(dim=1).all()


@functools.cache
def shared() -> tuple[EpisodicMemory, FactEncoder]:
    """A memory for one after the other, and what its rows are compared with."""
    memory = EpisodicMemory(*speaking_model())
    return memory, FactEncoder(memory.encoder)


@functools.cache
def expected(text: str, seen: int | None, seen_text: str | None) -> torch.Tensor:
    """The row ``[image | text | key | value]`` of a text; of a picture, which was first taught with ``seen_text``."""
    memory, facts = shared()
    text_half = memory.encoder.texts([text])[0]
    told = facts.codes([text])[0]
    if seen is None:
        return torch.cat([torch.zeros_like(text_half), text_half, told])
    tokens, image_half = memory.encoder.looked_at([picture(seen)])
    first = facts.codes([seen_text], tokens)[0]
    return torch.cat([image_half[0], text_half, first[:KEY], told[KEY:]])


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["write", "write", "tell", "tell", "edit", "edit", "forget", "file", "resize", "whiten", "sums"]
        ),
        st.integers(0, 99),
    ),
    min_size=4,
    max_size=14,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_rows_stay_together_whatever_is_done(tmp_path, steps) -> None:
    memory, _ = shared()
    memory.clear()
    memory.whiten(None)
    held: list[tuple[str, str, int | None, str | None]] = []  # id, text, picture and the text it came with
    for what, number in steps:
        text, row = TEXTS[number % len(TEXTS)], number % max(len(held), 1)
        if what == "write":
            [key] = memory.write([picture(number % 4)], [text])
            held.append((key, text, number % 4, text))
        elif what == "tell":
            held.append((memory.tell([text])[0], text, None, None))
        elif what == "edit" and held:
            memory.edit(held[row][0], text)
            held[row] = (held[row][0], text, *held[row][2:])
        elif what == "forget" and held:
            memory.forget(held.pop(row)[0])
        elif what == "file":
            memory.save(tmp_path / "m")
            memory.clear()
            memory.load(tmp_path / "m")
        elif what == "resize":
            memory.resize(8 + number, widen=number % 2 == 0)
        elif what == "whiten":
            memory.whiten(Whitening.fit(pairs(64)))
        elif what == "sums":  # from now on a change adds to them
            assert memory.spoken.precision.precision.isfinite().all()
    assert [episode.id for episode in memory.episodes] == [row[0] for row in held]
    assert [episode.text for episode in memory.episodes] == [row[1] for row in held]
    found = torch.cat([memory.codes.pairs, memory.spoken.pairs], dim=1)
    for row, (_, *taught) in zip(found, held, strict=True):
        torch.testing.assert_close(row, expected(*taught), atol=1e-6, rtol=0)
    fresh = type(memory.spoken).holding(memory.spoken.space, memory.spoken.pairs)
    for left, right in zip(memory.spoken.precision.solve(), fresh.precision.solve(), strict=True):
        torch.testing.assert_close(left, right, atol=1e-6, rtol=1e-6)
    assert (
        memory.spoken.space.slots == memory.codes.space.slots and memory.spoken.space.widen == memory.codes.space.widen
    )


def test_what_is_forgotten_is_as_if_it_had_never_been_taught(taught) -> None:
    assert taught.spoken.weights.shape[0] == taught.codes.weights.shape[0] == 5  # both have sums to subtract from
    taught.forget("2")
    taught.forget("4")
    fresh = EpisodicMemory(*speaking_model())
    fresh.write([picture(0), picture(2)], [TEXTS[0], TEXTS[2]])
    fresh.tell([TEXTS[4]])
    assert_same_spoken(taught, fresh)


def test_an_edit_keeps_a_pictures_key_and_makes_a_sentences_anew(taught) -> None:
    before = taught.spoken.pairs.clone()
    taught.edit("1", TEXTS[5])
    taught.edit("4", TEXTS[5])
    after, [told] = taught.spoken.pairs, FactEncoder(taught.encoder).codes([TEXTS[5]])
    assert torch.equal(after[0], torch.cat([before[0, :KEY], told[KEY:]])) and torch.equal(after[3], told)
    assert torch.equal(after[[1, 2, 4]], before[[1, 2, 4]])


# ---------------------------------------------------------------- what is recalled


def test_a_cue_reads_the_values_of_the_facts_that_it_means(taught, monkeypatch) -> None:
    finds(monkeypatch, everything=True)
    recall, facts = taught.encoder.model.recall, FactEncoder(taught.encoder)
    spoken = taught.recalled(text=f"{TEXTS[4]}")
    assert [(episode.id, 0.5 < sure <= 1) for episode, sure in spoken.facts] == [("5", True)]
    [value] = taught.spoken.halves(TEXT)[4:].float()
    nowhere = torch.zeros(1, 1, recall.place.shape[1])
    with torch.no_grad():
        expected = recall.tokens(value[None, None], nowhere, torch.ones(1, 1, dtype=torch.bool))
    torch.testing.assert_close(spoken.tokens.tokens, expected.tokens, atol=1e-5, rtol=1e-5)

    seen = taught.recalled(image=picture(0))
    assert 1 <= len(seen.facts) <= MOST_RECALLED and seen.surest == seen.facts[0][1] >= seen.facts[-1][1] > 0.5
    assert seen.tokens.tokens.shape[1] == TOKENS * len(seen.facts) and seen.tokens.present.any()
    tokens = facts.image_cue(picture(0)).image_tokens
    assert torch.equal(tokens, taught.encoder.looked_at([picture(0)]).image_tokens)


def test_a_cue_like_nothing_recalls_nothing_and_says_how_sure_that_is(taught, monkeypatch) -> None:
    finds(monkeypatch, everything=False)
    for cue in ({"image": picture(0)}, {"text": TEXTS[3]}):
        spoken = taught.recalled(**cue)
        assert spoken.tokens is None and spoken.facts == [] and 0 < spoken.surest < 0.5
    taught.clear()
    assert taught.recalled(image=picture(0)) == Spoken(None, [], 0.0)


def test_of_two_facts_about_one_thing_the_later_is_recalled(speaker, monkeypatch) -> None:
    """Equal keys alone would read the mean of both values."""
    finds(monkeypatch, everything=True)
    recall = speaker.encoder.model.recall
    one = torch.nn.functional.normalize(torch.randn(3, KEY, generator=torch.Generator().manual_seed(0)), dim=1)
    values = torch.randn(3, TOKENS * CODE, generator=torch.Generator().manual_seed(1))
    near = torch.nn.functional.normalize(one[0] + 0.1 * one[1], dim=0)
    for key, expected in ((one[0], 2), (near, 2), (one[2], 0)):  # of the third row; equal, near enough, another thing
        codes = torch.cat([torch.stack([one[0], one[1], key]), values], dim=1)
        speaker.clear()
        ids = speaker.write_codes(pairs(3), TEXTS[:3], spoken=codes)
        episodes = tuple(Episode(name, "", "") for name in ids)
        question = Question(one[:1], torch.zeros(1, 0, CODE), torch.zeros(1, 0, IN_A_ROW), torch.zeros(1, 0).long())
        spoken = recalled_by(recall, speaker.spoken, episodes, question)
        assert [episode.id for episode, _ in spoken.facts] == [ids[expected]]
        nowhere = torch.zeros(1, 1, recall.place.shape[1])
        with torch.no_grad():
            given = recall.tokens(values[expected][None, None], nowhere, torch.ones(1, 1, dtype=torch.bool))
        torch.testing.assert_close(spoken.tokens.tokens, given.tokens, atol=1e-4, rtol=1e-4)
        assert [episode.id for episode in speaker.episodes] == ids  # both are listed


def test_what_cannot_be_said_is_recalled_as_before_and_by_no_cue(speaker, monkeypatch) -> None:
    finds(monkeypatch, everything=True)
    codes = torch.cat([speaker.encoder.images([picture(0)]), speaker.encoder.texts([TEXTS[0]])], dim=1)
    speaker.write_codes(codes, [TEXTS[0]])
    assert keys(speaker).eq(0).all() and speaker.recall(image=picture(0))[0].text == TEXTS[0]
    for cue in ({"image": picture(0)}, {"text": TEXTS[0]}):
        assert speaker.recalled(**cue) == Spoken(None, [], 0.0)
    speaker.tell([TEXTS[1]])
    assert [episode.text for episode, _ in speaker.recalled(text=TEXTS[0]).facts] == [TEXTS[1]]
    assert speaker.state().expected_speech == 1.0


# ---------------------------------------------------------------- sentences in the memory of pairs


@pytest.mark.parametrize("whitened", [False, True])
@pytest.mark.parametrize("slots, widen", [(32, False), (20, True), (4, False)])
def test_a_sentence_is_never_recalled_by_an_image_and_changes_no_reading(taught, slots, widen, whitened) -> None:
    alone = EpisodicMemory(*speaking_model())
    alone.write([picture(number) for number in range(3)], TEXTS[:3])
    for memory in (taught, alone):
        memory.whiten(Whitening.fit(pairs(64)) if whitened else None)
        memory.resize(slots, widen)
    for number in (0, 1, 2, 7):
        found, expected = (memory.recall(image=picture(number), top_k=9) for memory in (taught, alone))
        assert {entry.id for entry in found} == {"1", "2", "3"}
        distances, others = ([entry.distance for entry in entries] for entries in (found, expected))
        assert torch.tensor(distances).isfinite().all()
        if slots > 4:
            assert distances == pytest.approx(others, abs=1e-6)
    assert {entry.id for entry in taught.recall(text=TEXTS[3], top_k=9)} == {"1", "2", "3"}
    state = taught.state()
    assert all(torch.tensor(figure).isfinite().all() for figure in state)
    assert slots == 4 or state.expected_recall == (1.0, 1.0)


def test_a_memory_of_sentences_alone_is_a_memory(speaker, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        speaker.tell(TEXTS)
        assert speaker.recall(image=picture(0)) == [] == speaker.recall(text=TEXTS[0])
        state = speaker.state()
    assert not caplog.records and state.expected_recall == (1.0, 1.0) and state.condition_number >= 1
    assert draw_memory(speaker).shape[0] == 3
    speaker.write([picture(0)], ["the cat"])
    assert draw_memory(speaker).shape[0] == 3 and speaker.recall(image=picture(0))[0].id == "7"


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "texts, ids, message",
    [
        ("the cat", None, "are lists"),
        ([], None, "0 texts"),
        (["the cat", " "], None, "text 1 is empty"),
        ([5], None, "not a string"),
        (["the cat"], ["1"], "id '1' is taken"),
        (["the cat", "a dog"], ["x"], "2 texts and 1 ids"),
    ],
)
def test_what_cannot_be_told_is_refused_and_the_memory_is_as_it_was(taught, texts, ids, message) -> None:
    before = spoken_contents(taught)
    with pytest.raises(ValueError, match=message):
        taught.tell(texts, ids)
    assert spoken_contents(taught) == before


@pytest.mark.parametrize("bad", [torch.full((1, KEY + TOKENS * CODE), torch.nan), torch.ones(1, 5), torch.ones(2, 36)])
def test_spoken_codes_that_are_none_are_refused_and_the_memory_is_as_it_was(taught, bad) -> None:
    before = spoken_contents(taught)
    with pytest.raises(ValueError, match="NaN|codes are|2 keys and values"):
        taught.write_codes(pairs(1), ["fine"], spoken=bad)
    assert spoken_contents(taught) == before


def test_a_model_that_does_not_speak_says_what_to_train(memory) -> None:
    assert not memory.speaks and memory.spoken is None and memory.state().expected_speech is None
    attempts = (
        lambda: memory.tell(["the cat"]),
        lambda: memory.recalled(text="the cat"),
        lambda: memory.write_codes(pairs(1), ["fine"], spoken=torch.ones(1, 36)),
    )
    for attempt in attempts:
        with pytest.raises(ValueError, match="configs/memory_scenes.yaml"):
            attempt()
    assert len(memory) == 0


def test_a_cue_is_there_and_can_be_read(taught) -> None:
    assert taught.speaks
    with pytest.raises(ValueError, match="empty"):
        taught.recalled(text=" ")
    with pytest.raises(ValueError, match="nowhere.png cannot be read"):
        taught.recalled(image="nowhere.png")


def test_an_episode_of_an_earlier_release_is_edited_however_long_it_is(taught, monkeypatch) -> None:
    """Files may hold texts that are longer than what is taken today."""
    episode = taught.episodes[0]
    long = replace(episode, text=episode.text + " red" * 4_000)
    monkeypatch.setattr(taught, "_held", taught._held._replace(episodes=(long, *taught.episodes[1:])))
    taught.edit(episode.id, TEXTS[-1])
    assert taught.episodes[0].text == TEXTS[-1]


def test_what_raises_while_an_edit_is_looked_at_leaves_the_memory_as_it_was(taught, monkeypatch) -> None:
    before = taught.episodes

    def broken(*_: object) -> None:
        raise ValueError("a fault")

    monkeypatch.setattr("bitgen.memory.episodic_memory.warn_of_another_thing", broken)
    with pytest.raises(ValueError, match="a fault"):
        taught.edit(before[0].id, TEXTS[-1])
    assert taught.episodes == before
