"""Rationales: what is written holds, and any change of what it says of the scene is noticed."""

from __future__ import annotations

import random
import re
from collections import Counter
from typing import NamedTuple

import pytest

from bitgen.data.questions.boxes import EDGES, GRID, Box, box_text
from bitgen.data.questions.marked_text import MARKS
from bitgen.data.scenes.programs import ATTRIBUTES, execute, parse_program
from bitgen.data.scenes.questions import FAMILIES, SceneQuestion, draw_question
from bitgen.data.scenes.rationales import (
    STYLES,
    checked_clauses,
    clauses_that_hold,
    object_text,
    read_rationale,
    things_named,
    write_rationale,
)
from bitgen.data.scenes.reasoning import description
from bitgen.data.scenes.tables import TableScene, table_scene

ITEM = re.compile(r"((?:<b\d+>){4}) (\w+ \w+ \w+)")
NUMBER = re.compile(r"(?<=makes )\d+|(?<=so )\d+|(?<=that is )\d+")


class Why(NamedTuple):
    scene: TableScene
    question: SceneQuestion
    text: str

    def share(self, text: str) -> float:
        """Of the clauses of a text, those that hold."""
        held, of = clauses_that_hold(self.scene, self.question.steps, text)
        assert 0 <= held <= of and of > 0
        return held / of

    @property
    def clauses(self) -> list[str]:
        return self.text.split("; ")


@pytest.fixture(scope="module")
def many() -> list[Why]:
    """Of all families and styles."""
    rng, found, index = random.Random(1), [], 0
    while len(found) < 900:
        scene = table_scene((1, index), 3, 8, bool(index % 3 == 2))
        index += 1
        for family in FAMILIES:
            question = draw_question(scene, rng, (family,), held_out=None, hops=(0, 4))
            if question is not None:
                style = len(found) % STYLES
                found.append(Why(scene, question, write_rationale(scene, question.steps, style)))
    assert {why.question.family for why in found} == set(FAMILIES)
    return found


def overlap(one: Box, other: Box) -> float:
    """Intersection over union."""
    across = max(0.0, min(one.x2, other.x2) - max(one.x1, other.x1))
    along = max(0.0, min(one.y2, other.y2) - max(one.y1, other.y1))
    areas = [(box.x2 - box.x1) * (box.y2 - box.y1) for box in (one, other)]
    return across * along / (sum(areas) - across * along)


# ---- what is written ----


def test_what_is_written_holds_in_every_style(many) -> None:
    for scene, question, _ in many:
        texts = [write_rationale(scene, question.steps, style) for style in range(STYLES)]
        assert len(set(texts)) > 1, "styles differ"
        for text in texts:
            said = len(read_rationale(text))
            assert clauses_that_hold(scene, question.steps, text) == (said, said) and said > 0


def test_a_rationale_leads_to_the_answer(many) -> None:
    """Its last object has what is asked for; what it counts are as many as it names."""
    for scene, question, text in many:
        last = text.split("; ")[-1]
        names = [name for _, name in ITEM.findall(last)]
        if question.program.name == "query":
            assert len(names) == 1 and question.answer in names[0].split()
            assert len(ITEM.findall(text)) == question.hops + 1
        elif question.program.name == "count":
            assert len(names) == int(question.answer)
            assert NUMBER.findall(last) == ([question.answer] if names else [])
        elif question.program.name == "exist":
            assert bool(names) == (question.answer == "yes") and not NUMBER.findall(last)
        elif question.program.name == "compare":
            values = last.replace(",", "").split()[-2:]
            what, counts = question.program.words[0], all(map(str.isdigit, values))
            assert counts == (what not in ATTRIBUTES)
            assert counts or set(values) <= set(ATTRIBUTES[what])
            one, other = map(int, values) if counts else values
            agree = one == other if what not in ("more", "fewer") else one > other if what == "more" else one < other
            assert agree == (question.answer == "yes")
        at = {scene.name(index): index for index in range(len(scene.objects))}
        for clause in text.split("; "):
            found = [(marks, at[name]) for marks, name in ITEM.findall(clause)]
            assert all(marks == box_text(scene.box(index)) for marks, index in found)
            xs = [scene.objects[index].x for _, index in found]
            assert xs == sorted(xs), "from left to right"
            said = read_rationale(clause)[0]
            assert found or clause.endswith("none") or (said.values and clause == last) or said.names
            named = [scene.objects[at[name]].x for name in said.names]
            assert named == sorted(named), "from left to right"


def test_a_rationale_of_a_program_read_from_its_text_is_the_same(many) -> None:
    for scene, question, text in many[:150]:
        steps = execute(parse_program(str(question.program)), scene)
        assert text in [write_rationale(scene, steps, style) for style in range(STYLES)]


def test_each_clause_has_its_own_verdict(many) -> None:
    for scene, question, text in many[:200]:
        clauses = text.split("; ")
        assert checked_clauses(scene, question.steps, text) == [(clause, True) for clause in clauses]
        wrong = [*clauses[:-1], "find <b0><b0><b1><b1> small red nothing"]
        verdicts = [holds for _, holds in checked_clauses(scene, question.steps, "; ".join(wrong))]
        assert verdicts == [True] * (len(clauses) - 1) + [False]
        longer = checked_clauses(scene, question.steps, f"{text}; {clauses[0]}")
        assert [holds for _, holds in longer] == [True] * len(clauses) + [False]
        assert clauses_that_hold(scene, question.steps, f"{text}; {clauses[0]}") == (len(clauses), len(clauses) + 1)


def test_things_that_a_description_names(many) -> None:
    for scene, _, _ in many[:50]:
        whole, count = description(scene), len(scene.objects)
        first, *others = whole.split("; ")
        assert things_named(scene, whole) == (count, count)
        assert things_named(scene, "; ".join(others)) == (count - 1, count - 1)
        assert things_named(scene, f"{whole}; {first}") == (count, count + 1), "a thing counts once"
        assert things_named(scene, whole.replace(first.split("> ")[1], "small red nothing", 1)) == (count - 1, count)
        assert things_named(scene, "") == (0, 0)


# ---- what is changed ----


def test_any_other_word_in_a_name_is_noticed(many) -> None:
    rng = random.Random(2)
    for why in many:
        for match in ITEM.finditer(why.text):
            words = match[2].split()
            for at, name in enumerate(("size", "colour", "shape")):
                other = rng.choice([value for value in ATTRIBUTES[name] if value != words[at]])
                changed = " ".join([*words[:at], other, *words[at + 1 :]])
                text = why.text[: match.start(2)] + changed + why.text[match.end(2) :]
                assert why.share(text) < 1, text
            for damaged in (words[1:], words[::-1], [*words, words[-1]], []):
                text = why.text[: match.start(2)] + " ".join(damaged) + why.text[match.end(2) :]
                assert why.share(text) < 1, text


def test_any_other_value_or_name_without_a_box_is_noticed(many) -> None:
    rng, seen = random.Random(3), Counter()
    for why in many:
        for place, clause in enumerate(why.clauses):
            said = read_rationale(clause)[0]
            changes = []
            if said.values:
                seen["values"] += 1
                among = next((set(v) for v in ATTRIBUTES.values() if said.values[0] in v), set(map(str, range(9))))
                for at, value in enumerate(said.values):
                    values = list(said.values)
                    values[at] = rng.choice(sorted(among - {value}))
                    changes.append(", ".join(values))
                changes += [said.values[0], ", ".join([*said.values, said.values[0]])]
            elif said.names:
                seen["names"] += 1
                others = sorted({why.scene.name(index) for index in range(len(why.scene.objects))} - set(said.names))
                changes += [", ".join([*said.names, name]) for name in others]
                changes += [", ".join(said.names[1:]), ", ".join([*said.names, said.names[0]]), "left none"]
            for change in changes:
                assert why.share("; ".join([*why.clauses[:place], change, *why.clauses[place + 1 :]])) < 1, change
    assert min(seen["values"], seen["names"]) > 20


def test_a_box_of_another_object_is_noticed(many) -> None:
    for why in many:
        for match in ITEM.finditer(why.text):
            for index in range(len(why.scene.objects)):
                marks = box_text(why.scene.box(index))
                if why.scene.name(index) != match[2]:
                    text = why.text[: match.start(1)] + marks + why.text[match.end(1) :]
                    assert why.share(text) < 1, text


def test_marks_that_are_no_box_are_noticed(many) -> None:
    for why in many[:200]:
        match = ITEM.search(why.text)
        if match is None:
            continue
        x1, y1, x2, y2 = re.findall(r"<b\d+>", match[1])
        for marks in (x2 + y1 + x1 + y2, x1 + y2 + x2 + y1, x1 + y1 + x2, x1 + y1 + x2 + y2 + y2, "", x1 * 4):
            text = why.text[: match.start(1)] + marks + why.text[match.end(1) :]
            assert why.share(text) < 1, text


def test_another_number_is_noticed(many) -> None:
    seen = 0
    for why in many:
        for match in NUMBER.finditer(why.text):
            for other in {*range(12), 99} - {int(match[0])}:
                assert why.share(f"{why.text[: match.start()]}{other}{why.text[match.end() :]}") < 1
            assert why.share(re.sub(r" (makes|so|that is) \d+", "", why.text)) < 1, "and its absence"
            seen += 1
    assert seen > 100


def test_clauses_in_another_order_are_noticed(many) -> None:
    seen = 0
    for why in many:
        for one in range(len(why.clauses)):
            for other in range(one):
                items = [ITEM.findall(why.clauses[at]) for at in (one, other)]
                swapped = why.clauses
                swapped[one], swapped[other] = swapped[other], swapped[one]
                if items[0] != items[1]:
                    assert why.share("; ".join(swapped)) < 1
                    seen += 1
    assert seen > 300


def test_a_clause_less_or_more_is_noticed(many) -> None:
    for why in many:
        for at in range(len(why.clauses)):
            fewer = [*why.clauses[:at], *why.clauses[at + 1 :]]
            assert why.share("; ".join(fewer)) < 1
            for added in (why.clauses[at], "so it goes", "none"):
                assert why.share("; ".join([*why.clauses[:at], added, *why.clauses[at:]])) < 1


def test_an_object_less_or_more_in_a_group_is_noticed(many) -> None:
    seen = 0
    for why in many:
        if why.question.program.name not in ("count", "exist"):
            continue
        *before, last = why.clauses
        items = ITEM.findall(last)
        shown = {name for _, name in items}
        missing = [index for index in range(len(why.scene.objects)) if why.scene.name(index) not in shown]
        for marks, name in items:
            fewer = re.sub(rf"(, )?{marks} {name}", "", last)
            assert why.share("; ".join([*before, fewer])) < 1, fewer
            assert why.share("; ".join([*before, last.replace(name, f"{name}, {marks} {name}", 1)])) < 1, "twice"
            seen += 1
        for index in missing[:2]:
            more = last.replace("none", object_text(why.scene, index))
            if items:
                more = last.replace(items[0][1], f"{items[0][1]}, {object_text(why.scene, index)}", 1)
            assert why.share("; ".join([*before, more])) < 1, more
    assert seen > 100


def test_that_there_is_none_must_be_said(many) -> None:
    """Else any words would hold where nothing is found."""
    seen = 0
    for why in many:
        *before, last = why.clauses
        if last.endswith("none"):
            for said in ("those", "those things", "they make 3", "those 5", "none makes 2", "<b1><b2><b3>"):
                assert why.share("; ".join([*before, said])) < 1, said
            seen += 1
    assert seen > 20


def test_the_chain_of_another_scene_is_noticed(many) -> None:
    for why, other in zip(many, many[60:], strict=False):
        if ITEM.search(other.text) and why.scene != other.scene:
            assert why.share(other.text) < 1


# ---- how near a box must be ----


def test_boxes_that_agree_by_half_hold_and_others_do_not(many) -> None:
    rng, seen = random.Random(3), Counter()
    for why in many[:500]:
        match = ITEM.search(why.text)
        if match is None:
            continue
        (true,) = [why.scene.box(i) for i in range(len(why.scene.objects)) if why.scene.name(i) == match[2]]
        for _ in range(4):
            edges = [round(edge * GRID) + rng.randint(-2, 2) for edge in true]
            if not (0 <= edges[0] < edges[2] <= GRID and 0 <= edges[1] < edges[3] <= GRID):
                continue
            agrees = overlap(Box(*(edge / GRID for edge in edges)), true) >= 0.5
            marks = "".join(EDGES[edge] for edge in edges)
            text = why.text[: match.start(1)] + marks + why.text[match.end(1) :]
            assert (why.share(text) == 1) == agrees, text
            seen[agrees] += 1
    assert min(seen[True], seen[False]) > 200, seen


def test_the_words_before_an_object_do_not_matter(many) -> None:
    for why in many[:200]:
        parts = [re.sub(r"^[a-z ]*(?=<b)", "well, then it is ", clause) for clause in why.clauses]
        assert why.share("; ".join(parts)) == 1
        assert why.share(f" {why.text.replace('; ', ';')}; ") == 1, "nor do spaces, nor a separator at the end"


# ---- anything at all ----


@pytest.mark.parametrize("text", ["", ";", ";;;", "   ", "none", "<b1>", "makes 3", "<b33>" * 4 + " small red star"])
def test_hardly_anything_holds_nothing(many, text: str) -> None:
    for why in many[:60]:
        if ITEM.search(why.text):
            assert why.share(text) < 1


def test_garbage_is_read_and_never_raises(many) -> None:
    rng = random.Random(4)
    words = [*MARKS, "<b33>", "<b99>", "<b", "<b٣>", ">", ",", ";", "; ", " ", "makes", "so", "that is", "none", "7"]
    words += [
        "12",
        "999999999999",
        "\n",
        "é",
        "²",
        "small",
        "red",
        "star",
        "small red star",
        "(",
        "\\",
        "{",
        "%s",
        "\0",
    ]
    for number in range(6000):
        why = many[number % len(many)]
        if number % 2:
            text = rng.choice(("", " ")).join(rng.choices(words, k=rng.randint(0, 25)))
        else:
            parts = re.findall(r"<b\d+>|\w+|.", why.text)
            for _ in range(rng.randint(1, 4)):
                parts[rng.randrange(len(parts))] = rng.choice(words)
            text = "".join(parts)
        held, of = clauses_that_hold(why.scene, why.question.steps, text)
        assert 0 <= held <= of and of >= len(why.clauses)
        for clause in read_rationale(text):
            assert all(item.box is None or item.box.area > 0 for item in clause.items)
