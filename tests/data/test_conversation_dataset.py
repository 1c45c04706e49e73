"""Conversations as tensors: labels, pictures in reading order, padding, bad records, and the source of batches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bitgen.data.bad_records import BadRecord
from bitgen.data.collate import build_loader
from bitgen.data.conversations.dataset import ConversationDataset, VisualCollator, count_supervised
from bitgen.data.conversations.pairs import PairConversations
from bitgen.data.conversations.records import IMAGE_MARKER, ConversationReader, Turn
from bitgen.data.conversations.writer import writing_conversations
from bitgen.data.loader_source import LoaderSource
from bitgen.data.records import RecordReader
from bitgen.data.sampler import SampleKey
from bitgen.data.scenes.dataset import SceneReader
from bitgen.model.image_decoding import decode_image
from bitgen.stages import Stage
from support.data import encode, noise

IMAGE, END = -200, 9
ROLE_IDS = {"system": 1, "user": 2, "assistant": 3}


def word_ids(text: str) -> list[int]:
    return [10 + len(word) for word in text.split()]


def encode_turns(turns: Sequence[Turn], counts: Sequence[int]) -> tuple[list[int], list[int]]:
    """A role's id, then an id a word; the answers' words and their end are supervised."""
    ids: list[int] = []
    labels: list[int] = []
    left = list(counts)
    for turn in turns:
        own = [ROLE_IDS[turn.role]]
        for number, text in enumerate(turn.text.split(IMAGE_MARKER)):
            own += ([IMAGE] * left.pop(0) if number else []) + word_ids(text)
        told = turn.role == "assistant"
        ids += own + [END]
        labels += [-100, *own[1:], END] if told else [-100] * (len(own) + 1)
    assert not left
    return ids, labels


def tokens(frames: int) -> int:
    if frames > 3:
        raise ValueError(f"an image of {frames} pictures is more than 3")
    return 4 + frames


def picture(source: bytes | Image.Image, name: str) -> torch.Tensor:
    return decode_image(source, name)[:, :8, :8] / 255


def dataset(source: object, **options: object) -> ConversationDataset:
    return ConversationDataset(source, encode_turns, tokens, picture, **{"max_length": 60, **options})  # type: ignore[arg-type]


PICTURES = [encode(noise(number)) for number in range(5)] + [b"no picture"]
TALKS: list[tuple[list[list[int]], list[str]]] = [
    ([[0]], ["<image>\nWhat is it?", "a small cat"]),
    ([], ["hello", "hi there"]),
    ([[1, 2], [3]], ["<image>\nold or new?", "new", "and <image> ?", "both are"]),
    ([[4]], ["see <image>", "x " * 80]),
    ([], ["bye", "bye"]),
]
BAD: list[tuple[list[list[int]], list[str], str]] = [
    ([[5]], ["<image>", "what is it"], "bad.png|image 1, picture 1 cannot be read as an image"),
    ([[0, 1, 2, 3]], ["<image>", "four"], "an image of 4 pictures is more than 3"),
    ([[0], []], ["<image> <image>", "no frame"], "image 2 has no picture, such as a video without frames: give it one"),
    ([[0]], ["no marker", "none"], "has 1 visuals, 0 <image> in what the user says and 0 in other turns"),
    ([], ["hello", "an <image>"], "has 0 visuals, 0 <image> in what the user says and 1 in other turns"),
    ([[0]], ["word " * 70 + "<image>", "late"], "its images, 5 tokens, and the text before them are longer than 60"),
    ([], ["word " * 70, "late"], r"no token of an answer to learn from within the 60 tokens .*: user: word word"),
]


def written(folder: Path, talks: Sequence[tuple]) -> ConversationReader:
    with writing_conversations(folder, "made up") as writer:
        rows = [writer.picture(f"{number}.png", payload) for number, payload in enumerate(PICTURES)]
        for number, (visuals, texts, *_) in enumerate(talks):
            turns = [Turn(("user", "assistant")[place % 2], text) for place, text in enumerate(texts)]
            writer.add(str(number), [[rows[row] for row in visual] for visual in visuals], turns)
    return ConversationReader(folder, seed=1)


@pytest.fixture
def source(tmp_path) -> ConversationReader:
    return written(tmp_path / "talks", TALKS)


def test_a_sample(source) -> None:
    sample = dataset(source)[2]
    image = [IMAGE]
    first = [2, *image * 6, 13, 12, 14, END, 3, 13, END]
    then = [2, 13, *image * 5, 11, END, 3, 14, 13, END]
    assert sample["input_ids"].tolist() == first + then
    assert sample["labels"].tolist() == [-100] * 12 + [13, END] + [-100] * 10 + [14, 13, END]
    expected = torch.stack([picture(PICTURES[row], "") for row in (1, 2, 3)])
    assert torch.equal(sample["pixel_values"], expected) and sample["frames"] == [2, 1]
    assert (sample["index"], sample["image_id"], sample["words"], sample["truncated"]) == (2, 1, 3, False)
    assert "pixel_values" not in dataset(source)[1] and dataset(source)[1]["frames"] == []


def test_truncation_is_counted_and_named(source, caplog) -> None:
    data = dataset(source)
    sample = data[3]
    assert len(sample["input_ids"]) == len(sample["labels"]) == 60 and sample["truncated"]
    assert (
        f"1 of 5 conversations are longer than 60 tokens and lose their end: dataset {source.folder}, record 3 (3)"
        in (caplog.text)
    )


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_batch_of_text_and_images(source, side: str) -> None:
    """Against a loop over the samples; the padding's id is one that words have."""
    data = dataset(source)
    samples = [data[index] for index in (0, 1, 2)]
    batch = VisualCollator(pad_id=END, side=side)(samples)
    longest = max(len(sample["input_ids"]) for sample in samples)
    supervised = 0
    for row, sample in enumerate(samples):
        length = len(sample["input_ids"])
        part = slice(longest - length, longest) if side == "left" else slice(0, length)
        rest = [at for at in range(longest) if not part.start <= at < part.stop]
        assert torch.equal(batch["input_ids"][row, part], sample["input_ids"])
        assert torch.equal(batch["labels"][row, part], sample["labels"])
        assert (batch["attention_mask"][row, part] == 1).all() and (batch["attention_mask"][row, rest] == 0).all()
        assert (batch["input_ids"][row, rest] == END).all() and (batch["labels"][row, rest] == -100).all()
        supervised += sum(label != -100 for label in sample["labels"].tolist())
    assert batch["supervised"].tolist() == [supervised] == [4 + 3 + 5]
    assert torch.equal(batch["pictures"], torch.cat([samples[0]["pixel_values"], samples[2]["pixel_values"]]))
    assert batch["frames"].tolist() == [1, 2, 1]
    # Each visual token of the batch belongs to one visual, in reading order.
    assert int((batch["input_ids"] < 0).sum()) == sum(tokens(count) for count in batch["frames"].tolist())
    assert batch["indices"].tolist() == [0, 1, 2] and batch["image_ids"].tolist() == [0, -1, 1]
    assert batch["words"].tolist() == [3, 2, 3] and batch["truncated"].tolist() == [0, 0, 0]
    assert all(isinstance(value, torch.Tensor) for value in batch.values())


def test_a_batch_of_text_alone(source) -> None:
    data = dataset(source)
    batch = VisualCollator(0)([data[1], data[4]])
    assert "pictures" not in batch and batch["frames"].shape == (0,) and batch["frames"].dtype == torch.int64


def test_the_first_label_is_never_predicted() -> None:
    assert count_supervised(torch.tensor([[5, -100, 6], [-100, 7, 8]])) == 3


@pytest.mark.parametrize("number", range(len(BAD)))
def test_a_bad_record_says_what_is_wrong_and_another_takes_its_place(tmp_path, number: int) -> None:
    *record, message = BAD[number]
    reader = written(tmp_path / "bad", [TALKS[0], record, TALKS[1]])
    with pytest.raises(BadRecord, match=message) as caught:
        dataset(reader)[1]
    assert "record 1 (1)" in str(caught.value) and str(caught.value).isprintable()
    sample = dataset(reader, replace_bad=True)[1]
    assert sample["index"] == 2 and sample["skipped"].message == str(caught.value)
    assert VisualCollator(0)([sample, dataset(reader)[0]])["skipped"] == [sample["skipped"]]


def test_data_of_no_use_is_refused_before_training(tmp_path) -> None:
    with pytest.raises(ValueError, match="none of 1 conversations can be used, the first: .*record 0 .*user: word"):
        dataset(written(tmp_path / "bad", [BAD[-1]]))


def test_stored_features_and_scenes(feature_folder) -> None:
    features = dataset(PairConversations(RecordReader(feature_folder), ["What?"]))
    batch = VisualCollator(0)([features[index] for index in range(3)])
    rows = np.load(feature_folder.parent / "rows.npy")
    expected = (rows[[0, 1, 1]].astype(np.float32) - 7) * 0.5
    np.testing.assert_array_equal(batch["features"].numpy(), expected)
    assert (
        "pictures" not in batch and batch["frames"].tolist() == [1, 1, 1] and batch["image_ids"].tolist() == [0, 1, 1]
    )
    scenes = dataset(PairConversations(SceneReader("train", 4, 0), ["What?"], picture_size=8))
    assert scenes[SampleKey(1, 2)]["pixel_values"].shape == (1, 3, 8, 8)


def test_the_source_of_batches_counts_what_is_supervised(source) -> None:
    data = dataset(source)
    sampler = data.batch_sampler(2)
    batches = LoaderSource(data, sampler, VisualCollator(0), lambda ids, mask: -1, batches_per_step=2)
    stage = Stage("talks", (), steps=2, steps_per_epoch=1)
    batches.start(stage, 0)
    for epoch in range(2):
        for keys, batch in zip(sampler.epoch(epoch), batches.draw(), strict=True):
            samples = [data[key] for key in keys]
            assert batch.indices.tolist() == [key.index for key in keys]
            assert batch.counts.supervised == sum(int((sample["labels"] != -100).sum()) for sample in samples)
            assert batch.counts.words == sum(sample["words"] for sample in samples)
            assert batch.counts.samples == 2 and batch.counts.tokens == batch.inputs["input_ids"].numel()
            assert not {"supervised", "words"} & set(batch.inputs)
    assert batches.words_per_step(1) == 2 * 2 * (3 + 2 + 3 + 80 + 1) / 5


def test_workers_give_what_this_process_gives(source) -> None:
    data, collate = dataset(source), VisualCollator(0)
    keys = [[SampleKey(0, 3), SampleKey(2, 3)], [SampleKey(1, 3), SampleKey(4, 3)]]
    alone, loaded = (list(build_loader(data, keys, workers, collate)) for workers in (0, 1))
    for own, other in zip(alone, loaded, strict=True):
        assert own.keys() == other.keys() and all(torch.equal(own[name], other[name]) for name in own)


@pytest.mark.parametrize("kind", ["folder", "scenes"])
def test_lengths_are_those_of_the_samples_and_no_picture_is_read(kind: str, tmp_path, monkeypatch) -> None:
    if kind == "folder":
        source = written(tmp_path / "talks", [*TALKS, BAD[4][:2]])
        picture_of = "_pictures"
    else:
        source = PairConversations(SceneReader("train", 6, 0), ["Describe it.", "What is there in it?"], 3)
        picture_of = "_picture"
    data = dataset(source)
    expected = []
    for index in range(len(data)):
        try:
            expected.append(len(data[index]["input_ids"]))
        except BadRecord:
            expected.append(0)
    assert len(set(expected)) > 1 and (0 in expected) == (kind == "folder")
    monkeypatch.setattr(source, picture_of, None)
    with pytest.raises(TypeError):
        data[0]
    assert data.lengths() == expected


def test_turns_that_the_template_cannot_write_are_named_with_their_record(source, caplog) -> None:
    def refusing(turns: Sequence[Turn], counts: Sequence[int]) -> tuple[list[int], list[int]]:
        if turns[0].text == "hello":
            raise BadRecord("a conversation cannot be used", "unwritten")
        return encode_turns(turns, counts)

    data = ConversationDataset(source, refusing, tokens, picture, 60)
    with pytest.raises(BadRecord, match=r"dataset .*, record 1 \(1\): a conversation cannot be used") as error:
        data[1]
    assert error.value.reason == "unwritten"
    assert "1 of 5 conversations cannot be used, the first: dataset" in caplog.text
