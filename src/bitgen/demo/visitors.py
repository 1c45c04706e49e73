"""What the page keeps for each visitor: two people at once do not see each other's.

A program that calls a function without a session of its own is a new visitor each time, so that only what changes
something is kept: reading never pushes out what another visitor has.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

Kept = TypeVar("Kept")

MOST_VISITORS = 32


class PerVisitor(Generic[Kept]):
    """One object for each visitor who has changed something.

    Args:
        make: the object of a visitor who is new.
        most: visitors to keep one for; more, and the one who was here longest ago begins anew.
    """

    def __init__(self, make: Callable[[], Kept], most: int = MOST_VISITORS) -> None:
        self._make, self._most = make, most
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._lock = threading.Lock()

    def seen(self, visitor: str) -> Kept:
        """A visitor's object, to look at: of one who is new, a fresh one, which is not kept."""
        with self._lock:
            if visitor in self._kept:
                self._kept.move_to_end(visitor)
                return self._kept[visitor]
        return self._make()

    def kept(self, visitor: str) -> Kept:
        """A visitor's object, to change."""
        with self._lock:
            if visitor not in self._kept:
                self._keep(visitor, self._make())
            self._kept.move_to_end(visitor)
            return self._kept[visitor]

    def replace(self, visitor: str, kept: Kept) -> None:
        """Another object in its place."""
        with self._lock:
            self._keep(visitor, kept)

    def _keep(self, visitor: str, kept: Kept) -> None:
        self._kept[visitor] = kept
        self._kept.move_to_end(visitor)
        while len(self._kept) > self._most:
            self._kept.popitem(last=False)

    def forget(self, visitor: str) -> None:
        """The visitor has gone."""
        with self._lock:
            self._kept.pop(visitor, None)
