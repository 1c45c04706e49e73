"""Downloading large files: resumed where they broke off, verified by checksum, in place only when whole."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx2
from tqdm import tqdm

from bitgen.guards.json_files import BadJson, parse_json
from bitgen.guards.names import inside
from bitgen.guards.printable import printable
from bitgen.machine.files import fsync

logger = logging.getLogger("data_prep")

_CHUNK = 2**20
_LARGEST_ANSWER = 16 * 2**20
_LONGEST_ANSWER = 300.0  # seconds
_MOST_REDIRECTS = 20
_HASHES = ("sha256", "md5")


class RemoteFile(NamedTuple):
    """A file on a server: ``hashes`` maps ``sha256`` or ``md5`` to hexadecimal digests, as far as the server says."""

    name: str
    url: str
    size: int
    hashes: dict[str, str]


def make_client() -> httpx2.Client:
    """A client that waits a minute at most for an answer or the next bytes."""
    return httpx2.Client(timeout=60.0, headers={"Accept-Encoding": "identity"})


@contextmanager
def _answer(client: httpx2.Client, url: str, headers: dict[str, str] | None = None) -> Iterator[httpx2.Response]:
    """The answer behind redirects, whose bodies are not read: the library would read, and unpack, all of them."""
    request: httpx2.Request | None = client.build_request("GET", url, headers=headers)
    for _ in range(_MOST_REDIRECTS + 1):
        response = client.send(request, stream=True, follow_redirects=False)
        try:
            request = response.next_request
            if request is None:
                yield response
                return
        finally:
            response.close()
    raise httpx2.TooManyRedirects(f"more than {_MOST_REDIRECTS} redirects", request=request)


def get_json(client: httpx2.Client, url: str, retries: int = 4, backoff: float = 1.0) -> dict:
    """Fetches a JSON object of at most 16 MiB within five minutes.

    Raises ``ValueError`` when it cannot be had after ``retries`` further attempts.
    """
    for attempt in range(retries + 1):
        try:
            with _answer(client, url) as response:
                if response.status_code == 200:
                    return parse_json(_body(response), dict)
                problem, transient = f"HTTP {response.status_code}", _transient(response.status_code)
        except httpx2.RequestError as error:
            problem, transient = f"{type(error).__name__}: {error}", True
        except BadJson as error:
            problem, transient = f"no JSON as expected: {error}", False
        if not transient:
            break
        if attempt < retries:
            logger.warning("%s does not answer (%s); trying again", printable(url), printable(problem))
            time.sleep(backoff * 2**attempt)
    raise ValueError(f"cannot read {printable(url)} ({printable(problem)}); is this machine online?")


def _body(response: httpx2.Response) -> bytes:
    """All of an answer; a server may send without end."""
    body, end = bytearray(), time.monotonic() + _LONGEST_ANSWER
    for chunk in response.iter_bytes():
        body += chunk
        if len(body) > _LARGEST_ANSWER:
            raise BadJson(f"it has more than {_LARGEST_ANSWER:,} bytes")
        if time.monotonic() > end:
            raise httpx2.ReadTimeout(f"not whole after {_LONGEST_ANSWER:g} s")
    return bytes(body)


def fetch_file(client: httpx2.Client, remote: RemoteFile, folder: Path, retries: int = 6, backoff: float = 1.0) -> Path:
    """Downloads ``remote`` to ``folder / remote.name`` and returns that path; a file there already is taken as it is.

    Bytes go to ``NAME.part``, which a later call goes on from; it gets its name after size and checksum agree. A
    failed attempt that brought nothing new is repeated ``retries`` times, after ``backoff`` seconds, doubled each time.
    Raises ``ValueError`` for a name that leads out of ``folder``, a file that has another size than the server says, is
    larger than the free disk, or cannot be had.
    """
    path = inside(folder, remote.name)
    if path.exists():
        if path.stat().st_size != remote.size:
            raise ValueError(f"{path} has {path.stat().st_size} bytes, not {remote.size} as on the server; remove it")
        logger.info("%s is here already", path)
        return path
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.part")
    missing = remote.size - (partial.stat().st_size if partial.exists() else 0)
    free = shutil.disk_usage(folder).free
    if missing > free:
        raise ValueError(
            f"{path} needs {missing / 1e9:.1f} GB more, and {free / 1e9:.1f} GB are free there: make room, or name "
            "another folder"
        )
    for start_over in (True, False):
        _complete(client, remote, partial, retries, backoff)
        problem = _difference(partial, remote)
        if problem is None:
            break
        partial.unlink()
        if not start_over:
            raise ValueError(
                f"{printable(remote.url)} arrives damaged twice ({printable(problem)}); it was removed. Try again later"
            )
        logger.warning("%s: %s; downloading it anew", printable(remote.name), printable(problem))
    fsync(partial)
    os.replace(partial, path)
    fsync(folder)
    return path


def _complete(client: httpx2.Client, remote: RemoteFile, partial: Path, retries: int, backoff: float) -> None:
    failures = 0
    have = partial.stat().st_size if partial.exists() else 0
    with tqdm(total=remote.size, initial=have, desc=remote.name, unit="B", unit_scale=True, disable=None) as progress:
        while have < remote.size:
            problem = _append(client, remote, partial, have, progress)
            now = partial.stat().st_size if partial.exists() else 0
            if problem is None:
                return
            failures = 0 if now > have else failures + 1
            have = now
            if failures > retries:
                raise ValueError(
                    f"cannot download {printable(remote.url)} ({printable(problem)}); {have} of {remote.size} bytes "
                    f"are kept in {partial}, and the same command goes on from there"
                )
            said = printable(remote.name), printable(problem)
            logger.warning("%s: %s after %d of %d bytes; going on", *said, have, remote.size)
            time.sleep(backoff * 2 ** max(0, failures - 1))


def _append(client: httpx2.Client, remote: RemoteFile, partial: Path, have: int, progress: tqdm) -> str | None:
    """Adds what is missing from byte ``have`` on; returns what went wrong on the way, or None."""
    headers = {"Range": f"bytes={have}-"} if have else {}
    try:
        with _answer(client, remote.url, headers) as response:
            status = response.status_code
            if status not in (200, 206):
                if not _transient(status):
                    raise ValueError(f"cannot download {printable(remote.url)}: HTTP {status}")
                return f"HTTP {status}"
            resumed = status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
            if status == 206 and not resumed:
                return f"the server sent {response.headers.get('Content-Range')} for bytes {have}-"
            if not resumed:  # it does not know ranges and sends everything
                progress.reset(remote.size)
            with open(partial, "ab" if resumed else "wb") as file:
                for chunk in response.iter_bytes():  # as they arrive: what is held back is lost with the connection
                    file.write(chunk)
                    progress.update(len(chunk))
                    if file.tell() > remote.size:
                        return None  # more than announced: the comparison of sizes rejects it
    except httpx2.RequestError as error:
        return f"{type(error).__name__}: {error}"
    return None if partial.stat().st_size >= remote.size else "the connection ended early"


def _transient(status: int) -> bool:
    return status in (408, 425, 429) or status >= 500


def _difference(path: Path, remote: RemoteFile) -> str | None:
    """How a downloaded file differs from what the server announced, or None."""
    size = path.stat().st_size
    if size != remote.size:
        return f"{size} bytes instead of {remote.size}"
    kind = next((kind for kind in _HASHES if remote.hashes.get(kind)), None)
    if kind is None:
        logger.warning("%s: the server gives no checksum; only the size was compared", remote.name)
        return None
    with open(path, "rb") as file:
        found = hashlib.new(kind, usedforsecurity=False)
        for chunk in iter(lambda: file.read(_CHUNK), b""):
            found.update(chunk)
    if found.hexdigest() != remote.hashes[kind].lower():
        return f"{kind} {found.hexdigest()} instead of {remote.hashes[kind]}"
    return None
