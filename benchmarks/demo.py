"""How soon the page in the browser is there, and what a caption on it costs beside the same caption without it. Prints
JSON lines {"name": .., "value": ..}:

  seconds_to_page        from the start of src/demo.py to the first answer of its address
  seconds_to_load        of that, importing torch and transformers and opening the model, which every command does
  caption_without, caption_with   seconds of a caption by the command line's function, and of the same picture through
                         the page's own address as an open page in a browser asks for it; medians over built-in scenes
  ratio                  of the two

  python benchmarks/demo.py --model checkpoints/quickstart"""

from __future__ import annotations

import argparse
import json
import re
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "src"))
_LONGEST_START = 300  # seconds


def say(name: str, value: float) -> None:
    print(json.dumps({"name": name, "value": round(value, 4)}), flush=True)


def served(model: str, log: Path) -> tuple[subprocess.Popen, str]:
    """The page's process and address, when it has answered."""
    with log.open("w") as out:
        command = [sys.executable, str(REPOSITORY / "src" / "demo.py"), "--model", model, "--no-browser"]
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    until = time.monotonic() + _LONGEST_START
    while (found := re.search(r"http://127\.0\.0\.1:\d+/", log.read_text())) is None:
        if process.poll() is not None or time.monotonic() > until:
            raise SystemExit(f"the page did not start: {log.read_text()}")
        time.sleep(0.05)
    urllib.request.urlopen(found[0], timeout=60).read()
    return process, found[0]


class Visitor:
    """Asks functions of the page as one open page in a browser does: all in one session."""

    def __init__(self, address: str) -> None:
        self.address, self.session = address, secrets.token_hex(5)
        functions = json.load(urllib.request.urlopen(f"{address}config", timeout=60))["dependencies"]
        self.numbers = {function["api_name"]: function["id"] for function in functions}

    def ask(self, function: str, *given: Any) -> list[Any]:
        """What a function answers."""
        wanted = {"data": given, "fn_index": self.numbers[function], "session_hash": self.session}
        request = urllib.request.Request(
            f"{self.address}gradio_api/queue/join", json.dumps(wanted).encode(), {"Content-Type": "application/json"}
        )
        urllib.request.urlopen(request, timeout=60).read()
        news = f"{self.address}gradio_api/queue/data?session_hash={self.session}"
        with urllib.request.urlopen(news, timeout=60) as stream:
            for line in stream:
                message = json.loads(line.removeprefix(b"data:")) if line.startswith(b"data:") else {}
                if message.get("msg") == "process_completed":
                    if not message["success"]:
                        raise SystemExit(f"{function} failed: {message}")
                    return message["output"]["data"]
        raise SystemExit(f"{function} was not answered")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, metavar="DIR")
    parser.add_argument("--rounds", type=int, default=20, metavar="N", help="pictures (default: 20)")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        started = time.monotonic()
        process, address = served(flags.model, Path(scratch) / "log")
        say("seconds_to_page", time.monotonic() - started)
        try:
            measure(flags.model, address, flags.rounds, Path(scratch) / "scene.png")
        finally:
            process.terminate()
            process.wait()


def measure(folder: str, address: str, rounds: int, picture: Path) -> None:
    """Captions of the same pictures, in turn without the page and with it: a longer caption takes longer."""
    started = time.monotonic()
    import torch

    import bitgen

    torch.set_num_threads(1)  # as the page computes with models below 50 million parameters
    model = bitgen.load(folder)
    say("seconds_to_load", time.monotonic() - started)
    visitor = Visitor(address)
    without, through = [], []
    for number in range(rounds + 1):
        (given,) = visitor.ask("scene")  # a picture that the page has already, as when a person presses Describe
        picture.write_bytes(urllib.request.urlopen(given["url"], timeout=60).read())
        started = time.perf_counter()
        alone = model.caption(picture)
        middle = time.perf_counter()
        shown, _ = visitor.ask("describe", given, 3, 0)
        if number:  # the first of each prepares
            without.append(middle - started)
            through.append(time.perf_counter() - middle)
        if shown != alone:
            raise SystemExit(f"the page says {shown!r}, and the model without it {alone!r}")
    say("caption_without", statistics.median(without))
    say("caption_with", statistics.median(through))
    say("ratio", statistics.median(through) / statistics.median(without))


if __name__ == "__main__":
    main()
