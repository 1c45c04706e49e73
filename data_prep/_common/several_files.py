"""Records of several files in one dataset: what each file is called, and ids that two of them give."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from _common.problems import Unusable


def file_labels(paths: Sequence[Path]) -> list[str]:
    """A name for each file: its own; where two have the same, with the folder before it, or else numbered."""
    labels = [path.name for path in paths]
    for number, path in enumerate(paths):
        if [other.name for other in paths].count(path.name) > 1:
            labels[number] = "/".join(path.parts[-2:])
    counts = Counter(labels)
    return [label if counts[label] == 1 else f"{label} ({number})" for number, label in enumerate(labels, 1)]


class Ids:
    """Ids of a dataset. Files often count from 0, each for itself: an id of an earlier file gets its file's name."""

    def __init__(self) -> None:
        self._file_of: dict[str, str] = {}

    def free(self, given: str, file: str) -> str:
        """The id to use; :meth:`take` keeps it. ``Unusable``: a record of the same file has it."""
        if self._file_of.get(given, file) != file:
            given = f"{file}: {given}"
        if given in self._file_of:
            raise Unusable("question with the id of an earlier one", given)
        return given

    def take(self, used: str, file: str) -> None:
        """A record was written with this id."""
        self._file_of[used] = file
