"""EpisodicMemory on small models with random weights: what a person can do with it, and what is refused."""

from __future__ import annotations

import logging
import threading

import pytest
import torch

from bitgen.export.revisions import export_run
from bitgen.memory import EpisodicMemory, open_model
from bitgen.memory.address_space import IMAGE
from support.data import picture
from support.memories import contents
from support.runs import written_run

TEXTS = ["the cat sat", "a red dog", "two hill runs", "blue mat over image", "it is for this", "the dog and the hill"]


@pytest.fixture
def taught(memory) -> EpisodicMemory:
    memory.write([picture(number) for number in range(6)], TEXTS)
    return memory


# ---------------------------------------------------------------- teaching and recalling


def test_each_episode_is_recalled_from_either_half(taught) -> None:
    for number, text in enumerate(TEXTS):
        for found in (taught.recall(image=picture(number)), taught.recall(text=text)):
            assert found[0].text == text and found[0].id == str(number + 1) and found[0].distance < 1e-3
            assert len(found) == 5 and found[0].distance == min(entry.distance for entry in found)


def test_many_cues_give_what_each_gives(taught) -> None:
    for cues in ({"texts": TEXTS[:3]}, {"images": [picture(number) for number in range(3)]}):
        (name, values), found = next(iter(cues.items())), taught.recall_many(**cues, top_k=2)
        for value, entries in zip(values, found, strict=True):
            alone = taught.recall(**{name.removesuffix("s"): value}, top_k=2)
            assert [entry[:2] for entry in entries] == [entry[:2] for entry in alone]
            distances, expected = ([entry.distance for entry in each] for each in (entries, alone))
            assert distances == pytest.approx(expected, abs=1e-6)


def test_files_bytes_pictures_and_tensors_are_the_same_image(taught, opened, tmp_path) -> None:
    picture(2).save(tmp_path / "photo.png")
    expected = taught.recall(image=picture(2))
    for image in (tmp_path / "photo.png", str(tmp_path / "photo.png"), (tmp_path / "photo.png").read_bytes()):
        assert taught.recall(image=image) == expected
    assert taught.recall(image=opened[1].image(picture(2))) == expected


def test_the_ranking_is_by_what_was_read_and_not_by_the_cue(memory, monkeypatch) -> None:
    """A reader whose texts are exchanged recalls the exchanged episodes, though the cue is still the first image."""
    half = memory.encoder.half
    codes = torch.cat([torch.eye(half), torch.eye(half)], dim=1)[:2]
    memory.write_codes(codes, ["first", "second"])
    assert memory.recall_codes(codes[:1, :half], IMAGE)[0][0].text == "first"
    read = type(memory.codes).read
    monkeypatch.setattr(
        type(memory.codes),
        "read",
        lambda self, cues, part: read(self, cues, part)._replace(halves=codes[1:, half:].double()),
    )
    assert memory.recall_codes(codes[:1, :half], IMAGE)[0][0].text == "second"


def test_an_edit_changes_one_episode_and_no_other(taught) -> None:
    before = [taught.recall(image=picture(number), top_k=1)[0].text for number in range(6)]
    taught.edit("3", "a blue cat")
    after = [taught.recall(image=picture(number), top_k=1)[0].text for number in range(6)]
    assert after[2] == "a blue cat" and after[:2] + after[3:] == before[:2] + before[3:]
    assert taught.recall(text="a blue cat")[0].distance < 1e-3
    assert taught.episodes[2].edited is not None and taught.episodes[2].written == taught.episodes[1].written


def test_what_is_forgotten_is_gone_and_the_rest_is_as_if_it_never_was(taught, opened) -> None:
    taught.forget("2")
    fresh = EpisodicMemory(*opened)
    fresh.write([picture(number) for number in (0, 2, 3, 4, 5)], TEXTS[:1] + TEXTS[2:])
    for left, right in zip(taught.codes.precision.solve(), fresh.codes.precision.solve(), strict=True):
        torch.testing.assert_close(left, right, atol=1e-6, rtol=1e-6)
    assert all(entry.text != TEXTS[1] for entry in taught.recall(image=picture(1), top_k=6))
    assert taught.recall(image=picture(1))[0].distance > 0.01
    taught.clear()
    assert len(taught) == 0 and taught.write([picture(0)], ["again"]) == ["7"]  # ids are not used twice


def test_a_larger_memory_holds_what_the_smaller_could_not(opened) -> None:
    memory = EpisodicMemory(*opened, slots=2)
    memory.write([picture(number) for number in range(6)], TEXTS)
    assert memory.state().expected_recall != (1.0, 1.0)
    memory.resize(20, widen=True)
    assert memory.state().expected_recall == (1.0, 1.0) and memory.state().capacity == 20
    assert memory.recall(image=picture(3))[0].text == TEXTS[3]
    with pytest.raises(ValueError, match="slots is 0"):
        memory.resize(0)
    assert memory.state().capacity == 20


def test_more_than_can_be_told_apart_is_said(opened, caplog) -> None:
    memory = EpisodicMemory(*opened, slots=4)
    with caplog.at_level(logging.WARNING):
        memory.write([picture(number) for number in range(4)], TEXTS[:4])
        assert not caplog.records
        memory.write([picture(number) for number in (4, 5)], TEXTS[4:])
    expected = memory.state().expected_recall
    assert "holds 6 episodes and can tell 4 apart" in caplog.text and f"{100 * expected[0]:.0f}% are now" in caplog.text
    share = sum(memory.recall(image=picture(n))[0].text == TEXTS[n] for n in range(6)) / 6
    assert expected[0] == pytest.approx(share)


def test_the_state_says_how_full_it_is(taught, opened) -> None:
    state = taught.state()
    assert (state.episodes, state.slots, state.capacity, state.capacity_left) == (6, 32, 16, 10)
    images = taught.codes.halves(IMAGE)
    assert state.condition_number >= torch.linalg.cond(images @ images.mT).item() ** 0.25 and 0 < state.utilization <= 1
    assert state.memory_bytes == 8 * (32 * 32 + 32 * 32) and state.episode_bytes == 8 * 6 * (32 + 32)
    empty = EpisodicMemory(*opened, slots=20, widen=True).state()
    assert (empty.episodes, empty.capacity, empty.utilization, empty.expected_recall) == (0, 20, 0.0, (1.0, 1.0))


# ---------------------------------------------------------------- models


def test_an_export_recalls_what_a_checkpoint_was_taught(taught, tmp_path) -> None:
    taught.save(tmp_path / "a.memory")
    exported = EpisodicMemory(*open_model(export_run(str(written_run()), str(tmp_path / "m"), True, False, {})))
    exported.load(tmp_path / "a.memory")
    assert exported.recall(image=picture(4))[0].text == TEXTS[4] and exported.recall(text=TEXTS[5])[0].id == "6"


def test_a_model_on_features_takes_features_and_texts_but_no_photo() -> None:
    memory = EpisodicMemory(*open_model(written_run(features=True)))
    features = torch.randn(3, 9, 6, generator=torch.Generator().manual_seed(0))
    memory.write(features, TEXTS[:3])
    assert memory.recall(image=features[1])[0].text == TEXTS[1] == memory.recall(text=TEXTS[1])[0].text
    for photo in (picture(0), "photo.png"):
        with pytest.raises(ValueError, match="has no vision tower: it cannot look at image files"):
            memory.recall(image=photo)


def test_a_model_without_a_memory_of_its_own_has_this_one() -> None:
    memory = EpisodicMemory(*open_model(written_run(use_memory=False)))
    memory.write([picture(0), picture(1)], TEXTS[:2])
    assert memory.recall(image=picture(1))[0].text == TEXTS[1]


# ---------------------------------------------------------------- bad input, threads


@pytest.mark.parametrize(
    "images, texts, keys, message",
    [
        ([picture(7)], ["fine"], ["1"], "id '1' is taken"),
        ([picture(7), picture(8)], ["fine", "too"], ["x", "x"], "id 'x' is taken"),
        ([picture(7)], ["fine"], [""], "not empty"),
        ([picture(7)], ["fine"], [" rex"], "begins or ends with a space"),
        ([picture(7), picture(8)], ["fine", "  "], None, "text 1 is empty"),
        ([picture(7)], [5], None, "not a string"),
        ([picture(7)], ["fine", "too"], None, "1 images and 2 texts"),
        ([], [], None, "0 images"),
        ([picture(7)], ["fine"], ["a", "b"], "1 codes, 1 texts and 2 ids"),
        ([b"no image"], ["fine"], None, "image 0 cannot be read as an image"),
        (["nowhere.png"], ["fine"], None, "nowhere.png cannot be read: No such file"),
        ([7], ["fine"], None, "image 0 is a int"),
        (picture(7).tobytes(), "fine", None, "are lists"),
        (None, ["fine"], None, "an image with a text"),
    ],
)
def test_what_cannot_be_written_is_refused_and_the_memory_is_as_it_was(taught, images, texts, keys, message) -> None:
    before = contents(taught)
    with pytest.raises(ValueError, match=message):
        taught.write(images, texts, keys)
    assert contents(taught) == before


def test_codes_with_nan_are_refused_and_the_memory_is_as_it_was(taught) -> None:
    before = contents(taught)
    with pytest.raises(ValueError, match="NaN"):
        taught.write_codes(torch.full((1, 32), torch.nan), ["fine"])
    assert contents(taught) == before


def test_unknown_ids_empty_memories_and_wrong_cues_are_refused(taught, opened) -> None:
    for attempt in (lambda: taught.edit("9", "x"), lambda: taught.forget("9")):
        with pytest.raises(ValueError, match="no episode '9'"):
            attempt()
    with pytest.raises(ValueError, match="empty"):
        taught.edit("1", "")
    with pytest.raises(ValueError, match="the memory is empty"):
        EpisodicMemory(*opened).recall(text="the cat")
    for cue in ({}, {"image": picture(0), "text": "the cat"}):
        with pytest.raises(ValueError, match="one of them"):
            taught.recall(**cue)
    with pytest.raises(ValueError, match="top_k"):
        taught.recall(text="the cat", top_k=0)
    with pytest.raises(ValueError, match="empty"):
        taught.recall(text="")


def test_readers_see_whole_memories_while_one_writer_works(opened) -> None:
    """Every reader finds the episodes that stay, exactly, whatever the writer is doing."""
    memory = EpisodicMemory(*opened, slots=12)
    half = memory.encoder.half
    codes = torch.eye(2 * half, dtype=torch.float64)[:half]
    codes[:, half:] = torch.eye(half, dtype=torch.float64).flip(0)
    memory.write_codes(codes[:4], ["a", "b", "c", "d"])
    problems: list[object] = []
    done = threading.Event()

    def read() -> None:
        try:
            while not done.is_set():
                found = memory.recall_codes(codes[:4, :half], IMAGE, 3)
                if [entries[0].text for entries in found] != ["a", "b", "c", "d"] or found[0][0].distance > 1e-3:
                    problems.append(found)
        except Exception as error:  # reported below, in the test's own thread
            problems.append(error)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for _ in range(15):
        ids = memory.write_codes(codes[5:8], ["x", "y", "z"])
        for key in ids:
            memory.forget(key)
    done.set()
    for reader in readers:
        reader.join()
    assert not problems


def test_writers_wait_for_one_another(opened) -> None:
    memory = EpisodicMemory(*opened)
    half = memory.encoder.half

    def write(first: int) -> None:
        for row in range(first, first + 4):
            memory.write_codes(torch.eye(2 * half, dtype=torch.float64)[row : row + 1], [str(row)])

    writers = [threading.Thread(target=write, args=(4 * number,)) for number in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(memory) == 12 and len({episode.id for episode in memory.episodes}) == 12


def test_what_raises_while_a_memory_is_full_leaves_it_as_it_was(memory, monkeypatch) -> None:
    """The notices look at the new memory, and looking may fail: it needs more room than the write itself."""
    memory.write([picture(0)], TEXTS[:1])
    before = contents(memory)

    def fails(held: object) -> None:
        raise RuntimeError("no room")

    for name in ("warn_when_full", "warn_after_write", "warn_after_edit"):
        monkeypatch.setattr(f"bitgen.memory.episodic_memory.{name}", lambda *_: fails(None))
    changes = (
        lambda: memory.write([picture(1)], TEXTS[1:2]),
        lambda: memory.edit("1", "a red dog"),
        lambda: memory.resize(3),
        lambda: memory.whiten(None),
    )
    for change in changes:
        with pytest.raises(RuntimeError, match="no room"):
            change()
        assert contents(memory) == before and memory.codes.space.slots == 32


def test_a_large_memory_is_judged_by_some_of_its_episodes(memory, monkeypatch) -> None:
    """As many rows of cosines as are asked for at once, never one for each episode."""
    half, asked = memory.encoder.half, []
    pairs = torch.randn(40, 2 * half, generator=torch.Generator().manual_seed(0))
    memory.write_codes(pairs, [f"episode {number}" for number in range(40)])
    whole = memory.state().expected_recall
    read = type(memory.codes).read

    def counted(self, cues, part):
        asked.append(len(cues))
        return read(self, cues, part)

    monkeypatch.setattr(type(memory.codes), "read", counted)
    monkeypatch.setattr("bitgen.memory.episodes._ASKED_AT_ONCE", 7)
    assert memory.state().expected_recall == whole and max(asked) == 7 and sum(asked) == 80
    asked.clear()
    monkeypatch.setattr("bitgen.memory.episodes._MOST_ASKED", 10)
    some = memory.state().expected_recall
    assert sum(asked) == 20 and all(share * 10 == int(share * 10) for share in some)


def test_numbers_that_were_given_as_ids_are_used_once(memory) -> None:
    memory.write([picture(0)], TEXTS[:1], keys=["7"])
    memory.forget("7")
    assert memory.write([picture(1), picture(2)], TEXTS[1:3]) == ["8", "9"]


@pytest.mark.parametrize(
    ("cues", "says"),
    [
        ({"texts": "the cat sat"}, "are lists"),
        ({"images": b"x"}, "are lists"),
        ({"images": [torch.zeros(3, 10, 10)]}, r"image 0 is a tensor of shape \[3, 10, 10\]; this model takes pixel"),
        ({"images": [torch.zeros(3)]}, r"image 0 is a tensor of shape \[3\]"),
    ],
)
def test_cues_that_are_no_cues_are_named(taught, cues, says) -> None:
    with pytest.raises(ValueError, match=says):
        taught.recall_many(**cues)


def test_no_cue_recalls_nothing(taught) -> None:
    assert taught.recall_many(images=[]) == taught.recall_many(texts=[]) == []


@pytest.mark.parametrize("settings", [{"sigma": -0.1}, {"sigma": float("nan")}, {"slots": 2.5}, {"cue_noise": -1.0}])
def test_settings_that_cannot_be_are_refused_at_once(opened, settings) -> None:
    with pytest.raises(ValueError):
        EpisodicMemory(*opened, **settings)
