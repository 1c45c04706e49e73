"""Facts about what does not exist, in words: told in one wording, asked for in another.

Only a memory can know them: who owns Blick is drawn anew for every episode. The last wording of each list is for
evaluation alone, and so are two of the relations' whole lists of objects: names are those of ``invented_names``.
"""

from __future__ import annotations

import random
from typing import NamedTuple

from bitgen.data.invented_names import invented_name, invented_names


class Fact(NamedTuple):
    """``told``: a sentence; ``asked``: a question in other words; ``answer``: what was told."""

    told: str
    asked: str
    answer: str


# Of each relation: how a fact is told, and how it is asked for. The last of each is held out.
RELATIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "owner": (
        ("{s} belongs to {o}", "{o} owns {s}", "the owner of {s} is {o}", "{s} is owned by {o}"),
        ("who owns {s}?", "whose is {s}?", "the owner of {s} is called", "who does {s} belong to?"),
    ),
    "home": (
        ("{s} lives in {o}", "the home of {s} is {o}", "{s} is at home in {o}", "{o} is where {s} lives"),
        ("where does {s} live?", "where is {s} at home?", "the home of {s} is called", "in which place does {s} live?"),
    ),
    "friend": (
        ("{s} is a friend of {o}", "{o} is the friend of {s}", "the friend of {s} is {o}", "{s} has the friend {o}"),
        ("who is the friend of {s}?", "whose friend is {s}?", "the friend of {s} is called", "which friend has {s}?"),
    ),
    "teacher": (
        ("{o} teaches {s}", "{s} is taught by {o}", "the teacher of {s} is {o}", "{s} learns from {o}"),
        ("who teaches {s}?", "who is {s} taught by?", "the teacher of {s} is called", "from whom does {s} learn?"),
    ),
    "maker": (
        ("{o} made {s}", "{s} was made by {o}", "the maker of {s} is {o}", "{s} is a work of {o}"),
        ("who made {s}?", "by whom was {s} made?", "the maker of {s} is called", "whose work is {s}?"),
    ),
}


def told(relation: str, subject: str, answer: str, rng: random.Random, held_out: bool) -> str:
    """A fact in one of its wordings."""
    return _wording(RELATIONS[relation][0], rng, held_out).format(s=subject, o=answer)


def asked(relation: str, subject: str, rng: random.Random, held_out: bool) -> str:
    """A question in one of its wordings."""
    return _wording(RELATIONS[relation][1], rng, held_out).format(s=subject)


def _wording(words: tuple[str, ...], rng: random.Random, held_out: bool) -> str:
    return words[-1] if held_out else rng.choice(words[:-1])


def invented_facts(count: int, rng: random.Random, held_out: bool) -> list[Fact]:
    """``count`` facts, no two of the same subject and relation; a third of the subjects have more than one."""
    subjects = invented_names(max(1, (2 * count + 2) // 3), rng, held_out)
    pairs = [(subject, relation) for subject in subjects for relation in RELATIONS]
    # Every subject once, then others.
    first = [(subject, rng.choice(list(RELATIONS))) for subject in subjects][:count]
    others = [pair for pair in pairs if pair not in set(first)]
    chosen = first + rng.sample(others, count - len(first))
    facts = []
    for subject, relation in chosen:
        answer = invented_name(rng, held_out)
        facts.append(
            Fact(told(relation, subject, answer, rng, held_out), asked(relation, subject, rng, held_out), answer)
        )
    rng.shuffle(facts)
    return facts


def question_without_answer(facts: list[Fact], rng: random.Random, held_out: bool) -> str:
    """A question about a subject that none of ``facts`` tells of."""
    words = {word for fact in facts for word in fact.asked.replace("?", "").split()}
    while True:
        subject = invented_name(rng, held_out)
        if subject not in words:
            return asked(rng.choice(list(RELATIONS)), subject, rng, held_out)
