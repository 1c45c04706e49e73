"""A command line's parser, whose messages cannot steer a terminal, whatever the command line says."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn, Protocol

from bitgen.guards.printable import printable


class Parser(argparse.ArgumentParser):
    """argparse's, but a flag is never abbreviated, and what is quoted of the command line is printable."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **options})  # type: ignore[arg-type]  # passed on as given

    def error(self, message: str) -> NoReturn:
        super().error(printable(message, 2000))


class _TakesFlags(Protocol):
    """A parser, or a group of one."""

    def add_argument(self, *names: str, **options: Any) -> argparse.Action: ...


def add_device_flag(parser: _TakesFlags, default: str = "auto") -> None:
    """``--device``, as every command that computes with a model has it; ``machine.devices.choose_device`` reads it."""
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default=default, help="auto: a GPU when there is one (default)"
    )
