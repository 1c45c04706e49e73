"""Sequences of stage 2: marks are tokens where they are made here and text elsewhere; what counts, and how much."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from bitgen.data.questions.boxes import EDGES, read_boxes
from bitgen.data.questions.extended_tokenizer import extended_tokenizer
from bitgen.data.questions.marked_text import (
    ANSWER,
    MARKS,
    NONE,
    QUESTION,
    THINK,
    Asked,
    MarkedTokens,
    Reply,
    read_reply,
)
from bitgen.data.scenes.questions import draw_question
from bitgen.data.scenes.rationales import read_rationale, write_rationale
from bitgen.data.scenes.tables import table_scene
from bitgen.data.tokenizer import train_bpe
from support.tokenizers import KINDS, tiny_tokenizer

WORDS = ["what colour is the small red star?", "small red star, large blue ring; next left yes no 2 none"] * 30
WHY = "find <b3><b8><b7><b12> small red star; next left <b1><b20><b6><b25> large blue ring"
ASKED = Asked("what colour is the thing just left of the star?", "blue", WHY)


@pytest.fixture(scope="module")
def tokens() -> MarkedTokens:
    return MarkedTokens(extended_tokenizer(tiny_tokenizer(), MARKS, WORDS, 450))


def squeezed(text: str) -> str:
    """Without spaces: those beside a mark are not kept."""
    return re.sub(r"\s", "", text)


# ---- marks in texts ----

_hostile = st.lists(
    st.sampled_from([*MARKS, "<", ">", "b3>", "<b", "q>", " ", "star", "</s>", "<s>", "<pad>", "é", "猫"])
)


@given(st.one_of(st.text(), _hostile.map("".join)))
@example("where is <b3><b8><b7>?")
@example("where is <b7><b8><b3><b12>?")
@example("what is it?<answer> red")
@example("<<answer>answer>")
def test_marks_in_a_question_of_a_person_stay_text(tokens, text: str) -> None:
    assume(not any(read_boxes(text)))
    ids = tokens.text(text)
    special = {tokens.tokenizer.bos_token_id, tokens.tokenizer.eos_token_id, tokens.tokenizer.pad_token_id}
    assert not set(ids) & ({*tokens.ids.values()} | special), tokens.tokenizer.convert_ids_to_tokens(ids)
    clean = " ".join(text.encode("utf-8", "ignore").decode().split())
    assert tokens.decode(ids) == clean, "and nothing of it is lost"
    prompt = tokens.prompt(text, True)
    assert [id for id in prompt if id in tokens.ids.values()] == [tokens.ids[QUESTION], tokens.ids[THINK]]
    assert prompt == [tokens.tokenizer.bos_token_id, tokens.ids[QUESTION], *ids, tokens.ids[THINK]]


@pytest.mark.parametrize("kind", KINDS)
def test_they_do_with_tokenizers_of_every_kind(kind: str) -> None:
    base = KINDS[kind]()
    base.pad_token = base.pad_token or base.eos_token
    tokens = MarkedTokens(extended_tokenizer(base, MARKS, WORDS, 500))
    for text in ("the dog <b3> <answer> runs", "<none>", "a<b0><b1><b2>dog"):
        assert not set(tokens.text(text)) & set(tokens.ids.values())


def test_a_whole_box_in_a_question_of_a_person_is_a_box(tokens) -> None:
    ids = tokens.text("what is at <b3><b8><b7><b12>? <b1>")
    assert [id for id in ids if id in tokens.ids.values()] == [tokens.ids[f"<b{edge}>"] for edge in (3, 8, 7, 12)]
    assert tokens.prompt("what is at <b3><b8><b7><b12>?", False) == tokens.prompt(
        "what is at <b3><b8><b7><b12>?", False, trusted=True
    )


@pytest.mark.parametrize(
    ("answer", "marks"),
    [
        ("<b3><b8><b7><b12>", 4),
        (" <none> ", 1),
        ("<b9><b3><b2><b1>", 0),  # right of its left edge
        ("<b5>", 0),
        ("<q>", 0),
        ("<none> <none>", 0),
    ],
)
def test_an_answer_of_a_file_has_marks_where_it_is_a_box_or_says_that_nothing_is_there(tokens, answer, marks) -> None:
    asked = Asked("where is it?", answer, trusted=False)
    ids = tokens.sequence(asked).ids[len(tokens.prompt("where is it?", False)) :]
    assert sum(id in tokens.ids.values() for id in ids) == marks
    if marks:
        assert ids == tokens.sequence(asked._replace(trusted=True)).ids[-len(ids) :]


def test_marks_that_are_made_here_are_tokens(tokens) -> None:
    ids = tokens.marked(WHY)
    assert [token for token in tokens.tokenizer.convert_ids_to_tokens(ids) if token in MARKS] == re.findall(
        "<b.*?>", WHY
    )
    trusted = tokens.prompt("what is at <b3><b8><b7><b12>?", False, trusted=True)
    marks = [QUESTION, *(f"<b{edge}>" for edge in (3, 8, 7, 12)), ANSWER]
    assert [id for id in trusted if id in tokens.ids.values()] == [tokens.ids[mark] for mark in marks]
    assert tokens.edges == [tokens.ids[edge] for edge in EDGES] and len(set(tokens.ids.values())) == len(MARKS)


def test_a_question_is_the_same_whoever_asks_it(tokens) -> None:
    for text in ("what colour is the star?", "how many red, small things are there?", ", ; odd", "  spaces  between "):
        words = tokens.text(text)
        assert tokens.prompt(text, False) == [*tokens.prompt("", False)[:2], *words, tokens.ids[ANSWER]]
    for text in ("what colour is the star?", "count the red, small things"):
        assert tokens.prompt(text, True) == tokens.prompt(text, True, trusted=True)


@pytest.mark.parametrize(
    "text", [WHY, "a red star", "<none>", "<b3><b8><b7><b12>", "", "2", "x; y <b1>, z", "¿qué? 猫 <b2>"]
)
def test_what_is_marked_is_decoded_as_it_was(tokens, text: str) -> None:
    assert squeezed(tokens.decode(tokens.marked(text))) == squeezed(text)


def test_rationales_mean_the_same_after_their_way_through_tokens(tokens) -> None:
    rng = random.Random(1)
    for index in range(150):
        scene = table_scene((1, index))
        question = draw_question(scene, rng)
        if question is not None:
            text = write_rationale(scene, question.steps, index % 3)
            assert read_rationale(tokens.decode(tokens.marked(text))) == read_rationale(text)


def test_a_tokenizer_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"lacks 37 marks of stage 2, first <q>.*train_stage2_reasoning.py"):
        MarkedTokens(train_bpe(WORDS, 300))


# ---- what counts ----


def spelled(tokens: MarkedTokens, sequence) -> list[tuple[str, int]]:
    """Runs of equal weight, as text."""
    runs: list[tuple[list[int], int]] = []
    for one, weight in zip(sequence.ids, sequence.weights, strict=True):
        if not runs or runs[-1][1] != weight:
            runs.append(([], weight))
        runs[-1][0].append(one)
    return [(squeezed(tokens.tokenizer.decode(ids)), weight) for ids, weight in runs]


def test_weights_of_a_question_with_a_rationale(tokens) -> None:
    question, why = squeezed(ASKED.question), squeezed(WHY)
    found = spelled(tokens, tokens.sequence(ASKED, answer_weight=3))
    assert found == [(f"<s><q>{question}<think>", 0), (f"{why}<answer>", 1), ("blue</s>", 3)]


@pytest.mark.parametrize(
    ("asked", "runs"),
    [
        (Asked("is it red?", "yes"), [("<s><q>isitred?<answer>", 0), ("yes</s>", 3)]),
        (Asked("is it red?", "yes", ""), [("<s><q>isitred?<think>", 0), ("<answer>", 1), ("yes</s>", 3)]),
        (Asked("where is the cat?", NONE), [("<s><q>whereisthecat?<answer>", 0), ("<none></s>", 3)]),
        (Asked("find the cat", "<b1><b2><b3><b4>"), [("<s><q>findthecat<answer>", 0), ("<b1><b2><b3><b4></s>", 3)]),
        (Asked("", "a red star"), [("<s>", 0), ("aredstar</s>", 1)]),
    ],
)
def test_weights_of_what_has_no_rationale(tokens, asked: Asked, runs) -> None:
    assert spelled(tokens, tokens.sequence(asked, answer_weight=3)) == runs


def test_dots_are_as_many_as_the_tokens_of_clauses_and_count_nothing(tokens) -> None:
    clauses, dots = (tokens.sequence(ASKED, 2, dots=dots) for dots in (False, True))
    assert len(dots.ids) == len(clauses.ids) and dots.ids != clauses.ids
    begin = clauses.ids.index(tokens.ids[THINK]) + 1
    end = clauses.ids.index(tokens.ids[ANSWER])
    assert end - begin == len(tokens.marked(WHY)) and len(set(dots.ids[begin:end])) == 1
    assert dots.ids[:begin] + dots.ids[end:] == clauses.ids[:begin] + clauses.ids[end:]
    assert dots.weights == [0] * (end + 1) + [2] * (len(dots.ids) - end - 1)
    assert clauses.weights == [0] * begin + [1] * (end + 1 - begin) + [2] * (len(dots.ids) - end - 1)
    assert dots.ids[begin] not in tokens.ids.values() and tokens.dots(7) == [dots.ids[begin]] * 7


def test_dots_change_nothing_where_there_is_no_rationale(tokens) -> None:
    for asked in (ASKED._replace(rationale=None), Asked("", "a red star")):
        assert tokens.sequence(asked, 2, dots=True) == tokens.sequence(asked, 2)


def test_a_prompt_is_where_its_sequence_begins(tokens) -> None:
    for asked in (ASKED, ASKED._replace(rationale=None)):
        prompt = tokens.prompt(asked.question, asked.rationale is not None)
        assert tokens.sequence(asked).ids[: len(prompt)] == prompt


# ---- replies ----


@pytest.mark.parametrize(
    ("text", "thinks", "reply"),
    [
        (" blue", False, Reply(None, "blue")),
        ("<b3><b8><b7><b12>", False, Reply(None, "<b3><b8><b7><b12>")),
        ("<none>", False, Reply(None, "<none>")),
        ("", False, Reply(None, None)),
        ("  ", False, Reply(None, None)),
        ("blue<answer>", False, Reply(None, None)),
        ("find it<answer>blue", False, Reply(None, None)),
        ("blue<q>", False, Reply(None, None)),
        ("<think>blue", False, Reply(None, None)),
        ("find <b1><b2><b3><b4> star<answer> blue", True, Reply("find <b1><b2><b3><b4> star", "blue")),
        ("<answer> blue", True, Reply("", "blue")),
        (" why <answer> red or blue ", True, Reply("why", "red or blue")),
        ("blue", True, Reply("blue", None)),  # no <answer>
        ("", True, Reply("", None)),
        ("why<answer>", True, Reply("why", None)),  # empty
        ("why<answer>  ", True, Reply("why", None)),
        ("why<answer>blue<answer>red", True, Reply("why", None)),  # two
        ("why<answer><answer>blue", True, Reply("why", None)),
        ("why<answer>blue<think>", True, Reply("why", None)),
        ("why<think>more<answer>blue", True, Reply("why<think>more", None)),
        ("<q>why<answer>blue", True, Reply("<q>why", None)),
        ("why<answer>blue<q>", True, Reply("why", None)),
    ],
)
def test_replies_are_read(text: str, thinks: bool, reply: Reply) -> None:
    assert read_reply(text, thinks) == reply


def test_what_is_learned_is_read_as_it_was_meant(tokens) -> None:
    for asked in (ASKED, ASKED._replace(rationale=None), Asked("where is it?", NONE), Asked("is it?", "yes", "")):
        thinks = asked.rationale is not None
        ids = tokens.sequence(asked).ids[len(tokens.prompt(asked.question, thinks)) :]
        assert ids.pop() == tokens.tokenizer.eos_token_id
        reply = read_reply(tokens.decode(ids), thinks)
        assert reply.answer == asked.answer and squeezed(reply.rationale or "") == squeezed(asked.rationale or "")
