"""Episodic memories of a small model that speaks, and ways to say what its cues find."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bitgen.memory import EpisodicMemory, open_model, spoken
from bitgen.memory.address_space import IMAGE
from bitgen.model import spoken_memory
from bitgen.model.modeling_bitgen import BitGenModel
from bitgen.model.processing_bitgen import BitGenProcessor
from bitgen.model.question import Question
from bitgen.model.recall import Recall
from bitgen.model.speaking import BY_TEXT
from support.runs import written_run

TOKENS, KEY, CODE = 6, 12, 4  # L, k and d
# A value holds each of them.
TEXTS = ["the cat sat", "a red dog", "two hill runs", "blue mat over image", "it is for this", "dog and hill"]


def speaking_run() -> Path:
    """A run's folder whose model speaks; its weights are random."""
    return written_run(recall_tokens=TOKENS, recall_dim=KEY, recall_code=CODE)


def speaking_model() -> tuple[BitGenModel, BitGenProcessor]:
    """That model, opened anew, and its processor."""
    return open_model(speaking_run())


def finds(monkeypatch: pytest.MonkeyPatch, everything: bool) -> None:
    """Make every picture mean every fact, those more whose keys are nearer, and every text the nearest; or none."""
    shift = 2.0 if everything else -2.0
    monkeypatch.setattr(Recall, "logits", lambda self, cosines: 5 * (cosines + shift))

    def asked_odds(self: Recall, asked: Question, keys: Tensor) -> Tensor:
        return 5 * (asked.keys @ keys.mT + shift)

    monkeypatch.setattr(Recall, "asked_odds", asked_odds)
    monkeypatch.setattr(Recall, "asked_names", all_held)
    for module in (spoken, spoken_memory):
        monkeypatch.setattr(module, "BY_TEXT", BY_TEXT._replace(sure=0.0) if everything else BY_TEXT)


def all_held(self: Recall, asked: Question, values: Tensor, least: float) -> Tensor:
    """In place of ``asked_names``: every fact has all names."""
    return torch.ones(len(asked.keys), len(values), dtype=torch.bool)


def keys(memory: EpisodicMemory) -> Tensor:
    """``[E, k]``."""
    assert memory.spoken is not None
    return memory.spoken.halves(IMAGE)


def spoken_contents(memory: EpisodicMemory) -> tuple:
    """All that a memory holds, to compare."""
    assert memory.spoken is not None
    return memory.episodes, memory.codes.pairs.tolist(), memory.spoken.pairs.tolist()


def assert_same_spoken(memory: EpisodicMemory, other: EpisodicMemory) -> None:
    """The same keys and values, and sums of them that are equal to 1e-6."""
    assert memory.spoken is not None and other.spoken is not None
    torch.testing.assert_close(memory.spoken.pairs, other.spoken.pairs, atol=1e-6, rtol=0)
    for left, right in zip(memory.spoken.precision.solve(), other.spoken.precision.solve(), strict=True):
        torch.testing.assert_close(left, right, atol=1e-6, rtol=1e-6)


def warnings(caplog: pytest.LogCaptureFixture, what: str) -> list[str]:
    """What was warned of, where ``what`` is in it."""
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    return [message for message in said if what in message]
