"""What became of every URL: images in a work folder and a journal beside them, so that a restart goes on."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from bitgen.guards.json_files import BadJson, parse_json
from bitgen.machine.files import replacing
from bitgen.machine.locks import exclusive

_PARTIAL = ".part"
_ENTRY = {"url": str, "size": int, "reason": str, "detail": str, "transient": bool}


class Outcome(NamedTuple):
    """What became of one URL: ``size`` bytes of that ``digest`` stored, or the ``reason`` (empty when stored) why not.

    ``transient`` says that the reason may be gone another day: a timeout, a server that is down.
    """

    url: str
    size: int = 0
    reason: str = ""
    detail: str = ""
    transient: bool = False
    digest: str = ""


def _digest(payload: bytes) -> str:
    return hashlib.blake2b(payload, digest_size=16).hexdigest()


class Journal:
    """The images fetched so far, ``images/ab/<hash of the URL>.jpg``, and ``journal.jsonl``: one outcome a line.

    A line is written after its image has its final name, and a line cut off by a crash is dropped, so whatever the
    journal calls stored is whole; an image that is no longer as long as its line says is fetched again.

    Args:
        folder: made if absent; this journal's alone until :meth:`close`. ``ValueError`` when another process has it.
        settings: how images are stored; the journal's first line. ``ValueError`` when the folder has other ones.
    """

    def __init__(self, folder: Path, settings: dict) -> None:
        self.folder = folder
        self.outcomes: dict[str, Outcome] = {}
        path = folder / "journal.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = ExitStack()
        remedy = "Wait until that is done, or name another --work."
        self._lock.enter_context(exclusive(folder / ".lock", f"The work folder {folder}", remedy))
        for left in folder.glob(f"images/*/*{_PARTIAL}"):  # of a process that was killed: this one holds the lock
            left.unlink(missing_ok=True)
        found = self._read(path) if path.exists() else None
        if found is not None and found != settings:
            raise ValueError(
                f"{folder} holds images fetched with {found}, not with {settings}; "
                "use those settings, another --work, or remove that folder"
            )
        self._file = open(path, "a", encoding="utf-8", buffering=1)  # line-buffered: a killed process loses no line
        if found is None:
            self._write(settings)

    def _read(self, path: Path) -> dict | None:
        """Reads the outcomes and returns the settings, or None when not even they were written."""
        settings, whole = None, 0
        with open(path, "rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                try:
                    entry = parse_json(line, dict, None if settings is None else _ENTRY)
                    if settings is None:
                        settings = entry
                    else:
                        self.outcomes[entry["url"]] = Outcome(
                            **{field: entry[field] for field in _ENTRY}, digest=str(entry.get("digest", ""))
                        )
                except BadJson as error:
                    raise ValueError(f"{path} is damaged ({error}); remove {self.folder} to start anew") from error
                whole += len(line)
        os.truncate(path, whole)
        return settings

    def _write(self, entry: dict) -> None:
        self._file.write(json.dumps(entry) + "\n")

    def add(self, outcome: Outcome) -> None:
        """Notes an outcome, on disk and in memory."""
        self._write(outcome._asdict())
        self.outcomes[outcome.url] = outcome

    def close(self) -> None:
        """Closes the file and lets the folder go."""
        self._file.close()
        self._lock.close()

    def path(self, url: str) -> Path:
        """Where the image of ``url`` is, or goes."""
        name = hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        return self.folder / "images" / name[:2] / f"{name}.jpg"

    def store(self, url: str, payload: bytes) -> Outcome:
        """Writes the image of ``url``, whole or not at all; the outcome is still to be added."""
        path = self.path(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(_PARTIAL)
        partial.write_bytes(payload)
        os.replace(partial, path)
        return Outcome(url, size=len(payload), digest=_digest(payload))

    def _stored(self, outcome: Outcome) -> bool:
        try:
            return self.path(outcome.url).stat().st_size == outcome.size
        except FileNotFoundError:
            return False

    def to_fetch(self, urls: list[str], retry_failed: bool) -> list[str]:
        """Those of ``urls`` that are not here: new, failed for a transient reason, lost; failed for good on demand."""
        wanted = []
        for url in urls:
            outcome = self.outcomes.get(url)
            if outcome is None:
                wanted.append(url)
            elif outcome.reason:
                if outcome.transient or retry_failed:
                    wanted.append(url)
            elif not self._stored(outcome):
                wanted.append(url)
        return wanted

    def refuse_shared(self, urls: list[str]) -> None:
        """Makes failures of those of ``urls`` that brought one and the same picture: hosts answer so for dead links.

        Not in the file: of a shorter list, one of them alone may be a picture of its own.
        """
        stored = [url for url in urls if url in self.outcomes and not self.outcomes[url].reason]
        of = {url: self.outcomes[url].digest or _digest(self.path(url).read_bytes()) for url in stored}
        count = Counter(of.values())
        for url, digest in of.items():
            if count[digest] > 1:
                reason, detail = "one picture for several URLs", f"{count[digest]} URLs bring picture {digest[:8]}"
                self.outcomes[url] = Outcome(url, reason=reason, detail=detail)

    def write_failures(self, path: Path, urls: list[str]) -> None:
        """Writes those of ``urls`` that failed as CSV ``url,reason,detail,transient``; removes an outdated file."""
        failed = [self.outcomes[url] for url in urls if url in self.outcomes and self.outcomes[url].reason]
        if not failed:
            path.unlink(missing_ok=True)
            return
        with replacing(path) as partial, open(partial, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["url", "reason", "detail", "transient"])
            writer.writerows((o.url, o.reason, o.detail, o.transient) for o in failed)
