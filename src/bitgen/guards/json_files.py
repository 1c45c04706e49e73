"""JSON from files and servers: parsed, and of the expected shape, or one error that says what is wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from bitgen.guards.printable import printable
from bitgen.guards.regular_files import BadFile, read_regular_file

Found = TypeVar("Found")
Shape = Mapping[str, type | tuple[type, ...]]
MOST_BYTES = 1 << 30


class BadJson(ValueError):
    """A text that is no JSON, or JSON of another shape. The message does not name the file; the caller does."""


def parse_json(text: str | bytes, kind: type[Found], keys: Shape | None = None, nan_is_null: bool = False) -> Found:
    """Parse a JSON text whose top is of ``kind`` (``object``: of any).

    Args:
        nan_is_null: ``NaN`` becomes null, as programs write a missing value of a table; else it is an error.
        keys: for an object: the keys it must have, and the types of their values. A bool is no int here.

    Raises:
        BadJson: it is no JSON, nested too deeply, not UTF-8, holds numbers that are not finite, or has another shape.
    """
    try:
        constant = _nan_as_null if nan_is_null else _not_finite
        found = json.loads(text, parse_constant=constant, parse_float=_finite, parse_int=_integer)
    except RecursionError as error:
        raise BadJson("it is nested too deeply") from error
    except BadJson:
        raise
    except ValueError as error:  # also UnicodeDecodeError
        raise BadJson(f"it is no JSON ({printable(error, 200)})") from error
    if not isinstance(found, kind):
        raise BadJson(f"it holds {_named(found)} where {_NAMES[kind]} should be")
    if keys is not None:
        assert isinstance(found, dict)
        check_keys(found, keys)
    return found


def check_keys(found: Mapping[str, Any], keys: Shape) -> None:
    """Raises :class:`BadJson` unless ``found`` has these ``keys`` with values of these types."""
    for key, types in keys.items():
        if key not in found:
            raise BadJson(f"it has no {key!r}")
        value, allowed = found[key], types if isinstance(types, tuple) else (types,)
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
            wanted = " or ".join(_NAMES[each] for each in allowed)
            raise BadJson(f"its {key!r} is {_named(value)} where {wanted} should be")


def read_json(
    path: str | Path,
    kind: type[Found],
    keys: Shape | None = None,
    most: int = MOST_BYTES,
    nan_is_null: bool = False,
) -> Found:
    """:func:`parse_json` of a regular file of at most ``most`` bytes.

    Raises:
        OSError: it cannot be read.
        BadJson: as :func:`parse_json`; also for a file that is too large, or no regular file.
    """
    try:
        content = read_regular_file(path, most)
    except BadFile as error:
        raise BadJson(str(error)) from error
    return parse_json(content, kind, keys, nan_is_null)


_NAMES = {
    dict: "an object",
    list: "a list",
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


def _named(value: object) -> str:
    return _NAMES.get(type(value), type(value).__name__)


def _not_finite(text: str) -> float:
    raise BadJson(f"{text} is no number of JSON")


def _nan_as_null(text: str) -> None:
    if text != "NaN":
        _not_finite(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise BadJson(f"{printable(text, 30)} is too large a number")
    return value


def _integer(text: str) -> int:
    if len(text) > 40:  # int() of thousands of digits takes long; tokenizers write 10^30 where texts have no limit
        raise BadJson(f"{printable(text, 30)} is too large a number")
    return int(text)
