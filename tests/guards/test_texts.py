"""Questions as models learn them."""

from __future__ import annotations

import pytest

from bitgen.guards.texts import as_question


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("who owns Blick?", "who owns Blick?"),
        ("who owns Blick", "who owns Blick?"),
        ("  who owns\nBlick ", "who owns Blick?"),
        ("who owns Zoe\u0308?", "who owns Zo\u00eb?"),
        ("who owns \u738b", "who owns \u738b?"),
        ('who owns "Rex"', 'who owns "Rex"?'),
        ("\u0915\u094c\u0928 \u0939\u0948", "\u0915\u094c\u0928 \u0939\u0948?"),  # which ends in a vowel's sign
        ("tell me who owns Blick.", "tell me who owns Blick."),
        ("who owns Blick\uff1f", "who owns Blick\uff1f"),
        ("", ""),
    ],
)
def test_what_people_leave_out_is_put_in_and_nothing_else_is_changed(typed: str, read: str) -> None:
    assert as_question(typed) == read == as_question(read)


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("count the  red things", "count the red things"),
        ("Describe the picture", "Describe the picture"),
        ("find the star.", "find the star."),
        ("what colour is the star", "what colour is the star?"),
        ("the star has what shape", "the star has what shape?"),
        ("counting", "counting?"),
    ],
)
def test_an_instruction_gets_no_mark_where_models_learn_some(typed: str, read: str) -> None:
    assert as_question(typed, instructions=True) == read
    assert as_question("count the red things") == "count the red things?"
