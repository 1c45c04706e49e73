"""Reading lists, captions and JSON, with errors that name flag, file and line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from _common.problems import Problems
from bitgen.data.captions import LONGEST, tidy, valid_unicode
from bitgen.guards import json_files
from bitgen.guards.json_files import BadJson, parse_json
from bitgen.guards.printable import printable

_MOST_JSON = 1 << 32  # bytes; the largest lists of captions in one JSON file have 1.5e9
_LONGEST_LINE = 1 << 30  # characters; whole corpora stand on one line, but a device that never ends is no file


def need_file(path: Path, flag: str) -> Path:
    """Returns ``path`` or raises ``ValueError`` naming the flag."""
    if not path.is_file():
        kind = "is a folder, not a file" if path.is_dir() else "is not a regular file"
        raise ValueError(f"{flag} {path} {kind if path.exists() else 'does not exist'}")
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
            number = 0
            while line := file.readline(_LONGEST_LINE):
                number += 1
                if len(line) == _LONGEST_LINE:
                    raise ValueError(f"{flag} {path} line {number} has more than {_LONGEST_LINE:,} characters")
                if line.strip():
                    yield number, line.rstrip("\r\n")
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
    """Reads a JSON file; ``NaN``, which programs write for a missing value, becomes null."""
    try:
        return json_files.read_json(need_file(path, flag), object, most=_MOST_JSON, nan_is_null=True)
    except BadJson as error:
        if isinstance(error.__cause__, UnicodeDecodeError):
            raise not_utf8(path, flag, error.__cause__) from error
        raise ValueError(f"{flag} {path} is not valid JSON: {error}") from error
    except OSError as error:
        raise ValueError(f"cannot read {flag} {path}: {error.strerror}") from error


def read_json_lines(path: Path, flag: str) -> Iterator[tuple[int, dict]]:
    """Numbered JSON objects of a file that has one a line; ``NaN`` becomes null."""
    for number, line in read_lines(path, flag):
        try:
            yield number, parse_json(line, dict, nan_is_null=True)
        except BadJson as error:
            where = f"{flag} {path} line {number}"
            if error.__cause__ is None:
                raise ValueError(f"{where} is not a JSON object: {error}") from error
            raise ValueError(f"{where} is not valid JSON ({error}): is the file cut off, or not JSON lines?") from error


def read_names(path: Path, flag: str) -> list[str]:
    """Reads a list of image names, one a line; blank lines are skipped."""
    names = [line.strip() for _, line in read_lines(path, flag)]
    if not names:
        raise ValueError(f"{flag} {path} lists no image")
    return names


def clean_captions(name: str, captions: Iterable[str], problems: Problems) -> list[str]:
    """Tidies captions and drops empty ones; repeated ones are counted and kept, for scores count all captions."""
    kept: list[str] = []
    for caption in captions:
        text = tidy(caption)
        if not text:
            problems.add("empty caption (dropped)", name)
            continue
        _count_changes(name, caption.strip(), text, problems)
        if text in kept:
            problems.add("duplicate caption of the same image (kept)", name)
        kept.append(text)
    return kept


def _count_changes(name: str, caption: str, text: str, problems: Problems) -> None:
    if text == caption:
        return
    if valid_unicode(caption) != caption:
        problems.add("caption that is no valid Unicode (what is broken became U+FFFD)", name)
    elif len(caption) > LONGEST:
        problems.add(f"caption of more than {LONGEST:,} characters (cut)", name)
    else:
        problems.add("caption with line breaks, control characters or runs of spaces (one space each)", name)


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


def shown(value: object) -> str:
    """A value from a file as a message shows it."""
    return printable(repr(value), 80)
