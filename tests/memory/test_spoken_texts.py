"""One name however it is typed: composed or not, with other spaces, without a question's mark."""

from __future__ import annotations

import unicodedata

import pytest
import torch

import bitgen
from support.spoken_memories import speaking_run


@pytest.mark.parametrize("typed", [unicodedata.normalize("NFD", "Zoë owns a café"), "Zoë\n owns\u00a0a  café "])
def test_a_fact_has_one_code(typed: str) -> None:
    facts = bitgen.load(speaking_run()).memory()._facts
    assert facts is not None and typed != "Zoë owns a café"
    assert torch.equal(facts.codes([typed])[0], facts.codes(["Zoë owns a café"])[0])


@pytest.mark.parametrize("typed", [unicodedata.normalize("NFD", "who is Zoë?"), "who is\nZoë", " who is  Zoë"])
def test_a_question_is_one_cue_and_has_one_answer(typed: str) -> None:
    opened = bitgen.load(speaking_run())
    memory = opened.memory()
    memory.tell(["Zoë owns a café"])
    cues = [memory._facts.question_cue(text) for text in (typed, "who is Zoë?")]  # type: ignore[union-attr]
    assert all(torch.equal(one, other) for one, other in zip(*cues, strict=True))
    assert opened.answer(typed, memory=memory) == opened.answer("who is Zoë?", memory=memory)
