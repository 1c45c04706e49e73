"""Programs and their executor, against a second one that evaluates the text of a program over sets of objects."""

from __future__ import annotations

import random
import re
import time
from collections import Counter
from collections.abc import Callable

import pytest

from bitgen.data.scenes.descriptions import Thing
from bitgen.data.scenes.drawing import Placed
from bitgen.data.scenes.programs import Program, ProgramError, Result, answer_text, checked, execute, parse_program
from bitgen.data.scenes.questions import draw_question
from bitgen.data.scenes.tables import TableScene, table_scene

WORDS = {
    "colour": "red orange yellow green cyan blue purple pink brown grey".split(),
    "shape": "circle square triangle star cross ring heart diamond".split(),
    "size": "small large".split(),
}
SIDES = ("left", "right", "above", "below")
OPERATORS = "scene filter unique relate nearest same and or count exist query compare".split()


# ---- a second executor ----


class NoAnswer(Exception):
    """A ``unique`` of none or several, or a ``nearest`` of none."""


def evaluate(text: str, scene: TableScene) -> object:
    """What a program gives, by its text: each word becomes a Python name, and the whole is evaluated."""
    things = [
        {"colour": p.thing.colour, "shape": p.thing.shape, "size": p.thing.size, "x": p.x, "y": p.y}
        for p in scene.objects
    ]
    every = frozenset(range(len(things)))
    further = {
        "left": lambda of: {other: things[of]["x"] - things[other]["x"] for other in every},
        "right": lambda of: {other: things[other]["x"] - things[of]["x"] for other in every},
        "above": lambda of: {other: things[of]["y"] - things[other]["y"] for other in every},
        "below": lambda of: {other: things[other]["y"] - things[of]["y"] for other in every},
    }

    def only(group):
        if len(group) != 1:
            raise NoAnswer
        return min(group)

    def beside(side, of):
        return {other for other, gap in further[side](of).items() if gap > 0}

    def nearest(side, of):
        if not beside(side, of):
            raise NoAnswer
        return min(beside(side, of), key=further[side](of).get)

    def compare(word, one, other):
        if word in WORDS:
            return things[one][word] == things[other][word]
        return {"more": one > other, "fewer": one < other, "equal": one == other}[word]

    meaning: dict[str, object] = {
        "scene": every,
        "filter": lambda name, value, group: {one for one in group if things[one][name] == value},
        "unique": only,
        "relate": beside,
        "nearest": nearest,
        "same": lambda name, of: {one for one in every - {of} if things[one][name] == things[of][name]},
        "and": lambda one, other: one & other,
        "or": lambda one, other: one | other,
        "count": len,
        "exist": lambda group: len(group) > 0,
        "query": lambda name, of: things[of][name],
        "compare": compare,
    }
    named = {f"_{word}": meaning.get(word, word) for word in re.findall("[a-z]+", text)}
    return eval(re.sub("([a-z]+)", r"_\1", text), {"__builtins__": {}}, named)  # noqa: S307  # a program, made here


def hops_of(text: str) -> int:
    """Steps from an object to others, on the longest path, by the text."""

    def longest(*parts):
        return max((part for part in parts if isinstance(part, int)), default=0)

    def one_more(*parts):
        return 1 + longest(*parts)

    named: dict[str, object] = {f"_{word}": word for word in re.findall("[a-z]+", text)}
    named |= {f"_{word}": longest for word in OPERATORS}
    named |= {f"_{word}": one_more for word in ("relate", "nearest", "same")} | {"_scene": 0}
    return eval(re.sub("([a-z]+)", r"_\1", text), {"__builtins__": {}}, named)  # noqa: S307


def plain(result: Result) -> object:
    """A result as the second executor gives it."""
    return set(result) if isinstance(result, tuple) else result


def check(program: Program, scene: TableScene) -> bool:
    """Assert that both agree on every operator of a program; whether it has an answer."""
    try:
        expected = evaluate(str(program), scene)
    except NoAnswer:
        with pytest.raises(ProgramError):
            execute(program, scene)
        return False
    steps = execute(program, scene)
    assert [step.operator for step in steps] == list(program.operators())
    for step in steps:
        found = evaluate(str(step.operator), scene)
        assert plain(step.result) == found and isinstance(step.result, bool) == isinstance(found, bool), step
        if isinstance(step.result, tuple):
            assert list(step.result) == sorted(set(step.result)), "objects stand in ascending order, each once"
    assert plain(steps[-1].result) == expected
    return True


# ---- programs of any form ----


def random_text(kind: str, depth: int, rng: random.Random, scene: TableScene) -> str:
    """A well-typed program that gives a set, an object, a number, a truth or a value, mostly of what is there."""

    def some(kind: str) -> str:
        return random_text(kind, depth - 1, rng, scene)

    def filtered(of: str) -> str:
        name = rng.choice(list(WORDS))
        there = getattr(rng.choice(scene.objects).thing, name)
        return f"filter({name}, {rng.choice([there, there, there, *WORDS[name]])}, {of})"

    def named() -> str:
        thing = rng.choice(scene.objects).thing
        return f"filter(size, {thing.size}, filter(colour, {thing.colour}, filter(shape, {thing.shape}, scene)))"

    name, side = rng.choice(list(WORDS)), rng.choice(SIDES)
    ways: dict[str, list[Callable[[], str]]] = {
        "set": [
            lambda: filtered(some("set")),
            lambda: f"relate({side}, {some('object')})",
            lambda: f"same({name}, {some('object')})",
            lambda: f"and({some('set')}, {some('set')})",
            lambda: f"or({some('set')}, {some('set')})",
        ],
        "object": [lambda: f"unique({some('set')})", lambda: f"nearest({side}, {some('object')})"],
        "number": [lambda: f"count({some('set')})"],
        "truth": [
            lambda: f"exist({some('set')})",
            lambda: f"compare({name}, {some('object')}, {some('object')})",
            lambda: f"compare({rng.choice(('more', 'fewer', 'equal'))}, {some('number')}, {some('number')})",
        ],
        "value": [lambda: f"query({name}, {some('object')})"],
    }
    if depth <= 0:
        ways["set"] = [lambda: "scene", lambda: filtered("scene")]
        ways["object"] = [lambda: f"unique({filtered('scene')})", lambda: f"unique({named()})"]
    return rng.choice(ways[kind])()


@pytest.fixture(scope="module")
def scenes() -> list[TableScene]:
    return [table_scene((1, index), 3, 8, bool(index % 3)) for index in range(250)]


def test_random_programs_give_what_the_second_executor_gives(scenes) -> None:
    rng, kinds, seen = random.Random(1), ("set", "object", "number", "truth", "value"), Counter()
    for number in range(2000):
        kind, scene = kinds[number % len(kinds)], rng.choice(scenes)
        text = random_text(kind, rng.randint(0, 4), rng, scene)
        program = parse_program(text)
        assert str(program) == text and program.gives == kind and program.hops == hops_of(text)
        seen[kind, check(program, scene)] += 1
    assert all(seen[kind, True] > 60 for kind in kinds), seen
    assert seen["object", False] > 60, "and some have no answer"


def test_drawn_questions_give_what_the_second_executor_gives(scenes) -> None:
    rng = random.Random(2)
    for number in range(1000):
        scene = scenes[number % len(scenes)]
        question = draw_question(scene, rng, held_out=None, hops=(0, 4))
        if question is None:
            continue
        assert check(question.program, scene)
        assert question.steps == tuple(execute(question.program, scene))
        assert parse_program(str(question.program)) == question.program
        assert question.hops == hops_of(str(question.program))


@pytest.mark.parametrize("spaced", ["count( filter(colour,red , scene ) )", "\n count(filter(colour, red, scene))\t"])
def test_spaces_mean_nothing(spaced: str) -> None:
    assert str(parse_program(spaced)) == "count(filter(colour, red, scene))"


# ---- one scene, by hand ----


def row(*names: str) -> TableScene:
    """Objects from left to right, each further up than the one before."""
    things = [Thing(colour, shape, size) for size, colour, shape in map(str.split, names)]
    return TableScene(tuple(Placed(thing, 0.1 + 0.1 * i, 0.9 - 0.1 * i, 0.05, 0.0) for i, thing in enumerate(things)))


ROW = row("small red star", "large red ring", "small blue star", "large blue star")
STAR = "unique(filter(colour, red, filter(shape, star, scene)))"
RING = "unique(filter(shape, ring, scene))"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("count(scene)", "4"),
        (f"count(relate(right, {STAR}))", "3"),
        (f"count(relate(left, {STAR}))", "0"),
        (f"count(relate(above, {RING}))", "2"),
        (f"count(relate(below, {RING}))", "1"),
        (f"query(colour, nearest(right, {RING}))", "blue"),
        (f"query(size, nearest(above, nearest(right, {RING})))", "large"),
        (f"query(shape, nearest(below, {RING}))", "star"),
        (f"exist(same(size, {RING}))", "yes"),
        (f"exist(same(shape, {RING}))", "no"),
        (f"count(same(colour, {RING}))", "1"),
        ("count(and(filter(colour, blue, scene), filter(shape, star, scene)))", "2"),
        ("count(or(filter(colour, red, scene), filter(shape, star, scene)))", "4"),
        (f"compare(colour, {STAR}, {RING})", "yes"),
        (f"compare(size, {STAR}, {RING})", "no"),
        ("compare(more, count(filter(shape, star, scene)), count(filter(colour, red, scene)))", "yes"),
        ("compare(fewer, count(filter(shape, star, scene)), count(filter(colour, red, scene)))", "no"),
        ("compare(equal, count(filter(colour, blue, scene)), count(filter(colour, red, scene)))", "yes"),
        ("compare(equal, count(filter(colour, pink, scene)), count(filter(shape, heart, scene)))", "yes"),
    ],
)
def test_answers_of_a_scene_that_can_be_checked_by_hand(text: str, answer: str) -> None:
    assert answer_text(execute(parse_program(text), ROW)[-1].result) == answer


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("query(colour, unique(filter(shape, heart, scene)))", "there are 0 objects, not one"),
        ("query(colour, unique(filter(shape, star, scene)))", "there are 3 objects, not one"),
        ("query(colour, unique(scene))", "there are 4 objects, not one"),
        (f"query(colour, nearest(left, {STAR}))", "nothing on that side"),
        (f"query(colour, nearest(below, {STAR}))", "nothing on that side"),
        (f"exist(relate(left, nearest(left, {STAR})))", "nothing on that side"),
    ],
)
def test_a_scene_without_an_answer_says_so(text: str, says: str) -> None:
    with pytest.raises(ProgramError, match=says):
        execute(parse_program(text), ROW)


# ---- what is no program ----


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "its end"),
        ("   ", "its end"),
        ("(", "no operator"),
        ("scenes", "no operator"),
        ("Scene", "no operator"),
        ("count", "takes a set, not nothing"),
        ("count()", "takes no"),
        ("count(", "not closed"),
        ("count(scene", "not closed"),
        ("count(scene))", "goes on after its end"),
        ("count(scene) count(scene)", "goes on after its end"),
        ("count(scene scene)", "not closed"),
        ("count(scene,)", "takes no"),
        ("count(,scene)", "takes no"),
        ("count((scene))", "takes no"),
        ("count(scene, scene)", "takes a set, not a set and a set"),
        ("count(unique(scene))", "takes a set, not a object"),
        ("count(7)", "takes no '7'"),
        ("scene(scene)", "takes nothing"),
        ("scene(left)", "has 0 words"),
        ("filter(shape, scene)", "has 2 words, not 1"),
        ("filter(shape, star, big, scene)", "has 2 words, not 3"),
        ("filter(shape, red, scene)", "does not know 'red'"),
        ("filter(kind, star, scene)", "does not know 'kind'"),
        ("filter(shape, star)", "takes a set, not nothing"),
        ("filter(shape, star, unique(scene))", "takes a set"),
        ("unique(unique(scene))", "takes a set, not a object"),
        ("relate(left, scene)", "takes a object, not a set"),
        ("relate(colour, unique(scene))", "does not know 'colour'"),
        ("nearest(near, unique(scene))", "does not know 'near'"),
        ("same(left, unique(scene))", "does not know 'left'"),
        ("and(scene)", "takes a set and a set, not a set"),
        ("or(scene, unique(scene))", "takes a set and a set"),
        ("query(colour, scene)", "takes a object, not a set"),
        ("query(unique(scene))", "has 1 words, not 0"),
        ("compare(colour, unique(scene))", "takes a object and a object"),
        ("compare(colour, count(scene), count(scene))", "takes a object and a object"),
        ("compare(more, unique(scene), unique(scene))", "takes a number and a number"),
        ("compare(less, count(scene), count(scene))", "does not know 'less'"),
        ("exist(count(scene))", "takes a set, not a number"),
        ("count(filter(shape, star, scene);)", "not closed"),
        ("count\u200b(scene)", "takes a set, not nothing"),
        ("__import__(scene)", "no operator"),
    ],
)
def test_what_is_no_program_is_refused(text: str, says: str) -> None:
    with pytest.raises(ProgramError, match=re.escape(says)):
        parse_program(text)


@pytest.mark.parametrize(
    "text",
    [
        "count(" * 100_000,
        "filter(shape, star, " * 20_000 + "scene" + ")" * 20_000,
        "count(" * 65 + "scene" + ")" * 65,
        "filter(shape, star, " * 70 + "scene" + ")" * 70,
        "a" * 1_000_000,
        "(" * 1_000_000,
        " " * 50_000,
        "or(scene, " * 400 + "scene" + ")" * 400,
        "count(" + "scene, " * 2000 + "scene)",
        "count(" + "red, " * 100 + "scene)",
    ],
    ids=lambda text: f"{text[:12]} {len(text)}",
)
def test_endless_programs_are_refused_at_once(text: str) -> None:
    start = time.process_time()
    with pytest.raises(ProgramError):
        parse_program(text)
    assert time.process_time() - start < 2


def test_a_deep_program_that_is_one_is_read_and_run() -> None:
    text = "filter(shape, star, " * 50 + "scene" + ")" * 50
    assert execute(parse_program(f"count({text})"), ROW)[-1].result == 3


def test_damaged_programs_are_read_or_refused_and_nothing_else(scenes) -> None:
    """Texts with a character or a word taken out, put in or changed."""
    rng, read = random.Random(3), 0
    tokens = [*OPERATORS, *SIDES, *WORDS, "red", "star", "(", ")", ",", " ", "7", "<b3>", "\n", "é"]
    for _ in range(2000):
        scene = rng.choice(scenes)
        text = random_text(rng.choice(("truth", "value", "number")), 3, rng, scene)
        parts = re.findall(r"[a-z]+|.", text)
        at = rng.randrange(len(parts))
        parts[at : at + rng.randint(0, 2)] = rng.choices(tokens, k=rng.randint(0, 2))
        try:
            program = parse_program("".join(parts))
        except ProgramError:
            continue
        read += 1
        assert parse_program(str(program)) == program == checked(program)
        check(program, scene)
    assert 100 < read < 1900
