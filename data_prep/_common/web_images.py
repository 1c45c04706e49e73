"""Fetching many images by URL: concurrent, with retries, and with a limit on everything that a server can send."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx2
from tqdm import tqdm

from _common.images import shrink
from _common.journal import Journal, Outcome
from _common.problems import Unusable
from bitgen.guards.printable import printable

USER_AGENT = "Mozilla/5.0 (compatible; BitGen data preparation)"
_LONGEST_WAIT = 60.0
_TRANSIENT_STATUS = (408, 425, 429, 500, 502, 503, 504)
# So many URLs in a row, from the first on, of which no host answers: that is this machine's network, not the web's.
_UNREACHABLE_FIRST = 50


@dataclass(frozen=True)
class FetchOptions:
    """How images are fetched and stored: ``timeout`` and ``backoff`` in seconds, the image's side in pixels."""

    concurrency: int
    timeout: float
    retries: int
    backoff: float
    max_redirects: int
    max_bytes: int
    max_image_pixels: int
    image_size: int
    resize_side: str
    quality: int


class _Failure(Exception):
    """One attempt failed; ``transient``: another may succeed, after ``wait`` seconds if the server named them."""

    def __init__(self, reason: str, detail: str = "", transient: bool = False, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.reason, self.detail, self.transient, self.wait = reason, printable(detail, 200), transient, wait


def fetch_images(urls: list[str], journal: Journal, options: FetchOptions) -> None:
    """Fetches ``urls`` into ``journal``, where each one's outcome is noted as soon as it is known.

    Raises ``ValueError`` when none of the first 50 hosts can be reached at all; ``OSError`` when the disk is full.
    """
    if not urls:
        return
    # What `shrink` needs takes seconds to import, which must not count as a server's silence.
    import bitgen.model.image_decoding  # noqa: F401

    asyncio.run(_fetch_all(urls, journal, options))


async def _fetch_all(urls: list[str], journal: Journal, options: FetchOptions) -> None:
    limits = httpx2.Limits(max_connections=options.concurrency, max_keepalive_connections=options.concurrency)
    client = httpx2.AsyncClient(
        # Images are compressed already, and a body that unpacks to more than it weighs could be a trap: `_get` takes
        # bodies as they are sent.
        headers={"User-Agent": USER_AGENT, "Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity"},
        timeout=options.timeout,
        limits=limits,
    )
    queue = iter(urls)
    with tqdm(total=len(urls), desc="fetching", unit="image", disable=None) as progress:
        async with client:
            tally = _Tally()
            workers = [
                asyncio.create_task(_work(queue, client, journal, options, progress, tally))
                for _ in range(min(options.concurrency, len(urls)))
            ]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)


class _Tally:
    """Counts outcomes for the progress bar, and notices a machine without a network."""

    def __init__(self) -> None:
        self.stored = self.failed = 0
        self.unreachable = True

    def add(self, outcome: Outcome) -> None:
        self.stored += not outcome.reason
        self.failed += bool(outcome.reason)
        self.unreachable = self.unreachable and outcome.reason == "cannot connect"
        if self.unreachable and self.failed >= _UNREACHABLE_FIRST:
            raise ValueError(
                f"no host of the first {self.failed} URLs can be reached (the last, {outcome.url}: {outcome.detail}). "
                "Is this machine offline, or does it need a proxy (HTTPS_PROXY)? The same command goes on from here."
            )


async def _work(
    queue: Iterator[str],
    client: httpx2.AsyncClient,
    journal: Journal,
    options: FetchOptions,
    progress: tqdm,
    tally: _Tally,
) -> None:
    for url in queue:
        outcome = await _fetch(url, client, journal, options)
        journal.add(outcome)
        progress.update()
        tally.add(outcome)
        progress.set_postfix(stored=tally.stored, failed=tally.failed, refresh=False)


async def _fetch(url: str, client: httpx2.AsyncClient, journal: Journal, options: FetchOptions) -> Outcome:
    for attempt in range(options.retries + 1):
        try:
            body = await asyncio.wait_for(_get(url, client, options), options.timeout)
            break
        except asyncio.TimeoutError:
            failure = _Failure("timed out", f"after {options.timeout:g} s", transient=True)
        except _Failure as error:
            failure = error
        if not failure.transient or attempt == options.retries:
            return Outcome(url, reason=failure.reason, detail=failure.detail, transient=failure.transient)
        await asyncio.sleep(min(max(options.backoff * 2**attempt, failure.wait), _LONGEST_WAIT))
    try:
        payload = await asyncio.to_thread(
            shrink, body, options.image_size, options.resize_side, options.quality, options.max_image_pixels
        )
    except Unusable as error:
        return Outcome(url, reason=error.reason, detail=error.detail)
    return await asyncio.to_thread(journal.store, url, payload)


@asynccontextmanager
async def _answer(url: str, client: httpx2.AsyncClient, most: int) -> AsyncIterator[httpx2.Response]:
    """The answer behind at most so many redirects. Their bodies are not read: the library would read, and unpack, all
    of them."""
    request: httpx2.Request | None = client.build_request("GET", url)
    for _ in range(most + 1):
        response = await client.send(request, stream=True, follow_redirects=False)
        try:
            request = response.next_request
            if request is None:
                yield response
                return
        finally:
            await response.aclose()
    raise _Failure("redirect loop", f"more than {most} redirects")


async def _get(url: str, client: httpx2.AsyncClient, options: FetchOptions) -> bytes:
    """The body behind ``url``, or :class:`_Failure`."""
    try:
        async with _answer(url, client, options.max_redirects) as response:
            _check_head(response, options.max_bytes)
            body = bytearray()
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > options.max_bytes:
                    raise _Failure("file too large", f"over {options.max_bytes} bytes")
    except _Failure:
        raise
    except httpx2.TimeoutException as error:
        raise _Failure("timed out", f"after {options.timeout:g} s", transient=True) from error
    except httpx2.ConnectError as error:
        raise _Failure("cannot connect", str(error), transient=True) from error
    except (httpx2.RemoteProtocolError, httpx2.ReadError) as error:
        raise _Failure("connection broke off", str(error), transient=True) from error
    except Exception as error:  # three million URLs hold every mistake there is; one must not end the run
        raise _Failure("bad URL or answer", f"{type(error).__name__}: {error}") from error
    if not body:
        raise _Failure("empty answer")
    if bytes(body[:512]).lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise _Failure("HTML instead of an image")
    return bytes(body)


def _check_head(response: httpx2.Response, max_bytes: int) -> None:
    status, headers = response.status_code, response.headers
    if status != 200:
        wait = headers.get("Retry-After", "")
        seconds = float(wait) if wait.isdecimal() else 0.0
        raise _Failure(f"HTTP {status}", response.reason_phrase, status in _TRANSIENT_STATUS, seconds)
    packed = headers.get("Content-Encoding", "identity").strip().lower()
    if packed not in ("", "identity"):
        raise _Failure("packed answer", f"Content-Encoding {packed}, which was not asked for")
    if "html" in headers.get("Content-Type", "").lower():
        raise _Failure("HTML instead of an image")
    if re.search(r"\bno(image)?ai\b", headers.get("X-Robots-Tag", "").lower()):
        raise _Failure("owner forbids use for AI", "X-Robots-Tag")
    length = headers.get("Content-Length", "")
    if length.isdecimal() and int(length) > max_bytes:
        raise _Failure("file too large", f"{length} bytes")
