"""What may reach the page at all: requests that a browser on this machine makes for the page itself.

A website that somebody visits may send requests to this machine, too: by a form, or under a name of its own that it
lets point here. Both say where they come from.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

HOSTS = ("127.0.0.1", "localhost")
REFUSED = b"This page answers only to itself: open it at 127.0.0.1.\n"

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class OwnPageOnly:
    """An ASGI application before another: a request under another host's name, or from another page, is refused."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection."""
        if scope["type"] != "http" or is_own(dict(scope["headers"])):
            await self.app(scope, receive, send)
            return
        headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(REFUSED)).encode())]
        await send({"type": "http.response.start", "status": 403, "headers": headers})
        await send({"type": "http.response.body", "body": REFUSED})


def is_own(headers: MutableMapping[bytes, bytes]) -> bool:
    """Whether a request is to this machine by its own name, and from no page but this one."""
    host = headers.get(b"host", b"").decode("latin-1")
    if _name(f"http://{host}") not in HOSTS:
        return False
    origin = headers.get(b"origin")
    return origin is None or origin.decode("latin-1").lower() == f"http://{host.lower()}"


def _name(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None
