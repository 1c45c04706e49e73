"""The page as gradio has it: names of functions, errors as messages, and what a message may say. Needs gradio."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest

import bitgen
from bitgen.commands import demo
from bitgen.config import ConfigError
from bitgen.demo import markup
from bitgen.demo.asking import Reason
from bitgen.demo.door import OwnPageOnly
from bitgen.demo.matching import Matched
from bitgen.evaluation.word_probabilities import END, WordProbability
from bitgen.run import RunFailed
from support.runs import REPOSITORY, written_run
from support.warm import run_warm

gr = pytest.importorskip("gradio")
from bitgen.demo.tabs.common import guarded, needed, readable  # noqa: E402
from bitgen.demo.tabs.page import build  # noqa: E402

HOSTILE = "<img src=x onerror=alert(1)>\x1b[2J"
NAMES = {
    "describe": {"scene", "describe", "word_probabilities"},
    "search": {"index", "stop_index", "find_pictures", "find_captions"},
    "match": {"swapped_words", "match"},
    "remember": {
        "scene_to_teach",
        "scene_to_recall",
        "teach",
        "recall",
        "edit",
        "forget",
        "save_memory",
        "load_memory",
        "draw_memory",
    },
    "ask": {"scene_to_ask", "ask"},
    "where": {"scene_to_where", "where"},
    "about": {"measure"},
}


def names_of(page) -> set[str]:
    return set(page.get_api_info()["named_endpoints"])


def expected(*tabs: str) -> set[str]:
    return {f"/{name}" for tab in tabs for name in NAMES[tab]}


def test_each_function_has_a_name(model: bitgen.Model, reasoner: bitgen.Model, tmp_path: Path) -> None:
    first = expected("describe", "search", "match", "remember", "about")
    assert names_of(build(model, tmp_path)) == first
    assert names_of(build(reasoner, tmp_path)) == first - expected("match") | expected("ask", "where")


def test_a_model_without_eyes_has_a_page_that_says_why(tmp_path: Path) -> None:
    page = build(bitgen.load(written_run(features=True), device="cpu"), tmp_path)
    assert names_of(page) == set()
    assert any("no vision tower" in str(getattr(block, "value", "")) for block in page.blocks.values())


def test_computations_wait_for_one_another(model: bitgen.Model, tmp_path: Path) -> None:
    functions = [one for one in build(model, tmp_path).fns.values() if one.queue and one.targets[0][1] != "unload"]
    assert len(functions) >= 15
    assert {(one.concurrency_id, one.concurrency_limit) for one in functions} == {("model", 1)}


def test_what_a_person_can_mend_is_a_message() -> None:
    @guarded
    def bad(text: str) -> None:
        raise ValueError(f"{text} cannot be read")

    with pytest.raises(gr.Error) as said:
        bad(HOSTILE)
    assert "&lt;img" in said.value.message and "<" not in said.value.message and "\x1b" not in said.value.message
    assert not said.value.print_exception
    with pytest.raises(gr.Error, match="there is no picture"):
        guarded(needed)(None)


def test_what_nobody_can_mend_is_told_to_the_terminal(caplog: pytest.LogCaptureFixture) -> None:
    @guarded
    def broken() -> None:
        raise RuntimeError("shapes differ")

    with caplog.at_level(logging.ERROR), pytest.raises(gr.Error) as said:
        broken()
    assert "shapes differ" not in said.value.message and "The page goes on" in said.value.message
    assert "shapes differ" in caplog.text


def test_what_a_model_writes_says_nothing_to_the_browser() -> None:
    pieces = [
        markup.words([WordProbability(HOSTILE, -0.1), WordProbability(END, -3)]),
        markup.sentence(HOSTILE),
        markup.bars([Matched(HOSTILE, 0.5, 0.5, 0.1)]),
        markup.reasons([Reason(HOSTILE, True), Reason(HOSTILE, None)]),
        markup.table([[HOSTILE, HOSTILE]], HOSTILE),
    ]
    for piece in pieces:
        assert "&lt;img" in piece and "<img" not in piece


@pytest.mark.parametrize(("log_probability", "colour"), [(-0.05, 0), (-0.5, 1), (-1.5, 2), (-4, 3)])
def test_words_are_coloured_by_their_probability(log_probability: float, colour: int) -> None:
    chip = markup.words([WordProbability("dog", log_probability)]).split("</div>")[0]
    assert markup._LEGEND[colour][0] in chip


def test_a_page_of_a_folder_searches_it(model: bitgen.Model, folder: Path, tmp_path: Path) -> None:
    page = build(model, tmp_path, str(folder))
    said = [str(getattr(block, "value", "")) for block in page.blocks.values()]
    assert any(
        text.startswith("5 pictures of") and text.count("broken.jpg") == 1 and "1 could not be read" in text
        for text in said
    )


def test_a_picture_is_decoded_by_us_alone(model: bitgen.Model, tmp_path: Path, huge: str) -> None:
    """Gradio's own component would open it with Pillow, which has limits of its own and raises whatever it likes."""
    page = build(model, tmp_path)
    pictures = [
        block for block in page.blocks.values() if isinstance(block, gr.Image) and block.interactive is not False
    ]
    assert len(pictures) >= 5
    payload = gr.data_classes.ImageData(path=huge)
    assert {picture.preprocess(payload) for picture in pictures} == {huge}
    assert {picture.preprocess(None) for picture in pictures} == {None}
    with pytest.raises(gr.Error, match="the picture is no file"):
        pictures[0].preprocess(gr.data_classes.ImageData(url="data:image/png;base64,AAAA"))


def test_what_is_cut_is_said_on_the_page(model: bitgen.Model, photo: str, monkeypatch) -> None:
    from bitgen.demo import remembering

    said: list[str] = []
    monkeypatch.setattr(gr, "Warning", said.append)
    guarded(remembering.teach)(model.memory(), photo, "<b> dog " * 60)
    assert len(said) == 1 and "is cut" in said[0] and "<b>" not in said[0]
    guarded(remembering.teach)(model.memory(), photo, "a dog")
    assert len(said) == 1


def test_messages_name_files_as_they_were_given() -> None:
    from gradio.utils import get_upload_folder

    kept = f"{get_upload_folder()}/{'0' * 64}/dog.png"
    assert readable(f"{kept} cannot be read") == "dog.png cannot be read"


# ---- who may ask ----


@pytest.mark.parametrize(
    ("headers", "own"),
    [
        ({"host": "127.0.0.1:7860"}, True),
        ({"host": "localhost:7860", "origin": "http://localhost:7860"}, True),
        ({"host": "evil.example:7860"}, False),
        ({"host": "127.0.0.1.evil.example"}, False),
        ({"host": "127.0.0.1:7860", "origin": "http://evil.example"}, False),
        ({"host": "127.0.0.1:7860", "origin": "null"}, False),
        ({"host": "127.0.0.1:7860", "origin": "http://127.0.0.1:1"}, False),
        ({"host": "[::1"}, False),
        ({}, False),
    ],
)
def test_only_the_page_itself_may_ask(headers: dict[str, str], own: bool) -> None:
    import anyio

    reached, sent = [], []

    async def app(scope, receive, send) -> None:
        reached.append(scope)

    async def send(message) -> None:
        sent.append(message)

    scope = {"type": "http", "headers": [(name.encode(), value.encode()) for name, value in headers.items()]}
    anyio.run(OwnPageOnly(app), scope, None, send)
    assert bool(reached) == own and [message.get("status") for message in sent] == ([] if own else [403, None])


# ---- the command ----


def test_gradio_is_asked_for_by_name(monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SystemExit) as stopped:
        demo.main(["--model", "x"])
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and "requirements-demo.txt" in said and "Traceback" not in said


def test_nothing_else_imports_gradio() -> None:
    modules = "bitgen.api, bitgen.commands.evaluate, bitgen.demo.searching"
    done = run_warm(["-c", f"import sys, {modules}; print('gradio' in sys.modules)"])
    assert done.stdout.strip() == "False", done.stderr


def test_a_model_that_is_not_there(capsys, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        demo.main(["--model", str(tmp_path / "gone"), "--no-browser"])
    assert "--model" in (said := capsys.readouterr().err) and "there is no such folder" in said


def test_a_folder_that_is_not_there(capsys, stage1_run: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        demo.main(["--model", str(stage1_run), "--folder", str(tmp_path / "gone"), "--no-browser", "--device", "cpu"])
    assert "--folder" in (said := capsys.readouterr().err) and "no such folder" in said


def test_a_port_that_is_taken(capsys, stage1_run: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit):
            demo.main(["--model", str(stage1_run), "--port", str(port), "--no-browser", "--device", "cpu"])
    assert f"--port {port}" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        demo.main(["--port", "0"])


def test_without_a_model_the_quickstart_is_taken_or_trained(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="Name one with --model"):
        demo.model_folder(None)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "quickstart.yaml").write_text((REPOSITORY / "configs" / "quickstart.yaml").read_text())
    calls = []
    monkeypatch.setattr(bitgen, "train", lambda config: calls.append(config) or Path("trained"))
    assert demo.model_folder(None) == Path("trained") and calls == [demo.QUICKSTART_CONFIG]
    ours = logging.getLogger().handlers

    def fails(config):
        assert not logging.getLogger().handlers, "training shows its lines itself"
        raise RunFailed

    monkeypatch.setattr(bitgen, "train", fails)
    with pytest.raises(SystemExit) as stopped:  # it has said why
        demo.model_folder(None)
    assert stopped.value.code == 1 and logging.getLogger().handlers is ours
    # Also of a run that was stopped before its first validation, which has no `best`.
    (tmp_path / "checkpoints" / "quickstart" / "step-00000010").mkdir(parents=True)
    assert demo.model_folder(None) == demo.QUICKSTART and len(calls) == 1


def test_a_quickstart_that_was_stopped_goes_on(tmp_path: Path, monkeypatch, stage1_run: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert demo._steps_left() is None
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "quickstart").symlink_to(stage1_run)
    assert demo._steps_left() == 0 and demo.model_folder(None) == demo.QUICKSTART
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "quickstart.yaml").touch()
    monkeypatch.setattr(bitgen, "train", lambda config: Path("trained"))
    monkeypatch.setattr(demo, "_steps_left", lambda: 5)
    assert demo.model_folder(None) == Path("trained")


def test_a_folder_to_search_needs_a_model_that_searches(stage1_run: Path, tmp_path: Path) -> None:
    model = bitgen.load(stage1_run)
    model.trained.untrained["retrieval"] = "contrastive_weight was 0 in training"
    with pytest.raises(ValueError, match="pictures: contrastive_weight was 0 in training"):
        build(model, tmp_path, "pictures")
