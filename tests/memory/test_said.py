"""What a memory says of texts and images that it cannot take as they are, in a program and on the command line."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

import pytest

from bitgen.commands import memory as command
from bitgen.guards.regular_files import MOST_BYTES
from bitgen.memory import EpisodicMemory
from support import irregular_files
from support.data import picture
from support.memories import pairs
from support.runs import written_run

LONG = "the cat sat on the mat and the dog ran over the hill and " * 3
HOSTILE = "Rex\n2\tforged\x1b[2J\u202ego\x85\x00"


@pytest.fixture
def taught(memory) -> EpisodicMemory:
    memory.write([picture(0), picture(1)], ["the cat", "a red dog"])
    return memory


@pytest.fixture
def on_command_line(tmp_path, capsys):
    """``on_command_line(arguments...)``: what it prints, and what it says."""
    picture(0).save(tmp_path / "photo.png")

    def call(*arguments: object, status: int = 0) -> tuple[str, str]:
        flags = ["--model", written_run(), "--memory", tmp_path / "m", *arguments]
        if status:
            with pytest.raises(SystemExit) as stopped:
                command.main([str(flag) for flag in flags])
            assert stopped.value.code == status
        else:
            command.main([str(flag) for flag in flags])
        return tuple(capsys.readouterr())

    return call


# ---------------------------------------------------------------- texts longer than the context

WAYS: dict[str, Callable[[EpisodicMemory], object]] = {
    "write": lambda memory: memory.write([picture(5)], [f"{LONG}end"]),
    "edit": lambda memory: memory.edit("1", f"{LONG}end"),
    "recall": lambda memory: memory.recall(text=f"{LONG}end"),
    "recall_many": lambda memory: memory.recall_many(texts=["the cat", f"{LONG}end"]),
    "tokens": lambda memory: memory.encoder.tokens([f"{LONG}end"]),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_is_cut_is_said(taught, caplog, way) -> None:
    with caplog.at_level(logging.WARNING):
        taught.recall(text="the cat")
        assert not caplog.records
        WAYS[way](taught)
    (record,) = caplog.records
    said, processor = record.getMessage(), taught.encoder.processor
    ids = processor.encode([f"{LONG}end"], 10_000)[0]
    read = processor.tokenizer.decode(ids[1 : processor.max_length - 1])
    assert f"it has {len(ids) - 2} tokens and the model reads {processor.max_length - 2}" in said
    assert f"as far as '...{read[-40:]}'" in said and LONG.startswith(read)


def test_of_many_texts_that_are_cut_one_is_shown(taught, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        taught.encoder.texts([LONG, "the cat", f"{LONG}more"])
    (record,) = caplog.records
    assert "2 of 3 texts are longer than the model reads" in record.getMessage()


def test_a_text_that_is_cut_has_the_tokens_that_training_gives_it(taught) -> None:
    processor = taught.encoder.processor
    for text in ("the cat", LONG):
        ids, mask = taught.encoder.tokens([text])
        expected = processor.texts([text])
        assert ids.tolist() == expected["input_ids"].tolist() and mask.tolist() == expected["attention_mask"].tolist()


@pytest.mark.parametrize("way", ["write", "edit", "write_codes", "write two"])
def test_two_texts_of_one_code_are_named(taught, caplog, way) -> None:
    taught.write([picture(4)], [f"{LONG}paris"], ["paris"])
    taught.write([picture(3)], ["blue mat"], ["rome"])
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        if way == "write":
            taught.write([picture(5)], [f"{LONG}rome"], ["new"])
        elif way == "edit":
            taught.edit("rome", f"{LONG}rome")
        elif way == "write_codes":
            taught.write_codes(taught.codes.pairs[2:3], ["another text"], ["new"])
        else:
            taught.write([picture(5), picture(6)], [f"{LONG}rome", f"{LONG}berlin"], ["new", "berlin"])
    named = "rome" if way == "edit" else "new (and of 1 more)" if way == "write two" else "new"
    said = [record.getMessage() for record in caplog.records if "same code" in record.getMessage()]
    assert len(said) == 1 and f"episode {named} has the same code as the other text of episode paris" in said[0]


def test_one_text_of_several_pictures_is_nothing_to_name(taught, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        taught.write([picture(5), picture(6)], ["the cat", "the cat"])
        taught.write_codes(pairs(8, seed=9), [f"text {number}" for number in range(8)])
    assert "same code" not in caplog.text


def test_the_command_line_says_what_is_cut(on_command_line, tmp_path, caplog) -> None:
    photo = tmp_path / "photo.png"
    for arguments in (("teach", photo, LONG), ("recall", "--text", LONG), ("edit", "1", f"{LONG}end")):
        caplog.clear()
        on_command_line(*arguments)
        assert caplog.text.count("is cut: it has") == 1
    caplog.clear()
    on_command_line("recall", photo)
    assert "is cut" not in caplog.text


# ---------------------------------------------------------------- what a terminal would obey


def test_no_text_or_id_steers_the_terminal(on_command_line, tmp_path) -> None:
    photo, key = tmp_path / "photo.png", "k\x1b[31m\n1"
    outputs = [
        on_command_line("teach", photo, HOSTILE, "--id", key),
        on_command_line("list"),
        on_command_line("recall", photo),
        on_command_line("edit", key, f"{HOSTILE}again"),
        on_command_line("show", "--output", tmp_path / "picture.png"),
        on_command_line("teach", photo, "x", "--id", key, status=2),
        on_command_line("forget", f"{key}2", status=2),
        on_command_line("teach", tmp_path / HOSTILE.replace("\x00", ""), "x", status=2),
        on_command_line("forget", key),
    ]
    for printed, said in outputs:
        for line in (printed + said).split("\n"):
            assert line.replace("\t", "").isprintable(), line
    assert outputs[1][0].split("\n")[1].endswith("Rex\\n2\\tforged\\x1b[2J\\u202ego\\x85\\x00")
    assert len(outputs[1][0].splitlines()) == 2


# ---------------------------------------------------------------- paths of images


@pytest.mark.parametrize("kind", [*irregular_files.KINDS, "NUL", "too large"])
def test_an_image_is_a_regular_file(taught, tmp_path, monkeypatch, kind) -> None:
    path: object = tmp_path / "photo.png"
    if kind == "too large":
        picture(0).save(path)
        os.truncate(path, MOST_BYTES + 1)  # a hole, which takes no space
    else:
        path = "photo\0.png" if kind == "NUL" else irregular_files.make(kind, path)
    for attempt in (lambda: taught.write([path], ["x"]), lambda: taught.recall(image=path)):
        with pytest.raises(ValueError, match="cannot be read: ") as raised:
            attempt()
        assert str(raised.value).isprintable()
    assert len(taught) == 2
