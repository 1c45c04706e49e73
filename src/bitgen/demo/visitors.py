"""What the page keeps for each visitor: two people at once do not see each other's."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

Kept = TypeVar("Kept")

MOST_VISITORS = 32


class PerVisitor(Generic[Kept]):
    """One object for each visitor, made when it is first asked for.

    Args:
        make: the object of a visitor who is new.
        most: visitors to keep one for; more, and the one who was here longest ago begins anew.
    """

    def __init__(self, make: Callable[[], Kept], most: int = MOST_VISITORS) -> None:
        self._make, self._most = make, most
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._lock = threading.Lock()

    def __getitem__(self, visitor: str) -> Kept:
        with self._lock:
            if visitor not in self._kept:
                self._kept[visitor] = self._make()
                while len(self._kept) > self._most:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(visitor)
            return self._kept[visitor]

    def __setitem__(self, visitor: str, kept: Kept) -> None:
        self[visitor]
        with self._lock:
            self._kept[visitor] = kept

    def forget(self, visitor: str) -> None:
        """The visitor has gone."""
        with self._lock:
            self._kept.pop(visitor, None)
