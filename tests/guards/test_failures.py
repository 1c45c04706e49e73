"""What other libraries raise is one line with a remedy; a mistake in the code stays what it is."""

from __future__ import annotations

import errno
import os
import pickle
import re
import zipfile
from pathlib import Path

import pytest
from safetensors import SafetensorError
from tokenizers import Tokenizer
from torch._utils import ExceptionWrapper

from bitgen.config import ConfigError, exit_on_config_error
from bitgen.guards.failures import TRACEBACK, explained


def library_error_of_tokenizers() -> Exception:
    try:
        Tokenizer.from_str("{")
    except Exception as error:  # noqa: BLE001 - it raises Exception itself
        return error
    raise AssertionError


KNOWN = [
    (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "disk is full"),
    (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), "disk is full"),
    (SafetensorError("I/O error: No space left on device (os error 28)"), "disk is full"),
    (SafetensorError("Error while deserializing header: HeaderTooLarge"), "damaged"),
    (PermissionError(errno.EACCES, "Permission denied", "a\x1b[2Jb"), r"a\\x1b\[2Jb: Permission denied"),
    (pickle.UnpicklingError("invalid load key"), "damaged"),
    (EOFError("Ran out of input"), "damaged"),
    (zipfile.BadZipFile("File is not a zip file"), "damaged"),
    (RuntimeError("PytorchStreamWriter failed writing file data/1: file write failed"), "cannot be written"),
    (MemoryError(), "Memory ran out"),
    (RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"), "smaller batches"),
    (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: 9 bytes"), "Memory"),
    (RecursionError("maximum recursion depth exceeded"), "nested too deeply"),
    (RuntimeError("DataLoader worker (pid 3) is killed by signal: Killed."), "lower num_workers"),
    (library_error_of_tokenizers(), "Look at the file"),
]


@pytest.mark.parametrize(("error", "says"), KNOWN, ids=lambda value: type(value).__name__)
def test_the_entries_say_it_in_one_line(monkeypatch, capsys, error: Exception, says: str) -> None:
    monkeypatch.delenv(TRACEBACK, raising=False)
    with pytest.raises(SystemExit) as stop, exit_on_config_error():
        raise error
    said = capsys.readouterr().err
    assert stop.value.code == 1 and said.startswith("error: ") and said.count("\n") == 1
    assert said.strip().isprintable()
    assert re.search(says, said)
    monkeypatch.setenv(TRACEBACK, "1")
    with pytest.raises(type(error)), exit_on_config_error():
        raise error


@pytest.mark.parametrize("error", [KeyError("x"), AssertionError(), RuntimeError("shapes differ"), TypeError("x")])
def test_a_mistake_in_the_code_keeps_its_traceback(error: Exception) -> None:
    assert explained(error) is None
    with pytest.raises(type(error)), exit_on_config_error():
        raise error


def of_a_data_worker(error: Exception) -> Exception:
    """As a DataLoader raises it in the process that reads it."""
    try:
        raise error
    except Exception:
        wrapped = ExceptionWrapper(where="in DataLoader worker process 0")
    try:
        wrapped.reraise()
    except Exception as again:
        return again
    raise AssertionError


@pytest.mark.parametrize("error", [IndexError("list index out of range"), AssertionError("x"), TypeError("x")])
def test_a_mistake_in_the_code_keeps_its_traceback_from_a_data_worker(error: Exception) -> None:
    assert explained(of_a_data_worker(error)) is None


def test_what_a_data_worker_could_not_read_is_named() -> None:
    said = explained(of_a_data_worker(FileNotFoundError(2, "No such file or directory", "a/features.npy")))
    assert said is not None and "a/features.npy" in said and "Often memory ran out" not in said
    assert "Memory ran out" in str(explained(of_a_data_worker(RuntimeError("can't allocate memory: 9 bytes"))))


@pytest.mark.parametrize(("error", "status"), [(ConfigError("no"), 2), (KeyboardInterrupt(), 130)])
def test_what_a_person_did_has_a_status_of_its_own(error: BaseException, status: int, capsys) -> None:
    with pytest.raises(SystemExit) as stop, exit_on_config_error():
        raise error
    assert stop.value.code == status and capsys.readouterr().err.count("\n") == 1


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        (tmp_path / "nothing").read_bytes()
    assert str(tmp_path / "nothing") in (explained(caught.value) or "")
