"""Folders of questions: what was written comes back, and what is damaged, foreign or empty is named."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from bitgen.data.conversations.records import ConversationReader, Turn
from bitgen.data.conversations.writer import writing_conversations
from bitgen.data.questions.boxes import Box
from bitgen.data.questions.records import Question, QuestionFolder, QuestionInfo
from bitgen.data.questions.writer import writing_questions
from support.data import encode, noise

BOXES = (Box(0.1, 0.2, 0.3, 1.0), Box(0, 0, 1 / 3, 0.5))
ASKED = [
    Question("one", 0, "what is it?", ("a cat", "cat")),
    Question("two", 1, "where?", ("here",), "look; here", BOXES, "where", 2, ("a", "b")),
    Question("three", -1, "1 + 1?", ("2",), hops=0),
    Question("four", 0, "half \ud83d", ("x",)),
]


@pytest.fixture
def asked(tmp_path) -> Path:
    """Four questions about two pictures, and one about none."""
    with writing_questions(tmp_path / "asked", "made up") as writer:
        assert [writer.picture(f"{n}.png", encode(noise(n))) for n in (0, 1, 0)] == [0, 1, 0]
        for question in ASKED:
            writer.add(question)
        assert (writer.questions, writer.pictures, writer.text_only) == (4, 2, 1)
    return tmp_path / "asked"


def test_a_folder_gives_what_was_written(asked) -> None:
    folder = QuestionFolder(asked)
    assert len(folder) == 4 and [folder[index] for index in range(3)] == ASKED[:3]
    assert folder[3] == ASKED[3]._replace(question="half \ufffd")
    assert [folder.picture(row) for row in (0, 1)] == [encode(noise(0)), encode(noise(1))]
    assert folder.picture_name(1) == "1.png"
    assert folder.record_name(1) == f"dataset {asked}, record 1 (two)"
    assert folder.info == QuestionInfo("made up", 4, 2)
    for index in (-1, 4):
        with pytest.raises(IndexError):
            folder[index]


def test_a_worker_gets_the_folder_and_not_the_pictures(asked) -> None:
    folder = QuestionFolder(asked)
    copied = pickle.dumps(folder)
    again = pickle.loads(copied)
    assert len(copied) < 1000 and again[1] == folder[1] and again.fingerprint == folder.fingerprint


def test_many_shards_and_batches(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("bitgen.data.arrow_folder._BATCH_BYTES", 3000)
    monkeypatch.setattr("bitgen.data.arrow_folder._SHARD_BYTES", 10000)
    with writing_questions(tmp_path / "it", "made up") as writer:
        for number in range(100):
            row = writer.picture("", number.to_bytes(1, "big") * 700)
            boxes = (Box(0, 0, (number + 1) / 100, 1),) * (number % 3)
            writer.add(Question(str(number), row, "?", (f"{number}",), "word " * 100, boxes))
    folder = QuestionFolder(tmp_path / "it")
    assert len(list((tmp_path / "it" / "pictures").glob("*.arrow"))) > 3 < len(list((tmp_path / "it").glob("*.arrow")))
    for number in range(100):
        assert folder.picture(folder[number].picture) == bytes([number]) * 700
        assert folder[number].boxes == (Box(0, 0, (number + 1) / 100, 1),) * (number % 3)


def test_it_is_written_whole_or_not_at_all(asked, tmp_path) -> None:
    with pytest.raises(RuntimeError), writing_questions(tmp_path / "new", "made up") as writer:
        writer.add(ASKED[2])
        raise RuntimeError
    with (
        pytest.raises(ValueError, match="no usable question for .*new: nothing was written"),
        writing_questions(tmp_path / "new", ""),
    ):
        pass
    with (
        pytest.raises(ValueError, match="is empty: left must be less than right"),
        writing_questions(tmp_path / "new", "") as writer,
    ):
        writer.add(ASKED[2]._replace(boxes=(Box(0.5, 0, 0.5, 1),)))
    assert [path.name for path in tmp_path.iterdir()] == ["asked"]
    with pytest.raises(ValueError, match="holds a dataset already"), writing_questions(asked, "again"):
        pass
    with writing_questions(asked, "again", overwrite=True) as writer:
        writer.add(ASKED[2])
    assert len(QuestionFolder(asked)) == 1


def change(folder: Path, **fields: object) -> None:
    path = folder / "bitgen_dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_questions": 6}, "holds 4 rows but .* declares 6"),
        ({"num_pictures": 1}, "holds 2 rows but .* declares 1"),
        ({"num_pictures": "one"}, "its 'num_pictures' is a text where a whole number should be"),
        ({"kind": "asked"}, "kind is 'asked'; it must be 'questions'"),
        ({"kind": 3}, "its 'kind' is a whole number where a text should be"),
        ({"more": 1}, "unknown fields: more"),
        ({"format_version": 2}, "has format_version 2"),
    ],
)
def test_a_damaged_sidecar_is_named(asked, fields, message: str) -> None:
    change(asked, **fields)
    with pytest.raises(ValueError, match=message) as caught:
        QuestionFolder(asked)
    assert "data_prep/questions.py" in str(caught.value)


def test_folders_of_another_kind_are_refused(asked, image_folder, tmp_path) -> None:
    with writing_conversations(tmp_path / "talks", "made up") as writer:
        writer.add("a", [], [Turn("user", "hi"), Turn("assistant", "ho")])
    with pytest.raises(ValueError, match="holds conversations, and questions are needed here: make it with `python"):
        QuestionFolder(tmp_path / "talks")
    with pytest.raises(ValueError, match="holds images with captions, and questions are needed here"):
        QuestionFolder(image_folder)
    with pytest.raises(ValueError, match="does not exist: make it with `python data_prep/questions.py"):
        QuestionFolder(tmp_path / "none")
    with pytest.raises(ValueError, match="data_prep/conversations.py"):
        ConversationReader(asked)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="is not a BitGen dataset"):
        QuestionFolder(tmp_path / "empty")


def test_damaged_tables_are_named(asked, tmp_path) -> None:
    (file,) = (asked / "pictures").glob("*.arrow")
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 3])
    with pytest.raises(ValueError, match="pictures is damaged"):
        QuestionFolder(asked)
    file.write_bytes(content)
    (asked / "state.json").write_text("{")
    with pytest.raises(ValueError, match="asked is damaged"):
        QuestionFolder(asked)


NAN = float("nan")


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("picture", 1, "names pictures that it does not have"),
        ("picture", -2, "names pictures that it does not have"),
        ("picture", None, "names pictures that it does not have"),
        ("answers", [], "has questions without an answer"),
        ("answers", None, "has questions without an answer"),
        ("boxes", [0.0, 0.0, 1.0], "has damaged boxes"),
        ("boxes", [0.0, 0.0, 1.0, None], "has damaged boxes"),
        ("boxes", [0.0, 0.0, 1.0, NAN], "has damaged boxes"),
        ("boxes", [0.0, 0.0, 1.0, 1.5], "has damaged boxes"),
        ("boxes", [0.5, 0.0, 0.5, 1.0], "has damaged boxes"),
        ("boxes", [0.0, 0.0, 1.0, 1.0] * 2, None),
        ("boxes", None, None),
    ],
)
def test_damaged_rows_are_named(tmp_path, column, value, message) -> None:
    with writing_questions(tmp_path / "it", "made up") as writer:
        writer.picture("a", b"a")
        writer.add(ASKED[0])
        writer._questions._columns[Question._fields.index(column)][-1] = value
    if message is None:
        assert len(QuestionFolder(tmp_path / "it")[0].boxes) == (2 if value else 0)
    else:
        with pytest.raises(ValueError, match=message):
            QuestionFolder(tmp_path / "it")
