"""Play with a trained model in the browser: `python src/demo.py --model DIR` opens a page on this machine."""

from __future__ import annotations

import argparse
import io
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, TextIO

from bitgen.config import ConfigError, exit_on_config_error
from bitgen.demo.door import OwnPageOnly
from bitgen.guards.arguments import Parser, add_device_flag
from bitgen.guards.printable import printable, printable_lines

_HELP = """\
Play with a trained model in the browser. The page is on this machine alone (127.0.0.1), and nothing leaves it.

It has a tab for each thing that the model can do: describe a picture, search a folder by text or captions by picture,
match captions, remember what you teach it, answer questions about a picture and say where things are. Built-in scenes
are there from the start, so that no picture of yours is needed.

It needs gradio: pip install -c constraints.txt -r requirements-demo.txt (make demo does so)."""

_EXAMPLES = """\
examples:
  python src/demo.py
      the quickstart's model; where there is none yet, it is trained first (minutes on two CPU cores)
  python src/demo.py --model checkpoints/stage2_scenes
      with questions, rationales and boxes
  python src/demo.py --model my-export --folder photos --port 8000
      search your own pictures"""

QUICKSTART, QUICKSTART_CONFIG = Path("checkpoints/quickstart"), Path("configs/quickstart.yaml")
HOST, FIRST_PORT = "127.0.0.1", 7860
_LARGEST_FILE = 256 * 2**20  # bytes of an upload
_MISSING = (
    "the page needs gradio, which is not installed ({error}). Install it with: "
    "pip install -c constraints.txt -r requirements-demo.txt (or pip install 'bitgen[demo]')"
)

logger = logging.getLogger(__name__)


def parse_flags(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(
        description=_HELP, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )  # fmt: skip
    parser.add_argument(
        "--model",
        metavar="DIR",
        help="a run's --output_dir, one checkpoint in it, or an export (default: checkpoints/quickstart, trained first "
        "if it is not there)",
    )
    parser.add_argument("--folder", metavar="DIR", help="pictures to search (default: built-in scenes)")
    parser.add_argument(
        "--port", type=int, metavar="N", help=f"of the page's address (default: the first free one from {FIRST_PORT})"
    )
    parser.add_argument(
        "--browser", action=argparse.BooleanOptionalAction, default=True, help="open the page in the browser"
    )
    add_device_flag(parser)
    flags = parser.parse_args(argv)
    if flags.port is not None and not 1 <= flags.port <= 65_535:
        parser.error(f"--port {flags.port}: it must be from 1 to 65535")
    return flags


def model_folder(given: str | None) -> Path:
    """The folder of the model to show; where none is named the quickstart's, which is trained if it is not there yet,
    and to its end if it was stopped.

    Raises:
        ConfigError: there is no model, and no configuration to train one by.
    """
    if given is not None:
        return Path(given)
    left = _steps_left()
    if left == 0:
        return QUICKSTART
    if not QUICKSTART_CONFIG.is_file():
        raise ConfigError(
            f"there is no model in {QUICKSTART}, and no {QUICKSTART_CONFIG} to train one by. Name one with --model, or "
            "start in the repository's folder."
        )
    import bitgen

    logger.info(
        "%s, three to six minutes on two CPU cores. Then the page opens.",
        "No model yet: the quickstart is trained first" if left is None else f"The quickstart goes on, {left:,} steps",
    )
    from bitgen.run import RunFailed

    root = logging.getLogger()
    ours, root.handlers = root.handlers, []  # training has handlers of its own, which show the same
    try:
        return bitgen.train(QUICKSTART_CONFIG)
    except RunFailed as error:  # it has said why
        raise SystemExit(1) from error
    finally:
        root.handlers = ours


def _steps_left() -> int | None:
    """How many steps the quickstart's run has still to take; None: there is no such run."""
    from bitgen.checkpoint.format import checkpoint_folders, read_state  # imports torch, which --help does not wait for
    from bitgen.checkpoint.manifest import CheckpointError, CheckpointFiles

    folders = checkpoint_folders(QUICKSTART)
    if not folders:
        return None
    try:
        newest = read_state(CheckpointFiles(folders[0]), lazily=True)
    except CheckpointError:  # opening it says what is damaged
        return 0
    return max(newest.state.get("total_steps", newest.step) - newest.step, 0)


def main(argv: list[str] | None = None) -> None:
    """Open the model, build the page, and serve it until it is stopped."""
    flags = parse_flags(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for name in ("httpx", "httpx2", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with exit_on_config_error(), tempfile.TemporaryDirectory(prefix="bitgen-demo-") as scratch:
        _prepare_gradio(Path(scratch) / "gradio")
        import bitgen
        from bitgen.demo.tabs.page import build
        from bitgen.machine.devices import choose_device
        from bitgen.trained_vlm import is_vlm

        choose_device(flags.device)  # before the quickstart is trained for it
        folder = model_folder(flags.model)
        try:
            load = bitgen.load_vlm if is_vlm(folder) else bitgen.load
            model = load(folder, flags.device)
        except ValueError as error:
            raise ConfigError(f"--model {error}") from error
        try:
            page = build(model, Path(scratch), flags.folder)
        except ValueError as error:
            raise ConfigError(f"--folder {error}" if flags.folder else str(error)) from error
        status = _serve(page, flags.port, flags.browser)
        shutil.rmtree(scratch, ignore_errors=True)  # what visitors sent and saved
        sys.stdout.flush()
        os._exit(status)  # a computation that still runs, or a browser that still listens, holds nothing up


def _prepare_gradio(files: Path) -> None:
    """Import gradio so that it keeps visitors' files in a folder of this process, and asks no other machine.

    Raises:
        ConfigError: it is not installed.
    """
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(files)}
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    for name in ("no_proxy", "NO_PROXY"):  # gradio asks its own address whether it is there
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), HOST, "localhost")))
    try:
        import gradio  # noqa: F401  # before minutes of training
    except ImportError as error:
        raise ConfigError(_MISSING.format(error=printable(error))) from error


def _serve(page: Any, port: int | None, browser: bool) -> int:
    """Serve the page until a signal comes; returns the exit status."""
    import gradio as gr
    from starlette.middleware import Middleware

    page.queue(default_concurrency_limit=1, max_size=64)
    try:
        _, address, _ = page.launch(
            server_name=HOST,
            server_port=port,
            share=False,
            inbrowser=browser,
            quiet=True,
            prevent_thread_lock=True,
            show_error=True,
            max_file_size=_LARGEST_FILE,
            ssr_mode=False,
            enable_monitoring=False,
            run_history=False,
            footer_links=["api", "settings"],
            app_kwargs={"middleware": [Middleware(OwnPageOnly)]},
            # Letters that the machine has: nothing is fetched for them.
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        )
    except OSError as error:
        where = f"--port {port}" if port is not None else f"no port from {FIRST_PORT} on is free"
        raise ConfigError(f"{where}: {printable(error)}. Choose another with --port.") from error
    received: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: received.append(number))
    _make_printable()
    print(f"The page is at {address} on this machine alone. Ctrl-C stops it.", flush=True)
    while not received:
        time.sleep(0.2)
    print("The page is closed.", flush=True)
    return 0 if received[0] == signal.SIGINT else 128 + received[0]


class _PrintableLines(io.TextIOBase):
    """A terminal that what visitors send cannot steer: gradio prints some of it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Each line made printable."""
        self._stream.write(printable_lines(text))
        return len(text)

    def flush(self) -> None:
        """As the terminal does."""
        self._stream.flush()


def _make_printable() -> None:
    """From now on, whoever writes errors to the terminal."""
    sys.stderr = _PrintableLines(sys.stderr)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(sys.stderr)
