"""`metrics.jsonl`: every scalar of a run as one JSON object a line, and what can be read off it at the end."""

from __future__ import annotations

import contextlib
import json
import logging
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bitgen.guards.json_files import BadJson, parse_json
from bitgen.machine.files import replacing

logger = logging.getLogger(__name__)

LAST_MEAN = 5
"""A run's "last" training value is the mean of this many last lines: one batch alone is noise."""


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """All records of a metrics file, in order; lines that a crash or a full disk cut short are left out, and values
    that are no numbers.

    Raises:
        OSError: it cannot be read.
    """
    records: list[dict[str, Any]] = []
    path = Path(path)
    if not path.exists():
        return records
    for line in path.read_bytes().splitlines():
        try:
            record = parse_json(line, dict, {"step": int, "phase": int})
        except BadJson:
            continue
        records.append({name: value for name, value in record.items() if isinstance(value, (int, float, type(None)))})
    return records


def drop_after(path: str | Path, step: int) -> int:
    """Keep the records up to and including `step`; returns how many lines went.

    The file is rewritten under a temporary name and then replaced, so that a crash leaves the old or the new one.
    """
    path = Path(path)
    if not path.exists():
        return 0
    lines = len(path.read_bytes().splitlines())
    kept = [record for record in read_metrics(path) if record["step"] <= step]
    with replacing(path) as temporary:
        temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
    return lines - len(kept)


class MetricsFile:
    """Appends records; each line is with the operating system at once, so a killed run keeps all its lines.

    A full disk must not cost the training run: the first failed write is reported, later ones are tried in silence.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        # Unbuffered: a buffered writer would hold a failed line back and raise again on close.
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115
        self._line_torn = False
        self._has_warned = False

    def write(self, step: int, phase: int, scalars: Mapping[str, float]) -> None:
        """Append `{"step": .., "phase": .., **scalars}`. JSON has no NaN or infinity: they become null."""
        values = {name: (value if math.isfinite(value) else None) for name, value in scalars.items()}
        line = json.dumps({"step": step, "phase": phase, **values}).encode() + b"\n"
        try:
            # A torn line must not swallow the whole one after it.
            self._file.write(b"\n" + line if self._line_torn else line)
            self._line_torn = False
        except (OSError, ValueError) as error:  # ValueError: the file is closed
            self._line_torn = True
            if not self._has_warned:
                logger.warning("%s: metrics are not being written (%s); training goes on", self.path, error)
            self._has_warned = True

    def close(self) -> None:
        with contextlib.suppress(OSError):  # network disks report a failed write here, which no line can mend
            self._file.close()


def first_and_last(records: Iterable[Mapping], name: str) -> tuple[float, float] | None:
    """First value of a scalar and the mean of its last `LAST_MEAN` ones; None when it was never logged."""
    values = [record[name] for record in records if record.get(name) is not None]
    if not values:
        return None
    last = values[-LAST_MEAN:]
    return values[0], sum(last) / len(last)


def last_by_phase(records: Iterable[Mapping], name: str) -> dict[int, float]:
    """The last value of a scalar in each phase in which it was logged."""
    return {record["phase"]: record[name] for record in records if record.get(name) is not None}
