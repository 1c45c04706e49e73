"""The entries `src/ask.py` and `src/caption.py` on vision-language models of parts."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import bitgen
from bitgen.commands import ask, caption
from bitgen.data.conversations.chat import IMAGE_ID, encode_prompt
from bitgen.evaluation.answers import Decoding
from bitgen.evaluation.talking import Talk, read_visuals
from bitgen.export.vlm_folder import write_vlm_folder
from bitgen.guards.printable import printable
from bitgen.trained_vlm import open_vlm
from bitgen.vlm.description import SpeechSource
from bitgen.vlm.language import generate
from bitgen.vlm.vision import image_processor
from support.media import dicom, video
from support.tiny_vlms import language_folder, tiny_vlm, tower_folder

QUESTION = "What is it?"
TAC = dict(connector="tac", layers="all")


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    """Writes a model's folder, once for each kind."""
    found, folder = {}, tmp_path_factory.mktemp("ask")
    tower, language = tower_folder(folder / "tower"), language_folder(folder / "lm")

    def written(sees: bool = True, **settings):
        key = repr((sees, settings))
        if key not in found:
            found[key] = folder / f"model{len(found)}"
            found[key].mkdir()
            write_vlm_folder(tiny_vlm(tower if sees else None, language, **settings), found[key], {})
        return found[key]

    return written


@pytest.fixture
def photos(tmp_path):
    paths = []
    for number in range(3):
        paths.append(tmp_path / f"photo {number}.png")
        pixels = np.random.default_rng(number).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(paths[-1])
    return paths


def asked(capsys, *arguments):
    ask.main([str(argument) for argument in arguments])
    return capsys.readouterr().out.splitlines()


def refused(capsys, main, *arguments):
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    assert stopped.value.code == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    return said[0]


def by_hand(trained, messages, pictures, frames, most=12):
    """The answer from the prompt's ids, the pictures put in their place by a loop, and generate."""
    ids = encode_prompt(trained.tokenizer, messages, trained.speech.template, trained.speech.system_prompt)
    embedding, tokens = trained.model.language.get_input_embeddings(), []
    visuals = iter(pictures.split(frames))
    with torch.no_grad():
        for token in ids:
            if int(token) == IMAGE_ID:
                tokens.append(trained.model.connector(trained.model.tower(next(visuals)).unsqueeze(0))[0])
            else:
                tokens.append(embedding(token[None]))
        embeds = torch.cat(tokens)[None]
        written = generate(
            trained.model.language, embeds, torch.ones(embeds.shape[:2]), most, eos_token_id=trained.speech.ends
        )
    return " ".join(trained.tokenizer.decode(written[0], skip_special_tokens=True).split())


def pixels_of(trained, photos):
    return image_processor(trained.model.tower.spec).images([path.read_bytes() for path in photos])


@pytest.mark.parametrize(("settings", "count", "frames"), [({}, 1, [1]), ({}, 2, [1, 1]), (TAC, 1, [1]), (TAC, 2, [2])])
def test_an_answer_is_what_the_model_writes_after_the_prompt_of_training(
    settings, count, frames, export, photos, capsys
):
    folder = export(**settings)
    trained = open_vlm(folder)
    marks = "<image>\n" * len(frames)
    expected = by_hand(
        trained, [{"role": "user", "content": marks + QUESTION}], pixels_of(trained, photos[:count]), frames
    )
    said = asked(capsys, *photos[:count], "--model", folder, "--question", QUESTION, "--max_new_tokens", 12)
    assert said == [printable(expected)] and expected


def test_a_conversation_remembers_what_was_said(export, photos, capsys, monkeypatch):
    trained = open_vlm(export())
    pictures = pixels_of(trained, photos[:1])
    chat, expected = [{"role": "user", "content": f"<image>\n{QUESTION}"}], []
    for question in ("Where is it?", "Why?", None):
        expected.append(by_hand(trained, chat, pictures, [1]))
        chat += [{"role": "assistant", "content": expected[-1]}, {"role": "user", "content": question}]
    for lines in ("What is it?\nWhere is it?\nWhy?\n\nnever asked\n", "What is it?\nWhere is it?\nWhy?"):
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        assert asked(capsys, photos[0], "--model", export(), "--max_new_tokens", 12) == [
            printable(said) for said in expected
        ]
    assert len(set(expected)) == 3


def test_videos_and_medical_pictures_are_read(export, tmp_path, capsys):
    (tmp_path / "clip.mp4").write_bytes(video([10, 60, 110, 160]))
    pixels = np.random.default_rng(0).integers(0, 4096, (40, 40)).astype(np.uint16)
    (tmp_path / "chest.dcm").write_bytes(dicom(pixels))
    trained = open_vlm(export())
    clip, chest = read_visuals(trained, [str(tmp_path / "clip.mp4"), str(tmp_path / "chest.dcm")])
    assert clip.shape == (2, 3, 28, 28) and chest.shape == (1, 3, 28, 28)
    assert clip[1].mean() - clip[0].mean() > 1  # the first frame and the last one
    answer = Talk(trained, [clip, chest], Decoding(max_new_tokens=12)).ask(QUESTION)
    given = torch.cat([clip, chest])
    chat = [{"role": "user", "content": f"<image>\n<image>\n{QUESTION}"}]
    assert answer == by_hand(trained, chat, given, [2, 1])


def test_a_search_and_a_temperature_change_what_is_written(export, photos):
    trained = open_vlm(export())
    visuals = read_visuals(trained, [str(photos[0])])
    greedy, beams = (Talk(trained, visuals, Decoding(n, 12)).ask(QUESTION) for n in (1, 4))
    torch.manual_seed(0)
    drawn = {Talk(trained, visuals, Decoding(1, 12, temperature=5.0)).ask(QUESTION) for _ in range(4)}
    assert greedy != beams and len(drawn) > 1


def test_captions_of_such_a_model_answer_its_own_prompt(export, photos, capsys):
    folder = export(speech=SpeechSource(prompt="Describe it."))
    trained = open_vlm(folder)
    caption.main([*map(str, photos[:2]), "--model", str(folder), "--max_new_tokens", "12", "--num_beams", "1"])
    chat = [{"role": "user", "content": "<image>\nDescribe it."}]
    said = [by_hand(trained, chat, pixels_of(trained, [path]), [1]) for path in photos[:2]]
    expected = [f"{path}\t{printable(answer)}" for path, answer in zip(photos[:2], said, strict=True)]
    assert capsys.readouterr().out.splitlines() == expected
    caption.main([str(photos[0]), "--model", str(folder), "--max_new_tokens", "12", "--prompt", QUESTION])
    assert capsys.readouterr().out.splitlines()[0] != expected[0]


def test_a_program_asks_too(export, photos):
    model, trained = bitgen.load_vlm(export(), device="cpu"), open_vlm(export())
    expected = by_hand(
        trained, [{"role": "user", "content": f"<image>\n{QUESTION}"}], pixels_of(trained, photos[:1]), [1]
    )
    assert model.ask(QUESTION, photos[0], max_new_tokens=12) == expected
    talk = model.talk(photos[0], max_new_tokens=12)
    assert talk.ask(QUESTION) == expected != talk.ask(QUESTION)
    assert model.caption(photos[0], QUESTION, num_beams=1, max_new_tokens=12) == expected


def test_what_cannot_be_asked_is_said_in_one_line(export, photos, tmp_path, capsys):
    (tmp_path / "broken.png").write_bytes(photos[0].read_bytes()[:60])
    (tmp_path / "clip.mp4").write_bytes(b"no video at all")
    ending = ["--question", QUESTION, "--model", export()]
    for name in ("broken.png", "none.png", "clip.mp4"):
        assert name in refused(capsys, ask.main, tmp_path / name, *ending)
    assert "4 times" in refused(capsys, ask.main, *photos, "--question", "<image>?", "--model", export())
    assert "positions" in refused(capsys, ask.main, photos[0], *ending, "--max_new_tokens", 1000)
    assert "1 to 2 pictures" in refused(capsys, ask.main, *photos, "--model", export(**TAC), "--question", QUESTION)
    assert "takes pictures" in refused(capsys, ask.main, tmp_path / "clip.mp4", *ending[:2], "--model", export(**TAC))
    assert "temperature" in capsys_error(capsys, "--model", export(), "--temperature", "nan")


def capsys_error(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        ask.main([str(argument) for argument in arguments])
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_a_model_without_eyes_says_so_and_can_be_asked_without_pictures(export, photos, capsys):
    blind = export(sees=False, connector="none")
    assert asked(capsys, "--model", blind, "--question", QUESTION, "--max_new_tokens", 12)
    for main, ending in ((ask.main, ["--question", QUESTION]), (caption.main, [])):
        assert "takes no pictures" in refused(capsys, main, photos[0], "--model", blind, *ending)


def test_a_model_of_another_kind_is_named(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"model_type": "bitgen"}')
    assert str(tmp_path) in refused(capsys, ask.main, "--model", tmp_path, "--question", QUESTION)


def test_a_model_that_reads_no_question_says_so_and_describes(export, photos, capsys, monkeypatch):
    model = ("--model", str(export(speech=SpeechSource("plain"))), "--max_new_tokens", "12", "--num_beams", "1")
    caption.main([str(photos[0]), *model])
    said = capsys.readouterr()
    described = said.out.rstrip("\n").split("\t")[1]
    assert described and "question" not in said.err
    caption.main([str(photos[0]), str(photos[1]), *model, "--prompt", "the colour is"])
    said = capsys.readouterr()
    assert said.out.splitlines()[0].endswith(f"\t{described}")
    assert said.err.count("reads no question: --prompt changes nothing") == 1
    ask.main([str(photos[0]), *model, "--question", QUESTION])
    said = capsys.readouterr()
    assert said.out.splitlines() == [described]
    assert said.err.count("only describes pictures and reads no question: the answer is its caption") == 1
    monkeypatch.setattr(sys, "stdin", io.StringIO("What is it?\nWhere is it?\n"))
    assert "so that there is no second one. Begin anew" in refused(capsys, ask.main, photos[0], *model)
    assert "nothing to describe: give a picture" in refused(capsys, ask.main, *model, "--question", QUESTION)


def test_a_model_that_asks_for_questions_is_not_called_one_that_reads_none(export, photos, capsys):
    ask.main([str(photos[0]), "--model", str(export()), "--question", QUESTION, "--max_new_tokens", "2"])
    caption.main([str(photos[0]), "--model", str(export()), "--prompt", QUESTION, "--max_new_tokens", "2"])
    assert "question" not in capsys.readouterr().err
