"""The process's own peak of memory."""

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
