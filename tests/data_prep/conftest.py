"""What the tests of the preparation scripts share: the scripts, small images, a server that misbehaves on demand."""

import importlib
import sys
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from support.flickr8k_files import Source

DATA_PREP = Path(__file__).resolve().parents[2] / "data_prep"


@pytest.fixture(scope="session", autouse=True)
def scripts_on_path():
    sys.path.insert(0, str(DATA_PREP))
    yield
    sys.path.remove(str(DATA_PREP))


@pytest.fixture
def script(scripts_on_path) -> Callable:
    """``script("cc3m")`` gives that script's ``main``."""
    return lambda name: importlib.import_module(name).main


@pytest.fixture
def source(tmp_path) -> Source:
    return Source(tmp_path)


@pytest.fixture
def large(tmp_path) -> Source:
    """200 images: two of them are 1%."""
    return Source(tmp_path, 200)


class Site:
    """A local web server: ``pages`` maps paths to functions of the request handler; ``asked`` counts requests."""

    def __init__(self) -> None:
        self.pages: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}
        self.asked: Counter[str] = Counter()
        self.ranges: list[str | None] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.asked[self.path] += 1
                site.ranges.append(self.headers.get("Range"))
                page = site.pages.get(self.path)
                try:
                    if page is None:
                        self.send_error(404)
                    else:
                        page(self)
                except (BrokenPipeError, ConnectionResetError):
                    pass  # the client hung up, as some tests want

            def log_message(self, *arguments) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def page(self, path: str, body: bytes, kind: str = "image/jpeg", status: int = 200, **headers: str) -> str:
        """Serves ``body`` at ``path``; returns its address. A header ``Content_Length`` replaces the true one."""

        self.pages[path] = lambda handler: self.send(handler, body, kind, status, **headers)
        return self.url + path

    @staticmethod
    def send(
        handler: BaseHTTPRequestHandler, body: bytes, kind: str = "image/jpeg", status: int = 200, **headers: str
    ) -> None:
        """Answers a request."""
        handler.send_response(status)
        sent = {"Content-Type": kind, "Content-Length": str(len(body))}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in sent.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)


@pytest.fixture
def site(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    site = Site()
    yield site
    site.close()
