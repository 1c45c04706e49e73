"""The process's own peak of memory, and that freed memory is kept."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bitgen.machine import memory
from support.runs import environment

ASK = "from bitgen.machine.memory import peak_resident_bytes; print(peak_resident_bytes())"


def test_it_is_what_was_taken_and_given_back() -> None:
    code = f"block = bytearray(b'1') * 300_000_000; del block; {ASK}"
    assert int(subprocess.check_output([sys.executable, "-c", code], env=environment())) > 300e6


def test_a_child_does_not_begin_at_what_its_parent_took() -> None:
    code = (
        "import subprocess, sys; block = bytearray(b'1') * 300_000_000; "
        f"print(subprocess.check_output([sys.executable, '-c', {ASK!r}]).decode())"
    )
    assert 5e6 < int(subprocess.check_output([sys.executable, "-c", code], env=environment())) < 250e6


@pytest.mark.parametrize("content", [None, "Name: python\n"])
def test_without_linux_it_is_the_systems_figure(tmp_path, monkeypatch, content) -> None:
    path: Path = tmp_path / "status"
    if content is not None:
        path.write_text(content)
    monkeypatch.setattr(memory, "_STATUS", path)
    assert memory.peak_resident_bytes() > 5e6


KEEP = """
import resource, torch
from bitgen.machine.memory import keep_freed_memory
print(keep_freed_memory())
faults = [0]
for _ in range(20):
    [torch.ones(size) for size in (3_000_000, 9_000_000, 5_000_000)]
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(faults[20] - faults[10])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of glibc alone")
@pytest.mark.parametrize("chosen", ["", "131072"])
def test_pages_of_freed_tensors_are_used_again_unless_somebody_chose(chosen: str) -> None:
    found = {**environment(), "MALLOC_MMAP_THRESHOLD_": chosen, "OMP_NUM_THREADS": "1"}
    kept, faults = subprocess.check_output([sys.executable, "-c", KEEP], env=found, text=True).split()
    assert kept == str(not chosen)
    assert (int(faults) < 20_000) == (not chosen)  # of 166,000 pages


def test_another_c_library_is_left_alone(monkeypatch) -> None:
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: object())
    assert not memory.keep_freed_memory({})
