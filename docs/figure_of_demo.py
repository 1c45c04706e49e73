"""Draws docs/figures/demo.png: the page in the browser, answering a question about a built-in scene. Needs gradio,
playwright and Debian's chromium.

  python docs/figure_of_demo.py --model checkpoints/stage2_longer"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

REPOSITORY = Path(__file__).resolve().parents[1]
SCENE, QUESTION = 13, "what colour is the thing just left of the ring?"
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, metavar="DIR", help="of stage 2")
    parser.add_argument("--scene", type=int, default=SCENE, metavar="N", help=f"built-in scene (default: {SCENE})")
    parser.add_argument("--question", default=QUESTION, help=f"default: {QUESTION}")
    parser.add_argument("--output", default=str(REPOSITORY / "docs" / "figures" / "demo.png"), metavar="FILE.png")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "log"
        with log.open("w") as out:
            command = [sys.executable, str(REPOSITORY / "src" / "demo.py"), "--model", flags.model, "--no-browser"]
            process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        try:
            while (found := re.search(r"http://127\.0\.0\.1:\d+/", log.read_text())) is None:
                if process.poll() is not None:
                    raise SystemExit(log.read_text())
                time.sleep(0.2)
            draw(found[0], flags)
        finally:
            process.terminate()
            process.wait()


def draw(address: str, flags: argparse.Namespace) -> None:
    """Ask as a person does, and keep what the browser shows."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path="/usr/bin/chromium", args=QUIET)
        page = browser.new_page(viewport={"width": 1180, "height": 900})
        page.set_default_timeout(60_000)
        page.goto(address)
        page.get_by_role("tab", name="Ask", exact=True).click()
        page.locator("#ask-number input").fill(str(flags.scene))
        page.locator("#ask-scene").click()
        page.locator("#ask-picture img").wait_for()
        page.locator("#ask-question").locator("textarea, input").first.fill(flags.question)
        page.locator("#ask-go").click()
        expect(page.locator("#ask-answer").locator("textarea, input").first).to_have_value(re.compile(r"\S"))
        page.locator("#ask-boxes img").wait_for()
        page.wait_for_timeout(1000)
        page.screenshot(path=flags.output, full_page=True)
        browser.close()


if __name__ == "__main__":
    main()
