"""Downloading a large file from a server that misbehaves: bounded, named, and the same command goes on afterwards."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

BODY = bytes(range(256)) * 40


def cut(site, handler) -> None:
    site.send(handler, BODY[:3000], Content_Length=str(len(BODY)))


def short(site, handler) -> None:
    site.send(handler, BODY[:3000])


def endless(site, handler) -> None:
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b"x" * 65536)


def silent(site, handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(BODY)))
    handler.end_headers()
    handler.wfile.write(BODY[:100])
    handler.wfile.flush()
    time.sleep(2)


def other(site, handler) -> None:
    site.send(handler, BODY[::-1])


def wrong_range(site, handler) -> None:
    site.send(handler, BODY[:10], status=206, Content_Range="bytes 7-16/10240")


def page(site, handler) -> None:
    site.send(handler, b"<html>moved to our new home</html>", "text/html")


def to_a_file(site, handler) -> None:
    site.send(handler, b"", status=302, Location="file:///etc/passwd")


def in_a_circle(site, handler) -> None:
    site.send(handler, b"", status=302, Location="/f")


FAULTS: dict[str, tuple[Callable[..., None], str]] = {
    "cut": (cut, "cannot download"),
    "short": (short, "cannot download"),
    "endless": (endless, "arrives damaged twice"),
    "silent": (silent, "cannot download"),
    "other content": (other, "arrives damaged twice"),
    "another range": (wrong_range, "cannot download"),
    "a page instead": (page, "cannot download|arrives damaged twice"),
    "to a local file": (to_a_file, "cannot download"),
    "in a circle": (in_a_circle, "cannot download"),
    "gone": (lambda site, handler: handler.send_error(410), "HTTP 410"),
    "down": (lambda site, handler: handler.send_error(503), "HTTP 503"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_that_misbehaves_costs_nothing_and_the_command_goes_on(site, tmp_path, fault) -> None:
    from _common.download import RemoteFile, fetch_file

    misbehave, message = FAULTS[fault]
    remote = RemoteFile("f.bin", f"{site.url}/f", len(BODY), {"sha256": hashlib.sha256(BODY).hexdigest()})
    folder: Path = tmp_path / "files"
    site.pages["/f"] = lambda handler: misbehave(site, handler)
    started = time.monotonic()
    with httpx2.Client(follow_redirects=True, timeout=0.5) as client:
        with pytest.raises(ValueError, match=message) as raised:
            fetch_file(client, remote, folder, retries=1, backoff=0.01)
        assert site.url in str(raised.value) and time.monotonic() - started < 60
        left = list(folder.iterdir())
        assert all(path.name == "f.bin.part" and path.stat().st_size <= len(BODY) + 2**20 for path in left)
        site.pages["/f"] = lambda handler: site.send(handler, BODY)
        assert fetch_file(client, remote, folder, retries=1, backoff=0.01).read_bytes() == BODY
    assert [path.name for path in folder.iterdir()] == ["f.bin"]


def endless_redirect(handler) -> None:
    """To the file, with a body that is announced as packed and never ends."""
    handler.send_response(302)
    for name, value in (("Location", "/f"), ("Content-Encoding", "gzip")):
        handler.send_header(name, value)
    handler.end_headers()
    while True:
        handler.wfile.write(b"\0" * 65536)


@pytest.mark.parametrize("what", ["a file", "an answer", "an image"])
def test_the_body_of_a_redirect_is_not_read(site, tmp_path, what) -> None:
    from _common.download import RemoteFile, fetch_file, get_json, make_client

    site.pages["/r"] = endless_redirect
    if what == "an image":
        from _common.web_images import FetchOptions, _get

        async def fetched() -> bytes:
            async with httpx2.AsyncClient(timeout=5.0) as client:
                options = FetchOptions(1, 5.0, 0, 0.01, 5, 10**6, 10**6, 32, "shorter", 90)
                return await asyncio.wait_for(_get(f"{site.url}/r", client, options), 30)

        site.pages["/f"] = lambda handler: site.send(handler, BODY)
        assert asyncio.run(fetched()) == BODY
        return
    with make_client() as client:
        if what == "an answer":
            site.pages["/f"] = lambda handler: site.send(handler, b'{"a": 1}', "application/json")
            assert get_json(client, f"{site.url}/r", retries=0) == {"a": 1}
        else:
            site.pages["/f"] = lambda handler: site.send(handler, BODY)
            remote = RemoteFile("f.bin", f"{site.url}/r", len(BODY), {})
            assert fetch_file(client, remote, tmp_path / "files", retries=0).read_bytes() == BODY


def test_a_servers_words_are_printable(site, tmp_path, caplog) -> None:
    from _common.download import RemoteFile, fetch_file, make_client

    site.pages["/f"] = lambda handler: site.send(handler, BODY)
    remote = RemoteFile("f.bin", f"{site.url}/f", len(BODY), {"md5": "\x1b[2Jpwned"})
    with make_client() as client, pytest.raises(ValueError, match="arrives damaged twice") as caught:
        fetch_file(client, remote, tmp_path / "files", retries=0)
    assert "downloading it anew" in caplog.text and "pwned" in caplog.text
    assert "\x1b" not in caplog.text + str(caught.value)
