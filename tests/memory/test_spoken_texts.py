"""One name however it is typed: composed or not, with other spaces, without a question's mark."""

from __future__ import annotations

import unicodedata

import pytest
import torch

import bitgen
from bitgen.model.question import LETTERS
from bitgen.model.token_ids import text_ids
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


def test_curly_marks_ask_what_those_of_a_keyboard_do() -> None:
    facts = bitgen.load(speaking_run()).memory()._facts
    assert facts is not None
    curly, plain = (
        facts.question_cue(text) for text in ("who is Anna\u2019s \u201ccat\u201d?", 'who is Anna\'s "cat"?')
    )
    assert all(torch.equal(one, other) for one, other in zip(curly, plain, strict=True))


def test_a_question_that_begins_with_a_name_has_its_tokens_behind_a_space_where_facts_do() -> None:
    opened = bitgen.load(speaking_run())
    facts, tokenizer = opened.memory()._facts, opened.trained.tokenizer
    assert facts is not None
    recall, text = facts.recall, "cat owns it?"
    behind, codes = text_ids(tokenizer, [f" {text}"])[0], recall.codes().detach()
    assert behind != text_ids(tokenizer, [text])[0], "else there is nothing to see"
    before = facts.question_cue(text)
    recall.config.recall_behind_space = True
    cue = facts.question_cue(text)
    torch.testing.assert_close(cue.codes[0], codes[behind])
    assert (
        torch.equal(cue.keys, before.keys) and cue.words.shape == cue.codes.shape[:2] and (cue.words >= LETTERS).any()
    )
