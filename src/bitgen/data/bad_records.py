"""Records that cannot be used: how a loader says so, and how it goes on with another one.

In training a bad record is replaced by the next usable one, so that batches keep their size and a resumed run sees the
same samples; the sample carries a :class:`Skipped`, which travels with its batch to the trainer, where it is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from bitgen.protocols import Skipped

NOT_FINITE = "features are NaN or infinite"
WRONG_SIZE = "features of another size than declared"
NO_CAPTION = "no caption"
NO_FEATURES = "no features in the cache"

_TRIES = 1000


class BadRecord(ValueError):
    """A record that cannot be used; ``reason`` is the same for all with the same trouble, the message names it."""

    def __init__(self, message: str, reason: str = "unusable record") -> None:
        super().__init__(message)
        self.reason = reason


def load_or_replace(load: Callable[[int], dict], candidates: Iterable[int]) -> dict:
    """``load`` of the first of ``candidates`` that is usable; if that is not the first one, the sample says so.

    The sample's ``skipped`` is the :class:`Skipped` of the first candidate; the replacements that were bad too are
    counted when their own turn comes. Raises ``BadRecord`` after 1,000 in a row.
    """
    skipped: Skipped | None = None
    for tried, index in enumerate(candidates, start=1):
        try:
            sample = load(index)
        except BadRecord as error:
            if tried >= _TRIES:
                raise BadRecord(f"{_TRIES} records in a row cannot be used, the last: {error}", error.reason) from error
            skipped = skipped or Skipped(error.reason, str(error))
        else:
            return sample if skipped is None else {**sample, "skipped": skipped}
    assert skipped is not None, "there is at least one candidate"
    raise BadRecord(f"no record can be used, from this one on: {skipped.message}", skipped.reason)
