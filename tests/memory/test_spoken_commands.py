"""Captions, answers and the command line with a memory that the model speaks from, on random weights."""

from __future__ import annotations

import functools

import pytest
import torch
from PIL import Image

import bitgen
from bitgen.commands import ask, caption
from bitgen.commands import memory as memory_command
from bitgen.config import ConfigError
from bitgen.guards.printable import printable
from bitgen.memory import EpisodicMemory, spoken
from bitgen.model.causal_lm_bitgen import BitGenForCausalLM
from support.data import picture
from support.runs import written_run
from support.spoken_memories import TEXTS, TOKENS, finds, speaking_run

QUESTION = "is it the cat"


@pytest.fixture
def photos(tmp_path):
    paths = [tmp_path / f"photo {number}.png" for number in range(3)]
    for number, path in enumerate(paths):
        picture(number).save(path)
    return paths


@pytest.fixture
def model() -> bitgen.Model:
    return bitgen.load(speaking_run(), device="cpu")


@pytest.fixture
def taught(model) -> EpisodicMemory:
    memory = model.memory()
    memory.write([picture(0), picture(1)], TEXTS[:2])
    memory.tell(TEXTS[2:4])
    return memory


@pytest.fixture
def command(tmp_path, capsys):
    """``command(main, arguments...)``: the lines that a command prints with the model that speaks."""

    def call(main, *arguments, model=None):
        main([str(argument) for argument in ("--model", model or speaking_run(), *arguments)])
        return capsys.readouterr().out.splitlines()

    return call


@pytest.fixture
def refused(capsys):
    def call(main, *arguments, model=None):
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in ("--model", model or speaking_run(), *arguments)])
        assert stopped.value.code == 2
        said = " ".join(capsys.readouterr().err.split())
        assert said.count("error: ") == 1
        return said

    return call


# ---------------------------------------------------------------- in a program


def logits_of(monkeypatch, call) -> tuple[object, list[torch.Tensor], set[str]]:
    """What a call gives, the logits of each step on its way, and the names of what the network was given."""
    steps, names, forward = [], set(), BitGenForCausalLM.forward

    @functools.wraps(forward)  # generate looks at its signature
    def listening(self, *arguments, **options):
        output = forward(self, *arguments, **options)
        steps.append(output.logits.clone())
        names.update(name for name, value in options.items() if value is not None)
        return output

    with monkeypatch.context() as patch:
        patch.setattr(BitGenForCausalLM, "forward", listening)
        return call(), steps, names


@pytest.mark.parametrize("way", ["caption", "greedy caption", "prompt", "answer", "answer about a picture"])
def test_an_empty_memory_and_unknown_cues_change_nothing_to_the_last_bit(model, taught, monkeypatch, way) -> None:
    ways = {
        "caption": lambda memory: model.caption(picture(0), memory=memory, max_new_tokens=6),
        "greedy caption": lambda memory: model.caption(picture(0), num_beams=1, memory=memory, max_new_tokens=6),
        "prompt": lambda memory: model.caption(picture(0), "the cat", memory=memory, max_new_tokens=6),
        "answer": lambda memory: model.answer(QUESTION, memory=memory, max_new_tokens=6),
        "answer about a picture": lambda memory: model.answer(QUESTION, picture(0), memory, max_new_tokens=6),
    }
    said, steps, names = logits_of(monkeypatch, lambda: ways[way](None))
    assert len(steps) > 1 and "recalled" not in names
    finds(monkeypatch, everything=False)
    for memory in (model.memory(), taught):
        other, others, names = logits_of(monkeypatch, lambda memory=memory: ways[way](memory))
        assert other == said and len(others) == len(steps) and "recalled" not in names
        assert all(torch.equal(*pair) for pair in zip(others, steps, strict=True))
    finds(monkeypatch, everything=True)
    _, others, names = logits_of(monkeypatch, lambda: ways[way](taught))
    assert "recalled" in names and not torch.equal(others[0], steps[0])


def test_a_question_about_a_picture_is_answered_by_the_one_that_recalls(model, taught, monkeypatch) -> None:
    finds(monkeypatch, everything=True)
    alone = model.answer(QUESTION, memory=taught, max_new_tokens=6)
    seen = model.answer(QUESTION, picture(0), taught, max_new_tokens=6)
    assert seen != alone
    caption = model.caption(picture(0), QUESTION, memory=taught, max_new_tokens=6)
    monkeypatch.setattr(spoken, "has_names", lambda asked, least: torch.ones(1, dtype=torch.bool))
    assert model.answer(QUESTION, picture(0), taught, max_new_tokens=6) == alone
    assert model.caption(picture(0), QUESTION, memory=taught, max_new_tokens=6) == caption  # a prompt asks nothing


def test_forgetting_brings_back_what_was_said_before(model, monkeypatch) -> None:
    finds(monkeypatch, everything=True)
    memory = model.memory()
    plain = model.caption(picture(0), max_new_tokens=6), model.answer(QUESTION, max_new_tokens=6)
    ids = [*memory.write([picture(0)], TEXTS[:1]), *memory.tell(TEXTS[1:2])]

    def said():
        caption = model.caption(picture(0), memory=memory, max_new_tokens=6)
        return caption, model.answer(QUESTION, memory=memory, max_new_tokens=6)

    assert said() != plain
    for key in ids:
        memory.forget(key)
    assert said() == plain


def test_a_memory_of_another_model_or_for_a_mute_one_is_refused(model, taught) -> None:
    other = bitgen.load(speaking_run(), device="cpu")
    for attempt in (lambda: other.caption(picture(0), memory=taught), lambda: other.answer(QUESTION, memory=taught)):
        with pytest.raises(ValueError, match="of another model"):
            attempt()
    silent = bitgen.load(written_run(), device="cpu")
    for attempt in (
        lambda: silent.answer(QUESTION),
        lambda: silent.caption(picture(0), memory=silent.memory()),
    ):
        with pytest.raises(ValueError, match="configs/memory_scenes.yaml"):
            attempt()
    with pytest.raises(ValueError, match="empty"):
        model.answer(" ")
    with pytest.raises(ValueError, match="nothing can follow"):
        model.answer("the cat sat on the mat and " * 9)


# ---------------------------------------------------------------- src/memory.py


def test_a_memorys_life_with_sentences(command, photos, tmp_path, monkeypatch, capsys) -> None:
    finds(monkeypatch, everything=True)
    run = lambda *arguments: command(memory_command.main, "--memory", tmp_path / "m", *arguments)  # noqa: E731
    assert run("teach", photos[0], "the cat sat") == ["1\tthe cat sat"]
    assert run("teach", "--text", "a red dog") == ["2\ta red dog"]
    assert run("teach", "--text=two hill runs", "--id", "hill") == ["hill\ttwo hill runs"]
    assert run("teach", photos[1], "--text", "blue mat") == ["3\tblue mat"]
    assert run("teach", photos[2], "--id", "x", "it is") == ["x\tit is"]
    model = bitgen.load(speaking_run(), device="cpu")

    says, *recalled = run("recall", photos[0])
    loaded = model.memory(tmp_path / "m")
    assert says == f"says\t{printable(model.caption(photos[0], memory=loaded))}"
    assert model.caption(photos[0], memory=loaded) != model.caption(photos[0])
    facts = loaded.recalled(image=photos[0]).facts
    assert facts and recalled[: len(facts)] == [
        f"recalled\t{sure:.0%}\t{episode.id}\t{episode.text}" for episode, sure in facts
    ]
    header, first, *_ = recalled[len(facts) :]
    assert header == "distance\tid\ttext" and first == "0.00\t1\tthe cat sat"

    says, fact, header, *rows = run("recall", "--text", "two hill runs")
    assert says == f"says\t{printable(model.answer('two hill runs', memory=loaded))}"
    assert fact.split("\t")[0] == "recalled" and header.startswith("distance") and len(rows) == 3
    assert [row.split("\t")[0] for row in run("list")[1:]] == ["1", "2", "hill", "3", "x"]
    assert run("edit", "hill", "it is two hill") == ["hill\tit is two hill"]
    assert run("forget", "2") == ["2\tforgotten"]
    run("show", "--output", tmp_path / "memory.png")
    with Image.open(tmp_path / "memory.png") as drawn:
        assert drawn.format == "PNG"

    finds(monkeypatch, everything=False)
    says, nothing, header, *_ = run("recall", photos[0])
    assert says == f"says\t{printable(model.caption(photos[0]))}" and header.startswith("distance")
    assert nothing.split("\t")[0] == "nothing like this was taught" and nothing.endswith("%")


def test_a_model_that_does_not_speak_prints_what_it_did_and_takes_no_sentence(refused, command, photos, tmp_path):
    flags = ("--memory", tmp_path / "m")
    command(memory_command.main, *flags, "teach", photos[0], "the cat", model=written_run())
    rows = command(memory_command.main, *flags, "recall", photos[0], model=written_run())
    assert rows[0] == "distance\tid\ttext" and len(rows) == 2
    before = (tmp_path / "m").read_bytes()
    said = refused(memory_command.main, *flags, "teach", "--text", "a red dog", model=written_run())
    assert "configs/memory_scenes.yaml" in said and (tmp_path / "m").read_bytes() == before


def test_what_is_taught_is_given_once_and_whole(refused, photos, tmp_path, capsys) -> None:
    for arguments, message in (
        ((photos[0],), "TEXT"),
        ((photos[0], "the cat", "--text", "the dog"), "give one of them"),
        (("--text", " "), "empty"),
        (("--text", "the cat", "--id", " "), "id"),
    ):
        assert message in refused(memory_command.main, "--memory", tmp_path / "m", "teach", *arguments)
    assert not (tmp_path / "m").exists()


# ---------------------------------------------------------------- src/caption.py and src/ask.py


def test_captions_are_said_with_the_memory_of_a_file(command, model, taught, photos, tmp_path, monkeypatch) -> None:
    finds(monkeypatch, everything=True)
    taught.save(tmp_path / "m")
    flags = (*photos[:2], "--max_new_tokens", 8)
    plain, said = (
        [f"{path}\t{printable(model.caption(path, max_new_tokens=8, memory=memory))}" for path in photos[:2]]
        for memory in (None, taught)
    )
    assert command(caption.main, *flags) == command(caption.main, *flags, "--memory", "none") == plain != said
    assert command(caption.main, *flags, "--memory", tmp_path / "m") == said


def test_questions_are_answered_from_the_memory_of_a_file(
    command, model, taught, photos, tmp_path, monkeypatch, capsys
) -> None:
    finds(monkeypatch, everything=True)
    taught.save(tmp_path / "m")
    flags = ("--question", QUESTION, "--max_new_tokens", 8)
    remembers = ("--memory", tmp_path / "m")
    plain, alone = (printable(model.answer(QUESTION, memory=memory, max_new_tokens=8)) for memory in (None, taught))
    assert command(ask.main, *flags) == [plain] != [alone] == command(ask.main, *flags, *remembers)
    expected = printable(model.answer(QUESTION, photos[0], taught, max_new_tokens=8))
    assert command(ask.main, photos[0], *flags, *remembers) == [expected] != [alone]
    monkeypatch.setattr(spoken, "has_names", lambda asked, least: torch.ones(1, dtype=torch.bool))
    capsys.readouterr()
    ask.main([*map(str, (photos[0], "--model", speaking_run(), *flags, *remembers))])
    said = capsys.readouterr()
    assert said.out == f"{alone}\n" and "the picture was not used" in said.err


@pytest.mark.parametrize("about", ["a picture", "nothing but words"])
def test_who_asks_for_what_was_never_taught_is_told_so(
    model, taught, photos, tmp_path, monkeypatch, capsys, about
) -> None:
    taught.save(tmp_path / "m")
    flags = [*(photos[:1] if about == "a picture" else []), "--model", speaking_run(), "--question", QUESTION]
    for everything in (True, False):
        finds(monkeypatch, everything=everything)
        capsys.readouterr()
        ask.main([str(flag) for flag in (*flags, "--max_new_tokens", 8, "--memory", tmp_path / "m")])
        said = capsys.readouterr()
        assert ("nothing like this was taught" in said.err) == (not everything) and len(said.out.splitlines()) == 1


def test_without_a_question_each_line_is_one_for_itself(command, model, taught, tmp_path, monkeypatch) -> None:
    lines = iter([QUESTION, "two hill runs", ""])
    monkeypatch.setattr(ask, "_line", lambda: next(lines))
    expected = [printable(model.answer(question, max_new_tokens=8)) for question in (QUESTION, "two hill runs")]
    assert command(ask.main, "--max_new_tokens", 8) == expected


def test_a_file_that_cannot_be_used_is_named(refused, taught, photos, tmp_path) -> None:
    other = bitgen.load(written_run(recall_tokens=TOKENS, recall_dim=6), device="cpu").memory()
    other.save(tmp_path / "other")
    (tmp_path / "cut").write_bytes(b"{}")
    taught.save(tmp_path / "m")
    asks = ("--question", QUESTION)
    for main, arguments in ((caption.main, (photos[0],)), (ask.main, asks)):
        assert "there is no such memory file" in refused(main, *arguments, "--memory", tmp_path / "nowhere")
        assert "is damaged" in refused(main, *arguments, "--memory", tmp_path / "cut")
        assert "another model" in refused(main, *arguments, "--memory", tmp_path / "other")
    said = refused(caption.main, photos[0], "--memory", tmp_path / "m", model=written_run())
    assert "configs/memory_scenes.yaml" in said and str(tmp_path / "m") in said


def test_what_a_model_that_speaks_cannot_be_asked_is_said(refused, photos, tmp_path) -> None:
    asks = ("--question", QUESTION)
    assert "2 files" in refused(ask.main, *photos[:2], *asks)
    assert "--temperature" in refused(ask.main, *asks, "--temperature", 0.5)
    assert "none.png cannot be read" in refused(ask.main, tmp_path / "none.png", *asks)
    assert "empty" in refused(ask.main, "--question", " ")
    assert "nothing can follow" in refused(ask.main, "--question", "the cat sat on the mat and " * 9)
    assert "this model answers no questions" in refused(ask.main, *asks, model=written_run())
    with pytest.raises(ConfigError, match="does not speak from a memory"):
        ask.refuse_memory("pets.memory")
