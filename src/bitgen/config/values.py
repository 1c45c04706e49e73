"""From what a person wrote (a YAML file, a flag) to typed values, or to an error that says what to write."""

from __future__ import annotations

import difflib
import math
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from bitgen.config.fields import Setting
from bitgen.guards.printable import printable

_BOOLS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_NONES = ("none", "null")


class ConfigError(ValueError):
    """A setting that a person has to change; the message names it and says what to write instead."""


def suggest(name: str, known: Iterable[str]) -> str:
    """``" Did you mean X?"`` for the nearest known name, or nothing when none is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {near[0]}?" if near else ""


def split_optional(hint: Any) -> tuple[Any, bool]:
    """``int | None`` -> ``(int, True)``; any other hint -> ``(hint, False)``."""
    if get_origin(hint) in (Union, types.UnionType):
        inner = [part for part in get_args(hint) if part is not type(None)]
        assert len(inner) == 1, f"a setting has one type, not {hint}"
        return inner[0], True
    return hint, False


def coerce(hint: Any, value: Any, where: str) -> Any:
    """``value`` as the type ``hint`` of its field.

    Text is read as the field's type, because YAML 1.1 takes ``2e-4`` for a string and flags are always text.

    Args:
        hint: ``bool``, ``int``, ``float``, ``str``, a ``Literal`` of strings, or one of them ``| None``.
        where: what the error message starts with, as ``--batch_size`` or ``my.yaml: training.batch_size``.

    Raises:
        ConfigError: the value is no such thing.
    """
    hint, optional = split_optional(hint)
    if value is None or (isinstance(value, str) and optional and value.strip().lower() in _NONES):
        if optional:
            return None
        raise ConfigError(f"{where} has no value; write {_describe(hint)}, or leave the setting out.")
    if get_origin(hint) is Literal:
        return _choice(get_args(hint), value, where)
    reader = {bool: _bool, int: _int, float: _float, str: _str}[hint]
    return reader(value, where)


def _describe(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(get_args(hint))
    return {bool: "true or false", int: "a whole number", float: "a number, as 0.1 or 2e-4", str: "text"}[hint]


def shown(value: Any) -> str:
    """A value that a person wrote, for a message: short, on one line, and a list or mapping by its kind alone."""
    if isinstance(value, str):
        return f"'{printable(value, 80)}'"
    if isinstance(value, int) and value.bit_length() > 100:  # Python refuses to print thousands of digits
        return "a number of more than 30 digits"
    return _kind(value)


def _wrong(where: str, value: Any, hint: Any) -> ConfigError:
    return ConfigError(f"{where} is {shown(value)}; write {_describe(hint)}.")


def _bool(value: Any, where: str) -> bool:
    if isinstance(value, (bool, int, str)) and str(value).strip().lower() in _BOOLS:
        return _BOOLS[str(value).strip().lower()]
    raise _wrong(where, value, bool)


def _float(value: Any, where: str) -> float:
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            raise _wrong(where, value, float) from None
        if math.isfinite(number):
            return number
    raise _wrong(where, value, float)


def _int(value: Any, where: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            pass  # 1e4 is a whole number too
    try:
        number = _float(value, where)
    except ConfigError:
        raise _wrong(where, value, int) from None
    if number.is_integer():
        return int(number)
    raise _wrong(where, value, int)


def _str(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{where} is {shown(value)}; write text, in quotes where it looks like a number.")
    if not value.strip():
        raise ConfigError(f"{where} is empty; write a value, or leave the setting out.")
    return str(Path(value).expanduser()) if value.startswith("~/") else value


def _choice(choices: tuple[str, ...], value: Any, where: str) -> str:
    text = str(value).strip() if isinstance(value, str) else value
    if text in choices:
        return text
    hint = suggest(value, choices) if isinstance(value, str) else ""
    raise ConfigError(f"{where} is {shown(value)}; write one of {', '.join(choices)}.{hint}")


# Of a file of settings, written out: of bytes, and of values where each alias stands for all that it names.
_MOST_BYTES, _MOST_PARTS = 1 << 20, 50_000


def _parts(node: yaml.Node, counted: dict[int, int]) -> int:
    """Values in a node, each alias counted as what it stands for; one that holds itself is endless."""
    if id(node) not in counted:
        counted[id(node)] = _MOST_PARTS + 1  # until it is known
        inside = node.value if isinstance(node, (yaml.SequenceNode, yaml.MappingNode)) else []
        children = [child for each in inside for child in (each if isinstance(each, tuple) else (each,))]
        counted[id(node)] = 1 + sum(_parts(child, counted) for child in children)
    return counted[id(node)]


class _StrictLoader(yaml.SafeLoader):
    """YAML that refuses a key written twice, where the standard loader would silently keep the last, and a text that
    grows beyond measure: aliases of aliases double it with each line."""

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None and _parts(node, {}) > _MOST_PARTS:
            raise yaml.constructor.ConstructorError(
                problem=f"its aliases make it more than {_MOST_PARTS:,} values", problem_mark=node.start_mark
            )
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode) and key_node.tag != "tag:yaml.org,2002:merge":
                if key_node.value in seen:
                    raise yaml.constructor.ConstructorError(
                        problem=f"the key {key_node.value!r} is written twice; keep one of them",
                        problem_mark=key_node.start_mark,
                    )
                seen.add(key_node.value)
        return super().construct_mapping(node, deep=deep)


# YAML 1.1 reads on, off, yes and no as booleans, but `feature_cache: off` is a word. ``_bool`` understands all of them.
_StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if first in "tTfF" or not tag.endswith(":bool")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(path: str | Path) -> Any:
    """The content of a YAML file; ``{}`` for an empty one.

    Raises:
        ConfigError: no such file, a folder, unreadable, not UTF-8, not YAML, or a key written twice.
    """
    path = Path(path)
    if path.is_dir():
        inside = path / "config.yaml"
        remedy = f"write {inside}" if inside.is_file() else "write the path of a YAML file"
        raise ConfigError(f"The configuration {path} is a folder; {remedy}.")
    try:
        with open(path, "rb") as file:  # not by its size: it may be a pipe
            content = file.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        siblings = [str(sibling) for sibling in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        raise ConfigError(f"There is no configuration file {path}.{suggest(str(path), siblings)}") from None
    except OSError as error:
        raise ConfigError(f"The configuration {path} cannot be read: {error.strerror}.") from None
    return parse_yaml(content, str(path))


def parse_yaml(content: bytes, path: str) -> Any:
    """The content of a YAML file that was read already; ``path`` is for messages. Otherwise as :func:`read_yaml`."""
    if len(content) > _MOST_BYTES:
        raise ConfigError(f"The configuration {path} has more than {_MOST_BYTES:,} bytes; name a file of settings.")
    try:
        found = yaml.load(content.decode("utf-8"), Loader=_StrictLoader)
    except UnicodeDecodeError:
        raise ConfigError(f"The configuration {path} is not UTF-8 text; save it as UTF-8 YAML.") from None
    except RecursionError:
        raise ConfigError(f"The configuration {path} is nested too deeply; write groups of settings.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigError(f"The configuration {path}{line} is not valid YAML: {printable(problem)}.") from None
    except ValueError as error:  # a date or number that YAML recognises and Python refuses
        raise ConfigError(f"The configuration {path} is not valid YAML: {printable(error)}.") from None
    return {} if found is None else found


def flatten(
    content: Any, groups: Mapping[str, Mapping[str, Setting]], source: str, retired: Mapping[str, Any]
) -> dict[str, Any]:
    """Grouped settings -> flat, typed ones.

    Args:
        content: what the YAML file held, ``{group: {field: value}}``; groups and fields may be left out.
        groups: group -> field -> what its type says.
        source: the file's name, for messages.
        retired: fields that are gone, and the value at which they did nothing: these are passed over.

    Raises:
        ConfigError: an unknown group or field, a field under the wrong group, or a value of the wrong type.
    """
    if not isinstance(content, Mapping):
        raise ConfigError(f"{source} must hold groups of settings ({', '.join(groups)}), not {_kind(content)}.")
    owner = {name: group for group, fields in groups.items() for name in fields}
    flat: dict[str, Any] = {}
    for group, values in content.items():
        if group not in groups:
            if group in owner:
                raise ConfigError(f"{source}: {group} stands outside its group; put it under {owner[group]}:.")
            known = suggest(str(group), [*groups, *owner])
            raise ConfigError(f"{source}: there is no group {shown(group)}.{known} Groups: {', '.join(groups)}.")
        if values is None:
            continue
        if not isinstance(values, Mapping):
            raise ConfigError(f"{source}: {group} must hold settings (name: value), not {_kind(values)}.")
        for name, value in values.items():
            if name not in groups[group]:
                if name in retired and value == retired[name]:
                    continue
                if name in owner:
                    raise ConfigError(f"{source}: {name} belongs under {owner[name]}:, not under {group}:.")
                raise ConfigError(f"{source}: {group} has no setting {shown(name)}.{suggest(str(name), owner)}")
            field = groups[group][name]
            text = field.written_as.text(value) if field.written_as is not None else value
            flat[name] = coerce(field.hint, text, f"{source}: {group}.{name}")
    return flat


def _kind(value: Any) -> str:
    kinds: dict[type, str] = {list: "a list", dict: "a mapping", tuple: "a list", set: "a set", str: "text"}
    return kinds.get(type(value), printable(repr(value), 80))
