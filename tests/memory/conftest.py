"""Episodic memories of a small model with random weights."""

from __future__ import annotations

import pytest

from bitgen.memory import EpisodicMemory, open_model
from support.runs import written_run


@pytest.fixture(scope="session")
def opened():
    return open_model(written_run())


@pytest.fixture
def memory(opened) -> EpisodicMemory:
    return EpisodicMemory(*opened)
