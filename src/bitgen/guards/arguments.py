"""A command line's parser, whose messages cannot steer a terminal, whatever the command line says."""

from __future__ import annotations

import argparse
from typing import NoReturn

from bitgen.guards.printable import printable


class Parser(argparse.ArgumentParser):
    """argparse's, but a flag is never abbreviated, and what is quoted of the command line is printable."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **options})  # type: ignore[arg-type]  # passed on as given

    def error(self, message: str) -> NoReturn:
        super().error(printable(message, 2000))
