"""Conversations: every layout, what is counted, and what a folder of them holds."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bitgen.data.conversations.records import ConversationReader, Turn
from bitgen.model.image_decoding import decode_image
from support.data import encode, jpeg, noise
from support.media import dicom, video

BRIEF = {"from": "system", "value": "Be short."}
ASKED = Turn("user", "<image>\nWhat is it?")
TOLD = Turn("assistant", "A cat.")


def llava(image: object = "a.png", *texts: str, **more: object) -> dict:
    """An entry whose turns are ``texts``, human first."""
    texts = texts or ("<image>\nWhat is it?", "A cat.")
    turns = [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(texts)]
    return {"id": "1", **({"image": image} if image is not None else {}), "conversations": turns, **more}


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three pictures, the third the same as the first."""
    images = tmp_path / "images"
    (images / "below").mkdir(parents=True)
    (images / "a.png").write_bytes(encode(noise(0)))
    (images / "below" / "b.jpg").write_bytes(jpeg(1))
    (images / "copy.png").write_bytes(encode(noise(0)))
    return images


@pytest.fixture
def prepare(script, folder, tmp_path) -> Callable[..., ConversationReader]:
    """Prepares entries; ``lines``: as JSON lines."""

    def prepared(entries: object, *flags: str, lines: bool = False, images: bool = True) -> ConversationReader:
        path = tmp_path / ("it.jsonl" if lines else "it.json")
        path.write_text("\n".join(map(json.dumps, entries)) if lines else json.dumps(entries))  # type: ignore[call-overload]
        given = ["--conversations", str(path), "--output", str(tmp_path / "out"), *flags]
        script("conversations")([*given, *(["--images", str(folder)] if images else [])])
        return ConversationReader(tmp_path / "out")

    return prepared


def allow(count: int, of: int) -> tuple[str, str]:
    return "--max_failed_fraction", str(count / of)


@pytest.mark.parametrize("lines", [False, True])
def test_llava(prepare, folder, lines: bool) -> None:
    reader = prepare(
        [
            llava(),
            llava(["below/b.jpg"], "<image> first?", "one", "and now?", "two\nlines", id=7),
            llava(None, "hello", "hi"),
            {"conversations": [BRIEF, *llava()["conversations"]], "image": "copy.png"},
        ],
        lines=lines,
    )
    first, several, text, system = (reader[index] for index in range(4))
    assert (first.id, first.turns) == ("1", [ASKED, TOLD])
    assert first.visuals == [[(folder / "a.png").read_bytes()]] and first.image == 0
    assert several.id == "7" and several.visuals == [[(folder / "below" / "b.jpg").read_bytes()]]
    assert [turn.text for turn in several.turns] == ["<image> first?", "one", "and now?", "two\nlines"]
    assert (text.visuals, text.image, text.turns) == ([], -1, [Turn("user", "hello"), Turn("assistant", "hi")])
    assert system.turns == [Turn("system", "Be short."), ASKED, TOLD]
    assert system.id == ("it.jsonl line 4" if lines else "it.json[3]")
    # Stored once: a.png and its copy have the same bytes.
    assert (reader.info.num_pictures, system.image, reader.picture_name(0)) == (2, 0, "a.png")
    assert reader.describe() == "4 conversations, 1 of text alone, 2 pictures"


def test_several_images(prepare, folder) -> None:
    a, b = (folder / "a.png").read_bytes(), (folder / "below" / "b.jpg").read_bytes()
    reader = prepare(
        [
            llava(["a.png", "below/b.jpg"], "<image>\nWhat has changed?", "Nothing."),
            llava(["a.png", "below/b.jpg"], "<image> and <image>?", "Two.", "Again <x>?", "Yes."),
            llava(["a.png", "below/b.jpg", "a.png"], "<image>?", "1", "<image><image>", "2"),
        ]
    )
    assert [reader[index].visuals for index in range(3)] == [[[a, b]], [[a], [b]], [[a], [b], [a]]]
    assert reader.info.num_pictures == 2


def test_openai(prepare, folder) -> None:
    a, b = (folder / "a.png").read_bytes(), (folder / "below" / "b.jpg").read_bytes()
    image = {"type": "image", "image": "a.png"}
    question = {"type": "text", "text": "What is it?"}
    answer = {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]}
    url = {"type": "image_url", "image_url": {"url": "below/b.jpg"}}
    reader = prepare(
        [
            {"messages": [{"role": "user", "content": [image, question]}, answer]},
            {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]},
            {
                "messages": [{"role": "user", "content": [{"type": "image"}, question, url]}, answer],
                "images": ["a.png"],
                "id": "x",
            },
            {"messages": [{"role": "user", "content": ASKED.text}, answer], "images": ["a.png", "below/b.jpg"]},
        ]
    )
    assert reader[0].turns == reader[3].turns == [ASKED, TOLD] and reader[0].visuals == [[a]]
    assert reader[1].turns == [Turn("user", "hello"), Turn("assistant", "hi")]
    assert (reader[2].id, reader[2].visuals) == ("x", [[a], [b]])
    assert reader[2].turns[0].text == "<image>\nWhat is it?\n<image>"
    assert reader[3].visuals == [[a, b]]


def test_questions(prepare) -> None:
    reader = prepare(
        [
            {"question_id": 5, "image": ["a.png", "below/b.jpg"], "text": "What is it?", "reference": "A cat."},
            {"question_id": 6, "image": "a.png", "text": "Where is <image>?", "reference": ["Here.", "There."]},
        ],
        lines=True,
    )
    assert (reader[0].id, reader[0].turns, len(reader[0].visuals[0])) == ("5", [ASKED, TOLD], 2)
    assert reader.references(0) == ["A cat."]
    assert reader[1].turns == [Turn("user", "Where is <image>?"), Turn("assistant", "Here.")]
    assert reader.references(1) == ["Here.", "There."]


def test_medical_pictures(prepare, folder) -> None:
    pytest.importorskip("pydicom")
    values = np.array([[0, 100], [200, 1000]], dtype=np.uint16)
    (folder / "x.dcm").write_bytes(dicom(values, "MONOCHROME1"))
    (folder / "y.dcm").write_bytes(dicom(values)[:-3])
    reader = prepare([llava("x.dcm"), llava("y.dcm")], *allow(1, 2))
    assert len(reader) == 1
    picture = decode_image(reader[0].visuals[0][0])
    assert picture.shape == (3, 2, 2) and picture[1].tolist() == [[255, 230], [204, 0]]


def test_videos(prepare, folder, caplog) -> None:
    pytest.importorskip("av")
    levels = [10 * number for number in range(23)]
    (folder / "v.mp4").write_bytes(video(levels))
    (folder / "broken.mp4").write_bytes(video(levels)[:-700])
    reader = prepare(
        [
            llava(None, "<video>\nWhat is it?", "A cat.", video="v.mp4"),
            llava(None, "<image>\nWhat is it?", "A cat.", video=["v.mp4"]),
            llava("a.png", "<image> or <video>?", "Both.", video="v.mp4"),
            llava(None, "<video>?", "None.", video="broken.mp4"),
        ],
        "--frames",
        "3",
        *allow(1, 4),
    )
    assert reader[0].turns == [ASKED, TOLD] and reader[0][1:3] == reader[1][1:3]
    found = [float(decode_image(frame).float().mean()) for frame in reader[0].visuals[0]]
    np.testing.assert_allclose(found, [levels[0], levels[11], levels[22]], atol=5)
    assert [len(visual) for visual in reader[2].visuals] == [1, 3]
    assert reader.info.num_pictures == 4
    assert "1 x video that cannot be used: it.json[3] (broken.mp4: it has no stream of pictures" in caplog.text


def test_a_video_without_frames_is_counted_and_named(prepare, folder, caplog) -> None:
    pytest.importorskip("av")
    (folder / "empty.avi").write_bytes(video([], kind="avi"))
    reader = prepare([llava(), llava(None, "<video>?", "None.", video="empty.avi")], *allow(1, 2))
    assert len(reader) == 1
    assert "1 x video that cannot be used: it.json[1] (empty.avi: it has no frame that can be decoded" in caplog.text


def test_an_empty_list_of_images_is_a_text_alone_and_counted_as_such(prepare, caplog) -> None:
    caplog.set_level("INFO")
    reader = prepare([llava(), llava([], "hi", "ho"), {"image": [], "text": "hi", "reference": "ho"}])
    assert [len(reader[index].visuals) for index in range(3)] == [1, 0, 0]
    assert "3 conversations (2 of text alone), 1 pictures" in caplog.text


WRONG = [
    (llava("a.png", "What is it?", "A cat."), "more or fewer <image> in the user's texts than images"),
    (llava("a.png", "<image><image>", "A cat."), "more or fewer <image> in the user's texts than images"),
    (llava([], "<image>?", "A cat."), "more or fewer <image> in the user's texts than images"),
    ({"images": [], **llava(None, "<image>?", "A cat.")}, "more or fewer <image> in the user's texts than images"),
    (llava(None, "<video>?", "A cat.", video=[]), "more or fewer <image> in the user's texts than images"),
    ({"image": [], "text": "<image>?", "reference": "A cat."}, "more or fewer <image> in the user's texts than images"),
    (llava(None, "<image>?", "A cat."), "more or fewer <image> in the user's texts than images"),
    (llava("a.png", "hello", "<image>"), "<image> in a turn that is not the user's"),
    (llava("a.png", "<image>", " \n"), "empty turn"),
    (llava("a.png", "<image>"), "conversation that ends without an answer"),
    ({"conversations": []}, "conversation without turns"),
    ({"conversations": [{"from": "gpt", "value": "hi"}]}, "conversation that the assistant begins"),
    ({"conversations": [{"from": "human", "value": "hi"}] * 2}, "turns that do not alternate between user and"),
    ({"conversations": [{"from": "tool", "value": "hi"}]}, "turn of an unknown side"),
    ({"conversations": [{"from": "human", "value": 3}]}, "turn whose text is not a text"),
    ({"conversations": [{"from": "human", "value": "x" * 1_000_001}]}, "turn of more than 1,000,000 characters"),
    ({"conversations": "hi"}, "`conversations` that is not a list of objects"),
    ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "content of an unknown type"),
    ({"text": "hi", "reference": ""}, "question without a reference that is a text"),
    (llava({"bytes": "x"}), "image that is not the name of a file"),
    (llava("missing.png"), "image that is not in --images"),
    (llava("text.png"), "undecodable image"),
    (llava("../secret.png"), "file name that leaves --images (write it relative to that folder)"),
    (llava("link.png"), "file name that leaves --images (write it relative to that folder)"),
    (llava("/etc/passwd"), "file name that leaves --images (write it relative to that folder)"),
    (llava("x" * 300), "file name that cannot be used"),
    (llava("https://example.org/a.png"), "address in place of a file (download it into the folder of --images"),
    (llava("data:image/png;base64,AAAA"), "address in place of a file (download it into the folder of --images"),
    (llava("pipe"), "unreadable file"),
]


@pytest.mark.parametrize(("entry", "reason"), WRONG, ids=[str(number) for number in range(len(WRONG))])
def test_a_record_that_cannot_be_used_is_counted_and_named(prepare, folder, caplog, entry, reason) -> None:
    caplog.set_level("INFO")
    (folder / "text.png").write_text("no picture")
    (folder.parent / "secret.png").write_bytes(encode(noise(5)))
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    os.mkfifo(folder / "pipe")
    reader = prepare([llava(), entry], *allow(1, 2))
    assert len(reader) == 1 and reader.info.num_pictures == 1
    (line,) = [record.getMessage() for record in caplog.records if record.getMessage().startswith("1 x")]
    assert line.startswith(f"1 x {reason}") and "it.json[1]" in line and line.isprintable()
    assert "1 of 2 conversations could not be used" in caplog.text


def test_too_many_of_them_stop_it(prepare, tmp_path) -> None:
    stopped = r"1 of 2 conversations \(50.0%\) cannot be used[^$]*image that is not in --images: it.json\[1\]"
    with pytest.raises(ValueError, match=stopped):
        prepare([llava(), llava("missing.png")])
    with pytest.raises(ValueError, match="no conversation is left to write"):
        prepare([llava("missing.png")], *allow(1, 1))
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_no_picture_of_a_record_that_is_left_out_is_stored(prepare) -> None:
    reader = prepare([llava(), llava(["below/b.jpg", "missing.png"])], *allow(1, 2))
    assert reader.info.num_pictures == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "holds {}, not a JSON list"),
        ([], "holds no conversation"),
        ([3], r"\[0\] is 3, not an object"),
        ([{"image": "a.png"}], r"it.json\[0\] has neither `conversations`"),
    ],
)
def test_a_file_of_another_kind(prepare, content, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prepare(content)


def test_images_are_asked_for(prepare) -> None:
    with pytest.raises(ValueError, match="name files such as 'a.png': add --images FOLDER"):
        prepare([llava()], images=False)
    assert len(prepare([llava(None, "hello", "hi")], images=False)) == 1


def test_limit_and_broken_unicode(prepare, caplog) -> None:
    reader = prepare([llava(None, "half \ud83d", "hi"), llava("missing.png")], "--limit", "1", images=False)
    assert reader[0].turns[0].text == "half \ufffd"
    assert "1 x text that is no valid Unicode (what is broken became U+FFFD): it.json[0]" in caplog.text
