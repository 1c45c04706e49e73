"""Reading lists, captions and JSON, with errors that name flag, file and line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from _common.problems import Problems


def need_file(path: Path, flag: str) -> Path:
    """Returns ``path`` or raises ``ValueError`` naming the flag."""
    if not path.is_file():
        raise ValueError(f"{flag} {path} {'is a folder, not a file' if path.is_dir() else 'does not exist'}")
    return path


def need_folder(path: Path, flag: str) -> Path:
    """Returns ``path`` or raises ``ValueError`` naming the flag: no folder there, or nothing in it."""
    if not path.is_dir():
        raise ValueError(f"{flag} {path} {'is not a folder' if path.exists() else 'does not exist'}")
    if not any(path.iterdir()):
        raise ValueError(f"{flag} {path} is an empty folder")
    return path


def read_lines(path: Path, flag: str) -> Iterator[tuple[int, str]]:
    """Numbered lines of a UTF-8 file, without their ends; blank ones and a byte-order mark are skipped.

    Only line feeds end a line (carriage returns before them go too): captions may hold other separators.
    """
    need_file(path, flag)
    try:
        with open(path, encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise not_utf8(path, flag, error) from error
    except OSError as error:
        raise ValueError(f"cannot read {flag} {path}: {error.strerror}") from error


def read_text(path: Path, flag: str) -> str:
    """Reads a UTF-8 file (a byte-order mark is dropped)."""
    try:
        return need_file(path, flag).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise not_utf8(path, flag, error) from error
    except OSError as error:
        raise ValueError(f"cannot read {flag} {path}: {error.strerror}") from error


def not_utf8(path: Path, flag: str, error: UnicodeDecodeError) -> ValueError:
    """The error for a text file in another encoding, with the command that converts it."""
    with open(path, "rb") as file:
        utf16 = file.read(2) in (b"\xff\xfe", b"\xfe\xff")
    encoding = "UTF-16" if utf16 else "LATIN1"
    guess = "it looks like UTF-16" if utf16 else "perhaps it is Latin-1"
    return ValueError(
        f"{flag} {path} is not UTF-8 text ({error}): {guess}; "
        f"convert it with `iconv -f {encoding} -t UTF-8 {path.name} > {path.stem}.utf8{path.suffix}`"
    )


def read_json(path: Path, flag: str) -> object:
    """Reads a JSON file."""
    try:
        return json.loads(read_text(path, flag))
    except json.JSONDecodeError as error:
        raise ValueError(f"{flag} {path} is not valid JSON: {error}") from error


def read_json_lines(path: Path, flag: str) -> Iterator[tuple[int, dict]]:
    """Numbered JSON objects of a file that has one a line."""
    for number, line in read_lines(path, flag):
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{flag} {path} line {number} is not valid JSON ({error}): is the file cut off, or not JSON lines?"
            ) from error
        if not isinstance(entry, dict):
            raise ValueError(f"{flag} {path} line {number} is not a JSON object: {line[:80]!r}")
        yield number, entry


def read_names(path: Path, flag: str) -> list[str]:
    """Reads a list of image names, one a line; blank lines are skipped."""
    names = [line.strip() for _, line in read_lines(path, flag)]
    if not names:
        raise ValueError(f"{flag} {path} lists no image")
    return names


def clean_captions(name: str, captions: Iterable[str], problems: Problems) -> list[str]:
    """Strips captions and drops empty ones; repeated ones are counted and kept, for scores count all captions."""
    kept: list[str] = []
    for caption in captions:
        caption = caption.strip()
        if not caption:
            problems.add("empty caption (dropped)", name)
            continue
        if caption in kept:
            problems.add("duplicate caption of the same image (kept)", name)
        kept.append(caption)
    return kept


def with_captions(captions: dict[str, list[str]], problems: Problems) -> dict[str, list[str]]:
    """The images of ``captions`` that keep a caption once cleaned; the others are lost."""
    selected: dict[str, list[str]] = {}
    for name, texts in captions.items():
        texts = clean_captions(name, texts, problems)
        if texts:
            selected[name] = texts
        else:
            problems.add("image without a caption", name, lost=True)
    return selected
