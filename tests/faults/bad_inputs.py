"""Bad inputs for any entry: bad values by what a flag takes, and what is wrong with how an entry takes one.

An entry is called in this process, as its script calls it. Whatever leaves it but ``SystemExit`` would be a traceback.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bitgen.show.run_logging import FILE_ONLY

LONGEST = 30  # seconds
UNNAMED = "does not name it:"
MOST_MEMORY = 4 << 30  # bytes more than before: what reads without a bound fails, and the machine lives

# ---- what is wrong ----

NUMBERS = ("nan", "inf", "-inf", "1e999", "-1", "", "x", "1,5", "1 2", "\x1b[2J", "None", "[]")
HUGE = "9" * 400  # may mean "all there are": it must only not end in a traceback, and not take for ever
WORDS = ("", "none of these", "../..", "\x1b[2J", "a\nb", "x" * 5000, "\udcff")


def bad_paths_in(folder: Path) -> dict[str, str]:
    """Paths at which no entry finds what it looks for."""
    folder.mkdir()
    (folder / "empty file").write_bytes(b"")
    (folder / "empty folder").mkdir()
    (folder / "bytes").write_bytes(np.random.default_rng(0).bytes(4096))
    (folder / "null.json").write_text("null")
    (folder / "list.json").write_text("[1, 2]")
    (folder / "deep.json").write_text("[" * 100_000)
    (folder / "huge number.json").write_text('{"images": 1e999, "annotations": NaN}')
    (folder / "invalid.txt").write_bytes(b"a.jpg\t\xff\xfe\n\x00")
    (folder / "aliases.yaml").write_text(_aliases())
    (folder / "loop").symlink_to(folder / "loop")
    os.mkfifo(folder / "pipe")
    (folder / "device").symlink_to("/dev/zero")
    (folder / "config.json").write_text('{"model_type": "bitgen"}')
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text('{"model_type": ["bitgen"], "vocab_size": "many"}')
    (folder / "model" / "model.safetensors").write_bytes(b"\xff" * 100)
    (folder / "run").mkdir()
    (folder / "run" / "step-00000001").mkdir()
    (folder / "run" / "step-00000001" / "manifest.json").write_text("[]")
    named = {path.name: str(path) for path in folder.iterdir()}
    named |= {"missing": str(folder / "missing"), "long": str(folder / ("x" * 300))}
    return named | {
        "newline": str(folder / "a\nb"),
        "escape": str(folder / "\x1b[31m"),
        "surrogate": "\udcff",
        "nothing": "",
    }


def _aliases() -> str:
    """600 bytes of YAML that are 10^9 values when they are written out."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    return "\n".join([*lines, "batch_size: *a8"])


class TooLong(BaseException):
    """An entry is not done. Unlike ``TimeoutError`` no error of the system, which an entry takes for a bad file."""


class Entry(NamedTuple):
    """A command: ``good`` arguments as flag -> value, and its flags by what they take."""

    main: Callable[[list[str]], int | None]
    good: dict[str, str]
    paths: tuple[str, ...]
    numbers: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    words_after: tuple[str, ...] = ()


def cases(entry: Entry, paths: dict[str, str]) -> list[tuple[str, str]]:
    """(flag, bad value) of an entry, and what is wrong with the command line itself."""
    # Of a pipe settings are read, as in --config <(...): whoever names one into which nobody writes waits.
    cases = [(f, path) for f in entry.paths for name, path in paths.items() if (f, name) != ("--config", "pipe")]
    cases += [(flag, number) for flag in entry.numbers for number in (*NUMBERS, HUGE)]
    cases += [(flag, word) for flag in entry.words for word in WORDS]
    return [*cases, ("--no_such_flag", "1"), ("--\x1b[2J", "1")]


def command(entry: Entry, good: dict[str, str], flag: str, value: str) -> list[str]:
    words = [value if part == flag else good.get(part, part) for part in entry.words_after]
    given = {**entry.good, flag: value} if flag.startswith("--") else entry.good
    flags = [part for name, text in given.items() for part in (name, good.get(text, text))]
    return [*flags, *words]


def fault_of(main: Callable, argv: list[str], flag: str, value: str) -> str | None:
    """What is wrong with how an entry takes a bad input; None: it says it in one line and ends."""
    said, log = io.StringIO(), io.StringIO()
    handler = logging.StreamHandler(log)
    handler.addFilter(lambda record: not any(hasattr(record, name) for name in FILE_ONLY))  # not for a person
    status: object = 0

    def too_long(*_: object) -> None:
        raise TooLong

    before, limits = signal.signal(signal.SIGALRM, too_long), resource.getrlimit(resource.RLIMIT_AS)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + MOST_MEMORY, limits[1]))
    signal.alarm(LONGEST)
    root, others = logging.getLogger(), logging.getLogger().handlers[:]
    root.handlers[:] = [handler]  # pytest's would carry half characters to the process that reports, which takes none
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            status = main(argv)
    except SystemExit as end:
        status = end.code
    except TooLong:
        return f"not done after {LONGEST} s"
    except BaseException as error:  # a traceback for whoever ran it
        return f"{type(error).__name__}: {str(error)[:200]!r}"
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.signal(signal.SIGALRM, before)
        root.handlers[:] = others
    if status in (0, None):
        return "status 0"
    text = said.getvalue() + log.getvalue()
    last = [line for line in text.splitlines() if line.strip()][-1:]
    if "Traceback" in text or not last:
        return f"says {text[-300:]!r}"
    if not all(character.isprintable() or character in "\n\t" for character in text):
        return f"steers the terminal: {text[-200:]!r}"
    named = (flag.lstrip("-"), value[:20], Path(value).name[:20] if value else "empty")
    if value and not any(part and re.sub(r"[^\w]", "", part) in re.sub(r"[^\w]", "", text) for part in named):
        return f"{UNNAMED} {last[0][:200]!r}"
    return None
