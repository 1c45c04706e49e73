"""Results of an evaluation that is still running, kept by folder, so that it goes on where it was interrupted."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from bitgen.machine.files import file_hash, write_whole

logger = logging.getLogger(__name__)

# Raise it when log-probabilities, figures or predictions come out otherwise than before: what is kept is then evaluated
# anew, whether by src/evaluate.py or src/submit.py. No test can know when (CONTRIBUTING.md, "Golden runs").
EDITION = 2
# What decides what a model answers: weights, settings, tokenizer, code. Not the card.
_COUNTS = (".safetensors", ".bin", ".json", ".txt", ".model", ".py")
_CHECKPOINT = re.compile(r"chck_\d+M")


def fingerprint(*parts: str | Path) -> str:
    """SHA-256 over texts, and over names and contents of files and of all files in folders (``Path``).

    Folders of earlier checkpoints (``chck_1M``) within a folder do not count: a model's results are not theirs.

    Raises:
        ValueError: there is no such file or folder, or it cannot be read.
    """
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            sha.update(f"text {part!r}\n".encode())
            continue
        try:
            files = sorted(_files_of(part)) if part.is_dir() else [part]
            for path in files:
                name = path.relative_to(part).as_posix()
                sha.update(f"file {name!r} {file_hash(path)}\n".encode())
        except OSError as error:
            raise ValueError(f"{part} cannot be read ({error.strerror or error}); check the path") from error
    return sha.hexdigest()


def fingerprint_of_files(folder: Path) -> str:
    """SHA-256 over the names and contents of the files that a model's answers depend on.

    Raises:
        ValueError: there is no such folder, or a file cannot be read.
    """
    try:
        files = [path for path in folder.iterdir() if path.suffix in _COUNTS and path.is_file() and path.name[0] != "."]
    except OSError as error:
        raise ValueError(f"{folder} cannot be read ({error.strerror or error}); check the path") from error
    return fingerprint(*(part for path in sorted(files) for part in (path.name, path)))


def _files_of(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.is_file():
            yield path
        elif not _CHECKPOINT.fullmatch(path.name):
            yield from _files_of(path)


class KeptResults:
    """A folder of JSON files, one for each name, each of which counts only with the fingerprint it was kept under."""

    def __init__(self, folder: str | Path, mark: str) -> None:
        """``mark``: the :func:`fingerprint` of everything that the results depend on: model, data, rules."""
        self.folder, self.mark = Path(folder), mark

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def remove(self, name: str) -> None:
        """What was kept under this name, and the folder if nothing else is in it."""
        with suppress(OSError):
            self._path(name).unlink(missing_ok=True)
            self.folder.rmdir()

    def get(self, name: str) -> Any | None:
        """What was kept under this name; None where nothing was, or of other files, or where it is damaged."""
        path = self._path(name)
        try:
            found = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            logger.warning("%s cannot be read (%s): it is computed again", path, type(error).__name__)
            return None
        if not isinstance(found, dict) or found.get("fingerprint") != self.mark or "kept" not in found:
            logger.info("%s is of other files: it is computed again", path)
            return None
        return found["kept"]

    def put(self, name: str, value: Any) -> None:
        """Keep JSON values, NaN among them.

        Raises:
            ValueError: it cannot be written.
        """
        path = self._path(name)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror or error
            raise ValueError(f"{self.folder}: cannot make it ({reason}); give another folder") from error
        write_whole(path, json.dumps({"fingerprint": self.mark, "kept": value}).encode())
