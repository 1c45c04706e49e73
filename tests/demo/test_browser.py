"""The page in a real browser, used as a person would. Needs gradio, playwright and Debian's chromium."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

import bitgen
from support.data import encode, noise
from support.runs import REPOSITORY, environment
from support.spoken_memories import speaking_run

pytest.importorskip("gradio", reason="gradio is not installed: pip install -r requirements-demo.txt")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: apt-get install chromium"),
]
# A browser that asks nobody for anything by itself.
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync")  # fmt: skip
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
PATIENCE = 60_000  # milliseconds, on a machine that does other things


class Server:
    """`src/demo.py` on a model, in a process of its own."""

    def __init__(self, model: Path, log: Path, temporary: Path | None = None) -> None:
        command = [sys.executable, str(REPOSITORY / "src" / "demo.py"), "--model", str(model), "--no-browser"]
        self.log = log
        # A proxy that is not there: the page must not ask it.
        env = environment(HTTP_PROXY="http://127.0.0.1:9", TMPDIR=str(temporary or log.parent))
        with log.open("w") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=env)
        until = time.monotonic() + 120
        while (found := re.search(r"http://127\.0\.0\.1:\d+/", log.read_text())) is None:
            assert self.process.poll() is None and time.monotonic() < until, log.read_text()
            time.sleep(0.2)
        self.address = found[0]

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)


class Visitor:
    """A page that was opened in a browser, and what it asked for and complained of."""

    def __init__(self, browser, address: str, size: dict[str, int]) -> None:
        self.context = browser.new_context(viewport=size)
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.hosts: set[str] = set()
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.hosts.add(request.url.split("/")[2].split(":")[0]))
        self.page.on("console", lambda said: self.complaints.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(address)
        self.page.get_by_role("tab", name="Describe", exact=True).wait_for()

    def tab(self, name: str) -> None:
        tab = self.page.get_by_role("tab", name=name, exact=True)
        if tab.is_visible():
            tab.click()
        else:  # on a narrow screen those that do not fit are behind a button
            self.page.locator(".overflow-menu > button").click()
            self.page.locator(".overflow-dropdown button", has_text=name).click()

    def write(self, place: str, text: str) -> None:
        self.page.locator(f"#{place}").locator("textarea, input").first.fill(text)

    def press(self, place: str) -> None:
        self.page.locator(f"#{place}").click()

    def give(self, place: str, path: str | Path) -> None:
        self.page.locator(f"#{place} input[type=file]").first.set_input_files(str(path))
        self.page.locator(f"#{place}").locator("img, .file-preview").first.wait_for(state="attached")

    def sees(self, place: str, text: str | re.Pattern[str]) -> None:
        playwright.expect(self.page.locator(f"#{place}")).to_contain_text(text, timeout=PATIENCE)

    def reads(self, place: str, text: re.Pattern[str]) -> None:
        """In a box of text."""
        box = self.page.locator(f"#{place}").locator("textarea, input").first
        playwright.expect(box).to_have_value(text, timeout=PATIENCE)

    def picture(self, place: str, number: int = 0) -> None:
        """Waits for a picture that the browser could draw."""
        image = self.page.locator(f"#{place} img").nth(number)
        image.wait_for(state="attached")
        self.page.wait_for_function("image => image.complete && image.naturalWidth > 0", arg=image.element_handle())

    def message(self, text: str) -> None:
        """Waits for an error on the page, and puts it away."""
        playwright.expect(self.page.locator(".toast-body").last).to_contain_text(text, timeout=PATIENCE)
        self.page.locator(".toast-close").last.click()

    def leaves(self) -> None:
        """Nothing was asked of another machine, and nothing went wrong in the browser."""
        assert self.hosts == {"127.0.0.1"}
        assert self.complaints == []
        self.context.close()


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def stage1(tmp_path_factory) -> Iterator[Server]:
    server = Server(speaking_run(), tmp_path_factory.mktemp("demo") / "log")
    yield server
    server.stop()


@pytest.fixture(scope="module")
def stage2(stage2_run: Path, tmp_path_factory) -> Iterator[Server]:
    server = Server(stage2_run, tmp_path_factory.mktemp("demo") / "log")
    yield server
    server.stop()


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_describe_search_match(browser, stage1: Server, size: dict[str, int], photo: str, folder: Path) -> None:
    visitor = Visitor(browser, stage1.address, size)
    width = visitor.page.evaluate("document.documentElement.scrollWidth")
    assert width <= size["width"], "the page is wider than the screen"
    visitor.press("describe-scene")
    visitor.picture("describe-picture")
    visitor.press("describe-go")
    visitor.sees("describe-words", re.compile(r"Probability of each word"))
    visitor.reads("describe-time", re.compile(r"^\d+\.\d\d seconds$"))
    if size is NARROW:
        visitor.tab("About")
        visitor.sees("about-parameters", "total")
        visitor.leaves()
        return
    visitor.tab("Search")
    visitor.sees("search-state", "60 pictures")
    visitor.press("search-go")
    visitor.picture("search-gallery", 7)
    visitor.write("search-folder", str(folder))
    visitor.press("search-index")
    visitor.sees("search-state", re.compile(r"5 pictures of .*1 could not be read"))
    visitor.write("search-text", "the cat sat")
    visitor.press("search-go")
    visitor.sees("search-gallery", re.compile(r"more/4\.png: -?0\.\d\d, -?\d+\.\d\d"))
    visitor.give("search-picture", photo)
    visitor.page.get_by_role("button", name="Find captions").click()
    visitor.sees("search-captions", re.compile(r"cosine -?0\.\d+, together"))
    visitor.tab("Match")
    visitor.press("match-example")
    visitor.picture("match-picture")
    visitor.press("match-go")
    visitor.sees("match-bars", re.compile(r"by itself \d+\.\d%, cosine"))
    visitor.tab("About")
    visitor.sees("about-missing", re.compile(r"Ask: the model was not trained to answer"))
    visitor.sees("about-parameters", "total")
    visitor.press("about-measure")
    visitor.reads("about-time", re.compile(r"seconds a caption"))
    visitor.leaves()


def test_remember(browser, stage1: Server, photo: str, tmp_path: Path) -> None:
    visitor, other = Visitor(browser, stage1.address, WIDE), Visitor(browser, stage1.address, WIDE)
    visitor.tab("Remember")
    visitor.press("teach-scene")
    visitor.picture("teach-picture")
    visitor.write("teach-text", "this is Rex")
    visitor.press("teach-go")
    visitor.reads("teach-done", re.compile("Taught as episode 1"))
    visitor.sees("memory-table", "this is Rex")
    visitor.press("memory-draw")
    visitor.picture("memory-drawing")
    visitor.press("recall-scene")
    visitor.picture("recall-picture")
    visitor.press("recall-go")
    visitor.sees("recall-table", "this is Rex")
    visitor.reads("recall-after", re.compile(r"\S"))
    visitor.write("edit-key", "1")
    visitor.write("edit-text", "this is Tex")
    visitor.press("edit-go")
    visitor.sees("memory-table", "this is Tex")
    visitor.press("memory-save")
    with visitor.page.expect_download() as saved:
        visitor.page.locator("#memory-file a").first.click()
    saved.value.save_as(tmp_path / "my.memory")
    visitor.press("forget-go")
    visitor.sees("memory-summary", "The memory is empty")
    other.tab("Remember")  # who has a memory of their own
    other.press("memory-save")
    other.message("the memory is empty")
    visitor.give("memory-given", tmp_path / "my.memory")
    visitor.press("memory-load")
    visitor.sees("memory-table", "this is Tex")
    other.sees("memory-summary", "The memory is empty")
    (tmp_path / "bad.memory").write_bytes(b"no memory")
    other.give("memory-given", tmp_path / "bad.memory")
    other.press("memory-load")
    other.message("bad.memory")
    for one in (visitor, other):
        one.leaves()


def test_bad_input_is_a_message_and_the_page_lives_on(
    browser, stage1: Server, photo: str, huge: str, tmp_path: Path
) -> None:
    visitor = Visitor(browser, stage1.address, WIDE)
    visitor.press("describe-go")
    visitor.message("there is no picture")
    (tmp_path / "broken.png").write_bytes(b"no picture <b>at all</b>")
    for path, said in ((tmp_path / "broken.png", "cannot be read"), (huge, "pixels")):
        visitor.give("describe-picture", path)
        visitor.press("describe-go")
        visitor.message(said)
        visitor.page.locator("#describe-picture").get_by_label("Clear").or_(
            visitor.page.locator("#describe-picture").get_by_label("Remove Image")
        ).first.click()
    visitor.tab("Search")
    visitor.write("search-text", " ")
    visitor.press("search-go")
    visitor.message("empty")
    visitor.write("search-folder", "/nowhere/at/all")
    visitor.press("search-index")
    visitor.message("there is no such folder")
    visitor.tab("Remember")
    visitor.write("teach-text", "")
    visitor.press("teach-go")
    visitor.message("is empty")
    visitor.write("edit-key", "77")
    visitor.press("forget-go")
    visitor.message("77")
    visitor.tab("Describe")
    visitor.give("describe-picture", photo)
    visitor.press("describe-go")
    visitor.reads("describe-time", re.compile(r"seconds$"))
    assert visitor.hosts == {"127.0.0.1"}
    assert "Traceback" not in stage1.log.read_text()


def test_reading_a_folder_can_be_stopped(browser, stage1: Server, tmp_path: Path) -> None:
    """What was indexed before stays, and the model is free for what is asked next."""
    (tmp_path / "0.png").write_bytes(encode(noise(1, 1000, 1000)))
    for row in range(1, 1500):
        os.link(tmp_path / "0.png", tmp_path / f"{row}.png")
    visitor = Visitor(browser, stage1.address, WIDE)
    visitor.tab("Search")
    visitor.write("search-folder", str(tmp_path))
    visitor.press("search-index")
    visitor.sees("search-state", re.compile(r"reading pictures"))
    visitor.press("search-stop")
    visitor.sees("search-state", re.compile(r"Stopped\. 60 pictures of .*the built-in scenes"))
    visitor.press("search-go")
    visitor.picture("search-gallery", 7)
    visitor.sees("search-state", re.compile(r"Stopped\. 60 pictures"))
    visitor.leaves()


def test_what_a_memory_says_is_no_markup(browser, stage1: Server, tmp_path: Path) -> None:
    memory = bitgen.load(speaking_run(), device="cpu").memory()
    (tmp_path / "scene.png").write_bytes(encode(noise(1)))
    hostile = "![x](http://192.0.2.1/x.png)<img src=http://192.0.2.1/y.png>"
    memory.write([tmp_path / "scene.png"], ["a dog"], [hostile])
    memory.save(tmp_path / "hostile.memory")
    visitor = Visitor(browser, stage1.address, WIDE)
    visitor.tab("Remember")
    visitor.give("memory-given", tmp_path / "hostile.memory")
    visitor.press("memory-load")
    visitor.sees("memory-table", "192.0.2.1")
    visitor.write("edit-key", hostile)
    visitor.write("edit-text", hostile)
    visitor.press("edit-go")
    visitor.reads("teach-done", re.compile("has another text"))
    visitor.write("recall-text", "a dog")
    visitor.press("recall-go")
    visitor.sees("recall-table", "192.0.2.1")
    visitor.leaves()


def test_files_of_the_machine_are_not_served(stage1: Server, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(encode(noise(1)))
    for address in (f"file={tmp_path}/secret.png", "file=/etc/passwd", f"file={REPOSITORY}/README.md"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{stage1.address}gradio_api/{address}", timeout=60)
        assert refused.value.code == 403
    foreign = urllib.request.Request(f"{stage1.address}config", headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(foreign, timeout=60)
    assert refused.value.code == 403


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_stops_at_once_and_leaves_nothing_behind(number: signal.Signals, stage1_run: Path, tmp_path: Path) -> None:
    server = Server(stage1_run, tmp_path / "log", temporary=tmp_path)
    (folder,) = tmp_path.glob("bitgen-demo-*")
    reader = urllib.request.urlopen(f"{server.address}gradio_api/heartbeat/a-visitor", timeout=60)
    server.process.send_signal(number)
    assert server.process.wait(20) == (0 if number == signal.SIGINT else 128 + number)
    reader.close()
    assert not folder.exists() and "Traceback" not in server.log.read_text()


def test_ask_and_where(browser, stage2: Server, tmp_path: Path) -> None:
    visitor = Visitor(browser, stage2.address, WIDE)
    assert visitor.page.get_by_role("tab", name="Match", exact=True).count() == 0
    visitor.tab("Ask")
    visitor.press("ask-scene")
    visitor.picture("ask-picture")
    visitor.page.locator("#ask-examples input").click()
    visitor.page.get_by_role("option").first.click()
    visitor.reads("ask-question", re.compile(r"\S"))
    visitor.press("ask-go")
    visitor.reads("ask-answer", re.compile(r"\S"))
    visitor.tab("Where")
    visitor.press("where-scene")
    visitor.picture("where-picture")
    visitor.write("where-thing", "star")
    visitor.press("where-go")
    visitor.reads("where-said", re.compile(r"\S"))
    visitor.tab("About")
    visitor.sees("about-missing", "Match: itm_weight was 0")
    visitor.leaves()
