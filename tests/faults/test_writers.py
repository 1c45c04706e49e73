"""Whatever happens to a writer, nothing is lost, nothing is damaged, and the same command run again succeeds."""

from __future__ import annotations

import errno
import fnmatch
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.harness import dying, failing, in_a_fork, names, raising
from faults.writers import WRITERS, Writer


@pytest.fixture(params=WRITERS)
def writer(request) -> Writer:
    return WRITERS[request.param]


@pytest.fixture
def fresh(writer, tmp_path) -> Iterator[Path]:
    """Folders that hold version 1, one after the other."""

    def folders() -> Iterator[Path]:
        writer.write(tmp_path / "first", 1)
        while True:
            shutil.rmtree(tmp_path / "copy", ignore_errors=True)
            shutil.copytree(tmp_path / "first", tmp_path / "copy", symlinks=True)
            yield tmp_path / "copy"

    (tmp_path / "first").mkdir()
    return folders()


def finished(writer: Writer, folder: Path) -> list[str]:
    """What the second version leaves where nothing goes wrong."""
    with failing(folder) as operations:
        writer.write(folder, 2)
    assert writer.read(folder) == 2 and len(operations.log) >= 4
    return names(folder)


def way_on(writer: Writer, folder: Path, whole: list[str], clean: bool) -> None:
    """The same command again: version 2 is there, and, where it is to be clean, nothing that the fault left."""
    writer.write(folder, 2)
    left = set(names(folder)) - set(whole)
    assert writer.read(folder) == 2 and set(whole) <= set(names(folder))
    assert not left if clean else all(fnmatch.fnmatch(name.split("/")[0], writer.leftovers) for name in left), left


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_at_any_operation_costs_nothing(writer, fresh, number: int) -> None:
    whole, at, fired = finished(writer, next(fresh)), 0, True
    while fired:
        at, folder = at + 1, next(fresh)
        with failing(folder, at, raising(number)) as operations:
            try:
                writer.write(folder, 2)
                done = True
            except (ValueError, OSError) as error:
                assert os.strerror(number) in str(error), operations.log
                done = False
        fired = operations.fired
        assert writer.read(folder) in ((2,) if done else (1, 2)), operations.log
        cleaning = fired and operations.log[at - 1] in ("unlink", "rmdir", "open")  # what cannot be removed stays
        way_on(writer, folder, whole, clean=not cleaning)


def test_a_process_killed_before_any_operation_costs_nothing(writer, fresh) -> None:
    whole, at, status = finished(writer, next(fresh)), 0, -signal.SIGKILL
    while status == -signal.SIGKILL:
        at, folder = at + 1, next(fresh)

        def write(folder: Path = folder, at: int = at) -> None:
            with failing(folder, at, dying):
                writer.write(folder, 2)

        status = in_a_fork(write)
        assert status in (0, -signal.SIGKILL), at
        assert writer.read(folder) in ((2,) if status == 0 else (1, 2)), at
        way_on(writer, folder, whole, clean=not writer.leftovers)
