"""Questions about scenes, against a reader of their words that knows no program; what is balanced, what is held out."""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter, defaultdict
from itertools import product
from typing import NamedTuple

import pytest

from bitgen.data.scenes.compositions import is_held_out_question
from bitgen.data.scenes.programs import ATTRIBUTES, COMPARISONS, DIRECTIONS, Program
from bitgen.data.scenes.questions import (
    FAMILIES,
    MOST_HOPS,
    TRAINED_HOPS,
    SceneQuestion,
    draw_question,
)
from bitgen.data.scenes.tables import TableScene, table_scene
from support.runs import run_code

VALUES = {value: name for name, values in ATTRIBUTES.items() for value in values}


class Asked(NamedTuple):
    scene: TableScene
    question: SceneQuestion


def drawn(count: int, seed: int, fewest: int = 3, most: int = 6, **how) -> list[Asked]:
    """Questions about scenes, four of each."""
    rng, found, index = random.Random(seed), [], 0
    while len(found) < count:
        scene = table_scene((seed, index), fewest, most, held_out_pair=bool(index % 5 == 4))
        index += 1
        questions = (draw_question(scene, rng, **how) for _ in range(4))
        found += [Asked(scene, question) for question in questions if question is not None]
    return found[:count]


@pytest.fixture(scope="module")
def many() -> list[Asked]:
    """As training draws them."""
    return drawn(6000, 1)


@pytest.fixture(scope="module")
def held_out() -> list[Asked]:
    return drawn(1500, 2, held_out=True)


@pytest.fixture(scope="module")
def long_chains() -> list[Asked]:
    return drawn(200, 3, 6, 8, families=("chain",), held_out=None, hops=(MOST_HOPS, MOST_HOPS))


# ---- a reader of the words ----


def meant(words: str) -> dict[str, str]:
    """small red stars -> its attributes; ``thing`` says nothing."""
    found = {}
    for word in words.split():
        one = {"crosses": "cross"}.get(word, word if word in VALUES else word.removesuffix("s"))
        if one != "thing":
            found[VALUES[one]] = one
    return found


def fitting(scene: TableScene, words: str, among: set[int] | None = None) -> set[int]:
    """The objects that a noun fits."""
    things = [placed.thing for placed in scene.objects]
    among = set(range(len(things))) if among is None else among
    return {one for one in among if all(getattr(things[one], name) == value for name, value in meant(words).items())}


def ordered(scene: TableScene, side: str, of: int) -> list[int]:
    """The objects on one side of another, the nearest first."""
    signed = {"left": (0, -1), "right": (0, 1), "above": (1, -1), "higher": (1, -1), "below": (1, 1), "lower": (1, 1)}
    axis, sign = signed[side]
    at = [sign * (placed.x, placed.y)[axis] for placed in scene.objects]
    return sorted((one for one in range(len(at)) if at[one] > at[of]), key=at.__getitem__)


_PLACE = r"(?:to the )?(left|right|above|higher|below|lower)(?: of| than)? (the .+)"


def pointed_at(scene: TableScene, phrase: str) -> int:
    """The object of a phrase such as ``the small star left of the thing just above the red ring``."""
    one = re.fullmatch(rf"the (?:(next) )?(.+?)(?: (?:(just) )?{_PLACE})?", phrase)
    assert one, phrase
    following, words, just, side, other = one.groups()
    if side is None:
        (found,) = fitting(scene, words)
        return found
    there = ordered(scene, side, pointed_at(scene, other))
    if following or just:
        assert words == "thing"
        return there[0]
    (found,) = fitting(scene, words, set(there))
    return found


def group_of(scene: TableScene, words: str) -> set[int]:
    """The objects of what is counted or looked for."""
    if alike := re.fullmatch(r"(?:other things|another thing) with the (colour|shape|size) of (the .+)", words):
        of = pointed_at(scene, alike[2])
        return fitting(scene, getattr(scene.objects[of].thing, alike[1])) - {of}
    if both := re.fullmatch(rf"things that are {_PLACE.replace('.+', '.+?')} and {_PLACE}", words):
        first, second = ((both[at], pointed_at(scene, both[at + 1])) for at in (1, 3))
        return set(ordered(scene, *first)) & set(ordered(scene, *second))
    if either := re.fullmatch(r"things that are (\w+) or (\w+)", words):
        return fitting(scene, either[1]) | fitting(scene, either[2])
    return fitting(scene, words.removeprefix("an ").removeprefix("a "))


_ASKED = {
    r"what (colour|shape|size) is (the .+)\?": "query",
    r"what is the (colour|shape) of (the .+)\?": "query",
    r"(the .+) is of what (colour)\?": "query",
    r"(the .+) has what (shape)\?": "query",
    r"how big is (the .+)\?": "size",
    r"is (the .+) small or large\?": "size",
    r"how many (.+) are there\?": "count",
    r"what number of (.+) is there\?": "count",
    r"count the (.+)": "count",
    r"are (the .+) and (the .+) of the same (colour|size)\?": "same",
    r"do (the .+) and (the .+) have the same (shape)\?": "same",
    r"does (the .+) have the (colour|shape) of (the .+)\?": "same",
    r"is (the .+) as big as (the .+)\?": "same",
    r"are there (more|fewer|as many) (.+) (?:than|as) (.+)\?": "numbers",
    r"is the number of (.+) (greater than|less than) that of (.+)\?": "numbers",
    r"is the number of (.+) (that) of (.+)\?": "numbers",
    r"(?:is there|do you see|does the picture have) (.+)\?": "exist",
}
_MORE = {"more": 1, "greater than": 1, "fewer": -1, "less than": -1, "as many": 0, "that": 0}


def answered(scene: TableScene, text: str) -> str:
    """What is right, by the words of a question alone."""
    kind, parts = next(
        (kind, list(match.groups())) for form, kind in _ASKED.items() if (match := re.fullmatch(form, text))
    )
    if kind in ("query", "size"):
        (phrase,) = [part for part in parts if part.startswith("the ")]
        (name,) = [part for part in parts if part in ATTRIBUTES] or ["size"]
        return getattr(scene.objects[pointed_at(scene, phrase)].thing, name)
    if kind == "count":
        return str(len(group_of(scene, parts[0])))
    if kind == "exist":
        return "yes" if group_of(scene, parts[0]) else "no"
    if kind == "same":
        (name,) = [part for part in parts if part in ATTRIBUTES] or ["size"]
        one, other = (pointed_at(scene, part) for part in parts if part.startswith("the "))
        return "yes" if fitting(scene, getattr(scene.objects[one].thing, name)) >= {other} else "no"
    (word,) = [part for part in parts if part in _MORE]
    one, other = (len(group_of(scene, part)) for part in parts if part not in _MORE)
    return "yes" if (one > other) - (one < other) == _MORE[word] else "no"


def test_the_words_of_a_question_lead_to_its_answer(many, held_out, long_chains) -> None:
    for scene, question in (*many, *held_out, *long_chains):
        assert answered(scene, question.text) == question.answer, (question.text, str(question.program))


def test_scenes_of_many_objects_are_asked_about_as_well(many) -> None:
    found = drawn(600, 4, 7, 8, held_out=None, hops=(0, MOST_HOPS))
    for scene, question in found:
        assert answered(scene, question.text) == question.answer, question.text
    assert {question.family for _, question in found} == set(FAMILIES)


def test_questions_are_english_in_form(many, held_out) -> None:
    for _, question in (*many, *held_out):
        text = question.text
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]|  |^ | $|[{}()<>;]|\bthing thing\b", text), text
        assert text == text.lower() and text.count("?") == (not text.startswith("count "))


# ---- text alone does not tell ----


def test_text_alone_cannot_guess(many) -> None:
    """Who knows the family and the outermost operator, and always says what is right most often there."""
    answers: dict[tuple, Counter[str]] = defaultdict(Counter)
    for _, question in many:
        top = question.program
        key = (question.family, top.name, top.words, tuple(one.name for one in top.inputs))
        answers[key][question.answer] += 1
    right = sum(max(found.values()) for found in answers.values())
    assert right / len(many) <= 0.45


def test_yes_and_no_are_as_frequent_in_every_family(many, held_out) -> None:
    for asked in (many, held_out):
        said = Counter(question.answer for _, question in asked)
        assert 0.42 < said["yes"] / (said["yes"] + said["no"]) < 0.6
    said = defaultdict(Counter)
    for _, question in many:
        said[question.family][question.answer] += 1
    for family in ("exist", "compare_attribute", "compare_number"):
        assert 0.42 < said[family]["yes"] / said[family].total() < 0.6, said[family]
    numbers = Counter(question.answer for _, question in many if question.answer.isdigit())
    assert len(numbers) >= 5 and max(numbers.values()) < 0.4 * numbers.total(), numbers


def test_all_colours_shapes_and_sizes_are_answers(many) -> None:
    for name, values in ATTRIBUTES.items():
        found = Counter(q.answer for _, q in many if q.program.name == "query" and q.program.words == (name,))
        assert set(found) == set(values)
        assert max(found.values()) < 1.6 * found.total() / len(values), found


def test_a_description_of_what_is_asked_about_does_not_say_it(many, held_out, long_chains) -> None:
    seen = 0
    for _, question in (*many, *held_out, *long_chains):
        if question.program.name == "query":
            (phrase,) = re.findall(r"the (?!colour of|shape of|size of).*", question.text)
            noun = re.split(r" (?:just )?(?:to the )?(?:left|right|above|higher|below|lower) ", phrase)[0]
            words = re.findall("[a-z]+", re.sub(r" (?:is of what|has what) .*| small or large\?", "", noun))
            assert not set(words) & set(ATTRIBUTES[question.program.words[0]]), question.text
            seen += 1
        if question.family == "same":
            (name,) = [one.words[0] for one in question.program.operators() if one.name == "same"]
            assert not set(re.findall("[a-z]+", question.text)) & set(ATTRIBUTES[name]), question.text
    assert seen > 3000


def test_what_is_compared_is_not_one_object_with_itself(many) -> None:
    """Whose attributes agree whatever the picture shows."""
    compared = [question for _, question in many if question.family == "compare_attribute"]
    assert len(compared) > 200
    for question in compared:
        one, other = (
            next(step.result for step in question.steps if step.operator is part) for part in question.program.inputs
        )
        assert one != other, question.text


def test_no_chain_comes_back_to_an_object(many, held_out, long_chains) -> None:
    for _, question in (*many, *held_out, *long_chains):
        reached = [step.result for step in question.steps if step.operator.gives == "object"]
        assert question.objects >= set(reached)
        if question.program.name in ("count", "exist"):
            assert question.objects >= set(question.steps[-2].result), "what is counted is what it takes to see"
        if question.program.name == "query":
            assert question.objects == set(reached)
            assert len(set(reached)) == len(reached) == question.hops + 1, question.text


# ---- hops and families ----

HOPS = {
    "count": {0}, "exist": {0}, "query": {0}, "spatial": {1}, "chain": {2, 3}, "compare_attribute": {0, 1},
    "compare_number": {0}, "same": {1}, "logic": {0, 1},
}  # fmt: skip


def test_families_have_their_hops_and_their_shares(many) -> None:
    hops, share = defaultdict(set), Counter(question.family for _, question in many)
    for _, question in many:
        hops[question.family].add(question.hops)
        steps = [one for one in question.program.operators() if one.name in ("relate", "nearest", "same")]
        assert question.hops <= len(steps) and (question.hops > 0) == bool(steps)
    assert hops == HOPS and TRAINED_HOPS == 3
    assert all(share[family] > 0.03 * len(many) for family in FAMILIES), share
    chains = Counter(question.hops for _, question in many if question.family == "chain")
    assert chains[3] > 0.1 * chains.total(), chains


def test_chains_of_four_hops_have_four(long_chains) -> None:
    for _, question in long_chains:
        names = [one.name for one in question.program.operators()]
        assert question.hops == MOST_HOPS == names.count("relate") + names.count("nearest") == 4
        assert len(question.objects) == 5


@pytest.mark.parametrize("hops", [(0, 0), (1, 1), (2, 2), (3, 3), (0, 2)])
def test_no_question_has_other_hops_than_were_asked_for(hops: tuple[int, int]) -> None:
    families = [family for family, found in HOPS.items() if found & set(range(hops[0], hops[1] + 1))]
    asked = drawn(60, 5, 5, 8, families=families, hops=hops, held_out=None)
    assert {question.hops for _, question in asked} == set(range(hops[0], hops[1] + 1))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_alone(family: str) -> None:
    asked = drawn(30, 6, families=(family,), held_out=None)
    assert {question.family for _, question in asked} == {family}


# ---- what is held out ----


def combination(family: str, program: Program) -> str:
    """Operators with their words, innermost first; where it goes from one object to others, without values."""
    if not program.name == "scene" and any(f"{word}(" in str(program) for word in ("relate", "nearest", "same")):
        program = drop_values(program)
    return f"{family}: " + "; ".join(" ".join((one.name, *one.words)) for one in program.operators())


def drop_values(program: Program) -> Program:
    words = program.words[:1] if program.name == "filter" else program.words
    return Program(program.name, words, tuple(map(drop_values, program.inputs)))


def test_training_has_no_held_out_combination_and_evaluation_has_no_other(many, held_out, long_chains) -> None:
    ours = {combination(question.family, question.program) for _, question in many}
    theirs = {combination(question.family, question.program) for _, question in held_out}
    assert len(ours) > 500 and len(theirs) > 150 and not ours & theirs
    for asked, is_held_out in ((many, False), (held_out, True)):
        assert all(is_held_out_question(q.family, q.program) == is_held_out for _, q in asked)
    assert {is_held_out_question(q.family, q.program) for _, q in long_chains} == {False, True}


def mirrors(program: Program) -> list[Program]:
    """Programs that mean the same: two operands that may change places did, in any of the operators."""
    found = [Program(program.name, program.words, inputs) for inputs in product(*map(mirrors, program.inputs))]
    turns = {"and": (), "or": (), "compare": program.words}
    if program.name in turns:
        words = {("more",): ("fewer",), ("fewer",): ("more",)}.get(program.words, program.words)
        found += [Program(one.name, words, one.inputs[::-1]) for one in found]
    return found


def test_training_asks_no_held_out_question_with_its_operands_in_another_order(many, held_out) -> None:
    """ "How many are red or stars?" says what "are stars or red?" does."""
    ours = {combination(question.family, question.program) for _, question in many}
    turned = 0
    for _, question in held_out:
        for mirror in mirrors(question.program):
            turned += str(mirror) != str(question.program)
            assert combination(question.family, mirror) not in ours, f"{question.text}: {mirror}"
    assert turned > 30


def test_one_combination_in_five_is_held_out() -> None:
    asked = drawn(1000, 7, held_out=None)
    kinds = {combination(q.family, q.program): is_held_out_question(q.family, q.program) for _, q in asked}
    assert 0.15 < sum(kinds.values()) / len(kinds) < 0.25


def test_no_question_that_is_held_out_has_the_words_of_one_of_training(many, held_out) -> None:
    ours = {question.text for _, question in many}
    both = [q.text for _, q in held_out if q.text in ours and q.hops == 0]
    assert not both, f"{len(both)} of {sum(q.hops == 0 for _, q in held_out)}: {both[:5]}"


def test_each_operator_and_word_is_in_training(many) -> None:
    """Held out are combinations alone."""
    seen = {(one.name, word) for _, question in many for one in question.program.operators() for word in one.words}
    wanted = {("filter", value) for value in VALUES} | {("compare", word) for word in (*ATTRIBUTES, *COMPARISONS)}
    wanted |= {(name, side) for name in ("relate", "nearest") for side in DIRECTIONS}
    wanted |= {(name, word) for name in ("query", "same", "filter") for word in ATTRIBUTES}
    assert wanted <= seen


def test_another_process_draws_the_same_questions() -> None:
    code = """
import random
from bitgen.data.scenes.questions import draw_question
from bitgen.data.scenes.tables import table_scene
rng = random.Random("same")
print([str(draw_question(table_scene((1, index)), rng, held_out=None)) for index in range(40)])
"""
    one, other = (run_code(code, PYTHONHASHSEED=seed) for seed in ("1", "2"))
    assert one.returncode == 0, one.stderr
    digests = [hashlib.sha256(done.stdout.encode()).hexdigest() for done in (one, other)]
    rng = random.Random("same")
    here = [str(draw_question(table_scene((1, index)), rng, held_out=None)) for index in range(40)]
    assert digests[0] == digests[1] == hashlib.sha256(f"{here}\n".encode()).hexdigest()
