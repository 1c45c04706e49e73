"""Sources of conversations: folders, images with captions, scenes; what they give, and what is damaged."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bitgen.data.bad_records import NOT_FINITE, BadRecord
from bitgen.data.conversations.pairs import PairConversations
from bitgen.data.conversations.records import ConversationReader, Conversations, Turn
from bitgen.data.conversations.writer import writing_conversations
from bitgen.data.record_writer import write_dataset
from bitgen.data.records import DatasetInfo, Record, RecordReader
from bitgen.data.sampler import SampleKey
from bitgen.data.scenes.dataset import SceneReader
from support.data import captions_for, encode, noise

PROMPTS = ["What is it?", "Describe it.", "Say what you see."]


@pytest.fixture
def talks(tmp_path) -> Path:
    """Five conversations; the third is of text alone, the last shows a pair of pictures."""
    with writing_conversations(tmp_path / "talks", "made up") as writer:
        rows = [writer.picture(f"{n}.png", encode(noise(n))) for n in (0, 1, 0)]
        assert rows == [0, 1, 0]
        for number in range(5):
            visuals = {2: [], 4: [[0, 1]]}.get(number, [[number % 2]])
            question = Turn("user", "<image>\nWhat?" if visuals else "What?")
            writer.add(f"talk {number}", visuals, [question, Turn("assistant", "word " * number + "end")])
    return tmp_path / "talks"


def test_a_folder_gives_what_was_written(talks) -> None:
    source: Conversations = ConversationReader(talks)
    assert len(source) == 5
    assert source[SampleKey(4, 7)].visuals == [[encode(noise(0)), encode(noise(1))]]
    assert [source[index].image for index in range(5)] == [0, 1, -1, 1, 0]
    assert source[2].visuals == [] and source[2].answers == source.references(2) == ["word word end"]
    assert source.mean_words() == (1 + 2 + 3 + 4 + 5) / 5
    assert ConversationReader(talks, max_conversations=2).mean_words() == 1.5
    assert source.record_name(1) == f"dataset {talks}, record 1 (talk 1)"
    with pytest.raises(IndexError):
        source[5]


def test_a_worker_gets_the_folder_and_not_the_pictures(talks) -> None:
    reader = ConversationReader(talks, seed=3, max_conversations=4)
    copied = pickle.dumps(reader)
    again = pickle.loads(copied)
    assert len(copied) < 1000 and (len(again), again.seed, again[1]) == (4, 3, reader[1])


def test_many_shards_and_batches(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("bitgen.data.arrow_folder._BATCH_BYTES", 3000)
    monkeypatch.setattr("bitgen.data.arrow_folder._SHARD_BYTES", 10000)
    with writing_conversations(tmp_path / "it", "made up") as writer:
        for number in range(100):
            row = writer.picture("", number.to_bytes(1, "big") * 700)
            writer.add(str(number), [[row]], [Turn("user", "<image>"), Turn("assistant", f"{number} " * 100)])
    reader = ConversationReader(tmp_path / "it")
    assert len(list((tmp_path / "it" / "pictures").glob("*.arrow"))) > 3 < len(list((tmp_path / "it").glob("*.arrow")))
    for number in range(100):
        assert reader[number].visuals == [[bytes([number]) * 700]] and reader[number].id == str(number)
    assert reader.mean_words() == 100 and ConversationReader(tmp_path / "it", max_conversations=37).mean_words() == 100


def change(folder: Path, **fields: object) -> None:
    path = folder / "bitgen_dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_folders_of_another_kind_are_refused(talks, image_folder, tmp_path) -> None:
    with pytest.raises(ValueError, match="holds conversations, and images with captions or stored features with"):
        RecordReader(talks)
    with pytest.raises(ValueError, match="images with captions, and conversations are needed here: make it with"):
        ConversationReader(image_folder)
    with pytest.raises(ValueError, match="does not exist: make it with `python data_prep/conversations.py"):
        ConversationReader(tmp_path / "none")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_conversations": 6}, "holds 5 rows but .* declares 6"),
        ({"num_pictures": 1}, "holds 2 rows but .* declares 1"),
        ({"num_text_only": "one"}, "its 'num_text_only' is a text where a whole number should be"),
        ({"kind": "talks"}, "kind is 'talks'; it must be 'conversations'"),
        ({"more": 1}, "unknown fields: more"),
        ({"format_version": 2}, "has format_version 2"),
    ],
)
def test_a_damaged_sidecar_is_named(talks, fields, message: str) -> None:
    change(talks, **fields)
    with pytest.raises(ValueError, match=message) as caught:
        ConversationReader(talks)
    assert "data_prep/conversations.py" in str(caught.value)


def test_damaged_tables_are_named(talks, tmp_path) -> None:
    (file,) = (talks / "pictures").glob("*.arrow")
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 3])
    with pytest.raises(ValueError, match="pictures is damaged"):
        ConversationReader(talks)
    file.write_bytes(content)
    for number, (visuals, turns) in enumerate(
        [([[2]], ["user", "assistant"]), ([[-1]], ["user", "assistant"]), ([[0]], ["user", "nobody"]), ([[0]], [])]
    ):
        with writing_conversations(tmp_path / str(number), "made up") as writer:
            writer.picture("a", b"a")
            rows = [turn.replace("nobody", "user") for turn in turns] or ["user"]
            writer.add("x", visuals, [Turn(role, "<image>") for role in rows])
            writer._conversations._columns[2][-1] = turns
        with pytest.raises(ValueError, match="pictures that it does not have|damaged turns"):
            ConversationReader(tmp_path / str(number))


# ---- images with captions, features, scenes ----


def test_every_caption_answers_a_prompt(image_folder) -> None:
    source: Conversations = PairConversations(RecordReader(image_folder), PROMPTS)
    assert len(source) == 19 and source.feature_shape is None and source.why_uncached is None
    captions = [(image, caption) for image in range(10) for caption in captions_for(image)]
    for index, (image, caption) in enumerate(captions):
        talk = source[index]
        assert talk.visuals == [[encode(noise(image))]] and (talk.id, talk.image) == (f"{image}.png", image)
        assert talk.turns[0].role == "user" and talk.turns[0].text.removeprefix("<image>\n") in PROMPTS
        assert talk.turns[1:] == [Turn("assistant", caption)]
        assert source.references(index) == captions_for(image)
        assert source.record_name(index) == f"dataset {image_folder}, record {image} ({image}.png)"
    assert source.mean_words() == sum(len(caption.split()) for _, caption in captions) / 19


def test_what_is_drawn_is_a_function_of_seed_epoch_and_index(image_folder) -> None:
    reader = RecordReader(image_folder)
    source = PairConversations(reader, PROMPTS, seed=1, caption_sampling="one", max_images=9)
    assert len(source) == 9
    drawn = {
        key: source[SampleKey(*key)].turns for key in [(index, epoch) for index in range(9) for epoch in range(60)]
    }
    again = PairConversations(reader, PROMPTS, seed=1, caption_sampling="one")
    other = PairConversations(reader, PROMPTS, seed=2, caption_sampling="one")
    assert all(again[SampleKey(*key)].turns == turns for key, turns in drawn.items())
    assert any(other[SampleKey(*key)].turns != turns for key, turns in drawn.items())
    prompts = Counter(turns[0].text for turns in drawn.values())
    assert len(prompts) == 3 and min(prompts.values()) > 540 / 3 * 0.8  # 9 x 60 draws; six deviations are 66
    for index in range(9):
        found = {drawn[index, epoch][1].text for epoch in range(60)}
        assert found == set(captions_for(index)) == set(source.references(index))


def test_stored_features(feature_folder, tmp_path) -> None:
    source = PairConversations(RecordReader(feature_folder), PROMPTS)
    assert source.feature_shape == (4, 3) and source.why_uncached is not None
    rows = np.load(tmp_path / "rows.npy")
    ((found,),) = source[3].visuals
    assert isinstance(found, np.ndarray) and found.dtype == np.float32
    np.testing.assert_array_equal(found, (rows[2].astype(np.float32) - 7) * 0.5)


def test_features_that_are_not_finite_are_a_bad_record(tmp_path) -> None:
    info = DatasetInfo("features", "made up", feature_shape=(1, 2), feature_dtype="float32")
    payload = np.array([np.nan, 1], dtype="<f4").tobytes()
    write_dataset(tmp_path / "it", [Record("a", payload, ["x"])], info)
    with pytest.raises(BadRecord, match=r"record 0 \(a\) has NaN") as caught:
        PairConversations(RecordReader(tmp_path / "it"), PROMPTS)[0]
    assert caught.value.reason == NOT_FINITE


def test_scenes() -> None:
    source = PairConversations(SceneReader("train", 4, 0), PROMPTS, caption_sampling="one", picture_size=24)
    ((picture,),) = source[SampleKey(1, 0)].visuals
    assert isinstance(picture, Image.Image) and picture.size == (24, 24)
    ((same,),), ((later,),) = source[SampleKey(1, 0)].visuals, source[SampleKey(1, 1)].visuals
    assert np.array_equal(picture, same) and not np.array_equal(picture, later)  # type: ignore[arg-type]
    assert source[1].answers[0] in source.references(1) and len(source.references(1)) == 3
    held_out = PairConversations(SceneReader("val", 4, 0), PROMPTS, caption_sampling="one", picture_size=24)
    assert np.array_equal(held_out[SampleKey(1, 0)].visuals[0][0], held_out[SampleKey(1, 1)].visuals[0][0])


@pytest.mark.parametrize("prompts", [[], [" "], ["Look at <image>."]])
def test_prompts_that_cannot_be_used(image_folder, prompts: list[str]) -> None:
    with pytest.raises(ValueError, match="prompt"):
        PairConversations(RecordReader(image_folder), prompts)
