"""The configuration of a run: YAML and flat flags in, one checked :class:`Config` out.

A flag beats the file, and the file beats the default. Every mistake a person can make here is a :class:`ConfigError`
that names the setting and says what to write instead.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

import yaml

from bitgen.config.checks import ENTRY, check_launch, check_settings
from bitgen.config.settings import (
    DataSettings,
    LoraSettings,
    MemorySettings,
    ModelSettings,
    ObjectiveSettings,
    OutputSettings,
    TrainingSettings,
    VisionSettings,
)
from bitgen.config.values import ConfigError, coerce, flatten, read_yaml, split_optional, suggest

__all__ = ["Config", "ConfigError", "exit_on_config_error", "load_config", "parse_config", "save_config"]

CONFIG_FILE = "config.yaml"
DEFAULT_CONFIG = Path(__file__).resolve().parents[3] / "configs" / "stage1.yaml"

_DESCRIPTION = """\
Train BitGen's stage 1, vision and language together, in two phases: first with the LoRA adapters
frozen, then with them. Every setting below is a flag, and a line in a YAML file under its group.
A flag beats the file, and the file beats the default."""

_EXAMPLES = f"""\
examples:
  python {ENTRY} --config configs/quickstart.yaml
      train on built-in scenes in minutes: no data, no GPU, no download
  python {ENTRY} --config configs/quickstart.yaml --num_epochs 8 --queue_size 2048
      the same with two settings changed
  python {ENTRY} --train_data data/my/train --val_data data/my/val
      DINOv2-base on your own images, with the defaults of configs/stage1.yaml
  python {ENTRY} --resume auto
      go on where the run in output_dir stopped
  torchrun --nproc_per_node=8 {ENTRY} --use_ddp True --num_gpus 8 --batch_size 64
      the same on eight GPUs

Settings that turn something on or off take True or False. 'none' empties a setting whose default is None."""


@dataclass
class Config:
    """All settings of a run, one attribute a concern; the groups' own docstrings and help texts say the rest."""

    vision: VisionSettings = field(default_factory=VisionSettings)
    lora: LoraSettings = field(default_factory=LoraSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    memory: MemorySettings = field(default_factory=MemorySettings)
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    data: DataSettings = field(default_factory=DataSettings)
    output: OutputSettings = field(default_factory=OutputSettings)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], source: str = "The configuration") -> Config:
        """Build from grouped settings, as :meth:`to_dict` gives them; what is left out keeps its default.

        Raises:
            ConfigError: unknown groups or settings, or values of the wrong type; ``source`` names their origin.
        """
        return cls.from_flat(flatten(content, _hints(), source))

    @classmethod
    def from_flat(cls, values: Mapping[str, Any]) -> Config:
        """Build from ``{setting: value}`` without groups.

        Raises:
            ConfigError: an unknown setting, or a value of the wrong type.
        """
        hints = _hints()
        owner = {name: group for group, fields in hints.items() for name in fields}
        config = cls()
        for name, value in values.items():
            if name not in owner:
                raise ConfigError(f"There is no setting {name!r}.{suggest(name, owner)}")
            setattr(getattr(config, owner[name]), name, coerce(hints[owner[name]][name], value, name))
        return config

    def replace(self, **values: Any) -> Config:
        """A copy with some settings changed, each by its flat name."""
        return Config.from_flat({**self.flat(), **values})

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """``{group: {setting: value}}`` of plain values, ready for YAML."""
        return dataclasses.asdict(self)

    def flat(self) -> dict[str, Any]:
        """``{setting: value}`` over all groups; names are unique."""
        return {name: value for group in self.to_dict().values() for name, value in group.items()}

    def validate(self, world_size: int | None = None) -> None:
        """Stop here with what could not run.

        Args:
            world_size: processes over all machines; None asks the launcher's environment (1 without a launcher).

        Raises:
            ConfigError: the first setting that is out of range, contradicts another or does not fit this machine.
        """
        launched = "WORLD_SIZE" in os.environ or (world_size or 1) > 1
        check_settings(self, defaults=Config())
        check_launch(self, launcher_world_size() if world_size is None else world_size, launched)


def launcher_world_size() -> int:
    """Processes that the launcher says it started, over all machines; 1 without a launcher.

    Raises:
        ConfigError: the launcher's WORLD_SIZE is no number.
    """
    return coerce(int, os.environ.get("WORLD_SIZE", 1), "The launcher's environment variable WORLD_SIZE")


def _groups() -> dict[str, type]:
    return get_type_hints(Config)


def _hints() -> dict[str, dict[str, Any]]:
    """Group -> setting -> type hint. Not ``Field.type``: HfArgumentParser rewrites it (``int | None`` to ``int``)."""
    return {group: get_type_hints(settings) for group, settings in _groups().items()}


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults after each help text; description and examples as they are written."""


def _build_parser() -> argparse.ArgumentParser:
    """The parser of all flags, made by ``HfArgumentParser`` from the dataclasses.

    It leaves every value as text: :func:`coerce` reads flags and YAML alike, with one kind of error message.
    """
    from transformers import HfArgumentParser  # here, because it takes a second that reading a file need not

    class Parser(HfArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise ConfigError(f"{message.removeprefix('argument ')}; write --name value. See --help.")

    parser = Parser(
        list(_groups().values()),
        usage=f"python {ENTRY} [--config FILE] [--SETTING VALUE ...]",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        action="append",
        default=argparse.SUPPRESS,
        metavar="FILE",
        help="YAML file of settings; without it configs/stage1.yaml, the defaults",
    )
    hints = {name: hint for fields in _hints().values() for name, hint in fields.items()}
    for action in parser._actions:
        if action.dest not in hints:
            continue
        # --batch-size is understood too, but help and messages show one spelling, the one of the YAML files.
        action.option_strings = action.option_strings[:1]
        if action.nargs != 0:  # 0 is the --no_<setting> form
            action.type, action.choices, action.metavar = None, None, _metavar(hints[action.dest])
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


def parse_config(argv: list[str] | None = None) -> Config:
    """Read the command line, and the YAML file it names, into a checked configuration.

    Args:
        argv: the arguments without the program's name; None takes the process's own.

    Raises:
        ConfigError: anything that could not run; entries wrap this in :func:`exit_on_config_error`.
        SystemExit: after ``--help``.
    """
    argv = sys.argv[1:] if argv is None else argv
    hints = {name: hint for fields in _hints().values() for name, hint in fields.items()}
    parser = _build_parser()
    found, unknown = parser.parse_known_args(argv)
    if unknown:
        raise _unknown(unknown, [*hints, "config"])
    files = getattr(found, "config", [])
    if len(files) > 1:
        raise ConfigError(f"--config is given {len(files)} times ({', '.join(files)}); name one file.")
    # A package installed without its repository has no configs folder; the dataclasses hold the same values.
    base = load_config(files[0]) if files else load_config(DEFAULT_CONFIG) if DEFAULT_CONFIG.is_file() else Config()
    parser.set_defaults(**base.flat())
    values = vars(parser.parse_args(argv))
    config = Config.from_flat({name: coerce(hint, values[name], f"--{name}") for name, hint in hints.items()})
    config.validate()
    return config


def load_config(path: str | Path) -> Config:
    """Read a YAML file. Only types are checked: a checkpoint's file must load on a machine that could not train it.

    Raises:
        ConfigError: the file is missing, a folder or broken, or holds unknown settings or wrong types.
    """
    return Config.from_dict(read_yaml(path), source=str(path))


def save_config(config: Config, folder: str | Path) -> Path:
    """Write ``config`` as ``config.yaml`` into ``folder``, which is made when missing; returns the file's path."""
    path = Path(folder) / CONFIG_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(config_text(config), encoding="utf-8")
    return path


def config_text(config: Config) -> str:
    """All settings as YAML."""
    return yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True)


@contextmanager
def exit_on_config_error() -> Iterator[None]:
    """End the program with status 2 and one clean message, instead of a traceback, on a :class:`ConfigError`.

    Of the processes that a launcher started, the first on each machine speaks for the others.
    """
    try:
        yield
    except ConfigError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
