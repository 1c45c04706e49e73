"""A kind of run as a dataclass of groups of settings: YAML and flat flags in, one checked configuration out.

A flag beats the file, and the file beats the default. Every mistake a person can make here is a :class:`ConfigError`
that names the setting and says what to write instead.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn, TypeVar, get_args, get_origin, get_type_hints

import yaml

from bitgen.config.fields import Setting, settings_of
from bitgen.config.values import ConfigError, coerce, flatten, parse_yaml, read_yaml, shown, split_optional, suggest
from bitgen.guards.failures import TRACEBACK, explained
from bitgen.guards.printable import printable_lines

CONFIG_FILE = "config.yaml"

AnySchema = TypeVar("AnySchema", bound="Schema")


@dataclasses.dataclass
class Schema:
    """Base of a dataclass whose fields are groups, which are dataclasses of settings (see ``bitgen.config.fields``).

    Names of settings are unique over all groups, so that each is a flag too, and a group's ``_argument_group_name`` is
    the name of its field.
    """

    entry: ClassVar[str] = ""  # the file that a person starts
    description: ClassVar[str] = ""  # of --help, above the settings
    examples: ClassVar[str] = ""  # of --help, below them
    # A YAML file of all defaults, read where no --config is given and the file exists.
    default_file: ClassVar[Path | None] = None
    # Settings that are gone -> the value at which they did nothing, and are passed over.
    retired: ClassVar[Mapping[str, Any]] = {}

    # Settings that trained weights mean nothing without, though they fit: a run that goes on must keep them.
    fixed: ClassVar[tuple[str, ...]] = ()
    # What the held-out score is of: where it changes at a resume, scores of before are not comparable.
    scored_by: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def from_dict(cls: type[AnySchema], content: Mapping[str, Any], source: str = "The configuration") -> AnySchema:
        """Build from grouped settings, as :meth:`to_dict` gives them; what is left out keeps its default.

        Raises:
            ConfigError: unknown groups or settings, or values of the wrong type; ``source`` names their origin.
        """
        return cls.from_flat(flatten(content, groups_of(cls), source, cls.retired))

    @classmethod
    def from_flat(cls: type[AnySchema], values: Mapping[str, Any]) -> AnySchema:
        """Build from ``{setting: value}`` without groups.

        Raises:
            ConfigError: an unknown setting, or a value of the wrong type.
        """
        owner = {name: group for group, settings in groups_of(cls).items() for name in settings}
        known, config = flat_settings_of(cls), cls()
        for name, value in values.items():
            if name not in known:
                raise ConfigError(f"There is no setting {name!r}.{suggest(name, known)}")
            setattr(getattr(config, owner[name]), name, coerce(known[name].hint, value, name))
        return config

    @classmethod
    def load(cls: type[AnySchema], path: str | Path) -> AnySchema:
        """Read a YAML file. Only types are checked: a checkpoint's file must load on a machine that could not train it.

        Raises:
            ConfigError: the file is missing, a folder or broken, or holds unknown settings or wrong types.
        """
        return cls.from_dict(read_yaml(path), source=str(path))

    @classmethod
    def loads(cls: type[AnySchema], content: bytes, path: str | Path) -> AnySchema:
        """As :meth:`load`, of a file that was read already; ``path`` is for messages."""
        return cls.from_dict(parse_yaml(content, str(path)), source=str(path))

    @classmethod
    def parse(cls: type[AnySchema], argv: list[str] | None = None) -> AnySchema:
        """Read the command line, and the YAML file it names, into a checked configuration.

        Args:
            argv: the arguments without the program's name; None takes the process's own.

        Raises:
            ConfigError: anything that could not run; entries wrap this in :func:`exit_on_config_error`.
            SystemExit: after ``--help``.
        """
        argv = sys.argv[1:] if argv is None else argv
        known, parser = flat_settings_of(cls), _build_parser(cls)
        found, unknown = parser.parse_known_args(argv)
        if unknown:
            raise _unknown(unknown, [*known, "config"])
        files = getattr(found, "config", [])
        if len(files) > 1:
            raise ConfigError(f"--config is given {len(files)} times ({', '.join(files)}); name one file.")
        # A package installed without its repository has no such file; the dataclasses hold the same values.
        if not files and cls.default_file is not None and cls.default_file.is_file():
            files = [cls.default_file]
        base = cls.load(files[0]) if files else cls()
        parser.set_defaults(**base.flat())
        values = vars(parser.parse_args(argv))
        config = cls.from_flat(
            {name: coerce(setting.hint, values[name], f"--{name}") for name, setting in known.items()}
        )
        config.validate()
        return config

    def differences(self, content: bytes, path: str | Path) -> dict[str, tuple[Any, Any]]:
        """Settings that differ from a YAML file's content: name -> (the file's value, this one's). What it leaves out
        is passed over. ``path`` is for messages.

        Raises:
            ConfigError: as :meth:`load`.
        """
        kind, now = type(self), self.flat()
        then = flatten(parse_yaml(content, str(path)), groups_of(kind), str(path), kind.retired)
        return {name: (value, now[name]) for name, value in then.items() if value != now[name]}

    def rescored(self, changed: Mapping[str, tuple[Any, Any]]) -> list[str]:
        """Of settings that changed, name -> (before, now), those that make the held-out score one of something else."""
        return [name for name in self.scored_by if name in changed]

    def replace(self: AnySchema, **values: Any) -> AnySchema:
        """A copy with some settings changed, each by its flat name."""
        return type(self).from_flat({**self.flat(), **values})

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """``{group: {setting: value}}`` of plain values, ready for YAML."""
        return dataclasses.asdict(self)

    def to_yaml(self) -> str:
        """The text of a YAML file that :meth:`load` reads back."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)

    def flat(self) -> dict[str, Any]:
        """``{setting: value}`` over all groups; names are unique."""
        return {name: value for group in self.to_dict().values() for name, value in group.items()}

    def validate(self) -> None:
        """Stop here with what could not run.

        Raises:
            ConfigError: the first setting that is out of range or contradicts another.
        """
        known, shipped = flat_settings_of(type(self)), type(self)().flat()
        for name, value in self.flat().items():
            allowed = known[name].range
            if allowed is not None and value is not None and not allowed.holds(value):
                raise ConfigError(f"{name} is {value}, but it must be {allowed.words}. The default is {shipped[name]}.")
            if allowed is not None and value is not None and allowed.most is not None and value > allowed.most:
                most, default = f"{allowed.most:,}", shipped[name]
                raise ConfigError(f"{name} is {shown(value)}, but it can be {most} at most. The default is {default}.")
        self.check()

    def check(self) -> None:
        """Check settings against each other, with a :class:`ConfigError`; a kind of run overrides this."""


def groups_of(schema: type[Schema]) -> dict[str, dict[str, Setting]]:
    """Group -> setting -> what its type says."""
    return _groups_of(schema)  # type: ignore[arg-type]  # mypy takes the class for an instance, which has no hash


@cache
def _groups_of(schema: type[Schema]) -> dict[str, dict[str, Setting]]:
    groups, hints = {}, get_type_hints(schema)
    for field in dataclasses.fields(schema):
        group = hints[field.name]
        assert group._argument_group_name == field.name, f"{group.__name__} is not named {field.name}"
        groups[field.name] = settings_of(group)
    names = [name for settings in groups.values() for name in settings]
    assert len(set(names)) == len(names), f"{schema.__name__} has two settings of one name"
    return groups


def flat_settings_of(schema: type[Schema]) -> dict[str, Setting]:
    """Setting -> what its type says, over all groups."""
    return {name: setting for settings in groups_of(schema).values() for name, setting in settings.items()}


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults after each help text; description and examples as they are written."""


def _build_parser(schema: type[Schema]) -> argparse.ArgumentParser:
    """The parser of all flags, made by ``HfArgumentParser`` from the dataclasses.

    It leaves every value as text: :func:`coerce` reads flags and YAML alike, with one kind of error message.
    """
    from transformers import HfArgumentParser  # here, because it takes a second that reading a file need not

    class Parser(HfArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise ConfigError(f"{message.removeprefix('argument ')}; write --name value. See --help.")

    parser = Parser(
        [get_type_hints(schema)[group] for group in groups_of(schema)],
        usage=f"python {schema.entry} [--config FILE] [--SETTING VALUE ...]",
        description=schema.description,
        epilog=schema.examples,
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    default = schema.default_file
    otherwise = f"{default.parent.name}/{default.name}, the defaults" if default is not None else "the defaults"
    parser.add_argument(
        "--config",
        action="append",
        default=argparse.SUPPRESS,
        metavar="FILE",
        help=f"YAML file of settings; without it {otherwise}",
    )
    known = flat_settings_of(schema)
    for action in parser._actions:
        if action.dest not in known:
            continue
        # --batch-size is understood too, but help and messages show one spelling, the one of the YAML files.
        action.option_strings = action.option_strings[:1]
        if action.nargs != 0:  # 0 is the --no_<setting> form
            action.type, action.choices, action.metavar = None, None, _metavar(known[action.dest].hint)
    return parser


def _metavar(hint: Any) -> str:
    inner, _ = split_optional(hint)
    if get_origin(inner) is Literal:
        return "{" + ",".join(get_args(inner)) + "}"
    return {bool: "BOOL", int: "N", float: "X", str: "TEXT"}[inner]


def _unknown(arguments: list[str], known: list[str]) -> ConfigError:
    flags = [argument for argument in arguments if argument.startswith("-")]
    if not flags:
        return ConfigError(f"{arguments[0]!r} is no flag. Write settings as --name value; see --help.")
    name = flags[0].split("=")[0].lstrip("-").replace("-", "_")
    near = suggest(name, known).replace("mean ", "mean --")
    return ConfigError(f"There is no flag {flags[0].split('=')[0]}.{near} See --help.")


def save_config(config: Schema, folder: str | Path) -> Path:
    """Write ``config`` as ``config.yaml`` into ``folder``, which is made when missing; returns the file's path."""
    path = Path(folder) / CONFIG_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(config.to_yaml(), encoding="utf-8")
    return path


@contextmanager
def exit_on_config_error() -> Iterator[None]:
    """End the program with one clean message instead of a traceback: with status 2 on a :class:`ConfigError`, with 1 on
    what disks, memory and damaged files make libraries raise, with 130 on Ctrl-C (and as shells say it of another
    signal that stopped a run). A mistake in the code keeps its traceback.

    Of the processes that a launcher started, the first on each machine speaks for the others.
    """
    try:
        yield
    except ConfigError as error:
        said, status = printable_lines(error), 2
    except KeyboardInterrupt as error:  # that of a run says what is saved, and which signal it was
        said, status = str(error) or "stopped by Ctrl-C", 128 + getattr(error, "signal", signal.SIGINT)
    except BaseException as error:
        said, status = explained(error) or "", 1
        if not said or os.environ.get(TRACEBACK):
            raise
        said += f" ({TRACEBACK}=1 shows where it happened.)"
    else:
        return
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"error: {said}", file=sys.stderr)
    raise SystemExit(status)
