"""Facts about what does not exist, in words: told in one wording, asked for in another.

Only a memory can know them: who owns Blick is drawn anew for every episode. The last wording of each list is for
evaluation alone, as are the names that ``names`` holds out.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from bitgen.data.episodes.names import invented_name, invented_names


class Fact(NamedTuple):
    """``told``: a sentence; ``asked``: a question in other words; ``answer``: what was told."""

    told: str
    asked: str
    answer: str


# Of each relation, which is named by a noun: how a fact is told, and how it is asked for. The last of each is held out;
# its words are not.
_OF_THEIR_OWN: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "owner": (
        (
            "{s} belongs to {o}", "{o} owns {s}", "{s} is owned by {o}", "{o} has {s}", "{s} is the property of {o}",
            "it is {o} who owns {s}", "{s} is the one that {o} has", "to {o} belongs {s}", "{s} has the owner {o}",
        ),
        (
            "who owns {s}?", "whose is {s}?", "to whom does {s} belong?", "by whom is {s} owned?",
            "whose property is {s}?", "{s} belongs to", "who has {s}?", "who is it that owns {s}?", "{s} is owned by",
            "who is the owner of {s}?",
        ),
    ),
    "home": (
        (
            "{s} lives in {o}", "{s} is at home in {o}", "{o} is where {s} lives", "{s} has a house in {o}",
            "in {o} lives {s}", "the place of {s} is {o}", "it is {o} where {s} lives", "the house of {s} is in {o}",
            "{o} is the home of {s}",
        ),
        (
            "where does {s} live?", "where is {s} at home?", "in which place does {s} live?",
            "where is the house of {s}?", "{s} lives in", "in which place is {s} at home?", "where can {s} be found?",
            "what is the place of {s}?", "{s} has a house in", "where is the home of {s}?",
        ),
    ),
    "friend": (
        (
            "{s} is a friend of {o}", "{s} likes {o}", "{s} plays with {o}", "{s} is fond of {o}",
            "it is {o} whom {s} likes", "{o} is liked by {s}", "{s} and {o} are friends", "{o} plays with {s}",
            "{s} has the friend {o}",
        ),
        (
            "whose friend is {s}?", "whom does {s} like?", "who does {s} play with?", "whom is {s} fond of?",
            "{s} is a friend of", "who is the friend of {s}?", "with whom does {s} play?", "who is liked by {s}?",
            "{s} likes", "who is it that {s} likes?",
        ),
    ),
    "teacher": (
        (
            "{o} teaches {s}", "{s} is taught by {o}", "{s} learns from {o}", "{s} is a pupil of {o}",
            "it is {o} who teaches {s}", "{o} has the pupil {s}", "from {o} learns {s}", "the pupil of {o} is {s}",
            "{s} has the teacher {o}",
        ),
        (
            "who teaches {s}?", "by whom is {s} taught?", "from whom does {s} learn?", "whose pupil is {s}?",
            "{s} is taught by", "who does {s} learn from?", "who is it that teaches {s}?", "{s} learns from",
            "{s} is a pupil of", "who is the teacher of {s}?",
        ),
    ),
    "maker": (
        (
            "{o} made {s}", "{s} was made by {o}", "{s} is a work of {o}", "{o} built {s}", "{s} was built by {o}",
            "it is {o} who made {s}", "{s} comes from {o}", "the work of {o} is {s}", "{s} has the maker {o}",
        ),
        (
            "who made {s}?", "by whom was {s} made?", "whose work is {s}?", "who built {s}?",
            "by whom was {s} built?", "{s} was made by", "who is it that made {s}?", "{s} is a work of",
            "from whom does {s} come?", "who is the maker of {s}?",
        ),
    ),
}  # fmt: skip
# How a fact is told, and asked for, by the noun alone.
_BY_NOUN = (
    (
        "the {n} of {s} is {o}", "{o} is the {n} of {s}", "{s} has {o} as {n}", "as {n} {s} has {o}",
        "for {s} the {n} is {o}", "the {n} that {s} has is {o}", "{s} has a {n}, {o}",
    ),
    (
        "the {n} of {s} is called", "the {n} of {s} is", "what is the name of the {n} of {s}?", "what {n} has {s}?",
        "which {n} does {s} have?", "name the {n} of {s}:", "{n} of {s}?", "as {n} {s} has", "for {s} the {n} is",
        "what is the {n} of {s} called?", "tell me the {n} of {s}:", "the {n} that {s} has is",
    ),
)  # fmt: skip


def _wordings(noun: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Of being told, and of being asked for; those by the noun first, and what is held out last of each alone."""
    told, asked = (
        (*(way for way in (one.replace("{n}", noun) for one in general) if way != own[-1]), *own)
        for general, own in zip(_BY_NOUN, _OF_THEIR_OWN[noun], strict=True)
    )
    return told, asked


RELATIONS = {noun: _wordings(noun) for noun in _OF_THEIR_OWN}


# What may stand before and behind a sentence and a question, so that its words are not always in the same places.
BEFORE = ("", "", "", "now ", "so ", "and ", "they say ", "well, ")
BEHIND = ("", "", "", " now", " too", ", they say", " again")
BEFORE_QUESTION = ("", "", "", "now, ", "well, ", "and ", "so ", "say: ")
# Three in ten wordings of training have their words in another order, with some of these between. A model that learned
# fixed wordings alone would not know where the name stands in one that it never read.
_SCRAMBLED = 0.3
FILLERS = ("now", "so", "and", "well", "too", "again", "the", "a", "is", "of", "that", "it")


def wording(forms: Sequence[str], rng: random.Random, held_out: bool) -> str:
    """One of ``forms``, of which the last is held out; in training perhaps scrambled, and never what is held out."""
    if held_out:
        return forms[-1]
    form = rng.choice(forms[:-1])
    return _scrambled(form, forms[-1], rng) if rng.random() < _SCRAMBLED else form


def _scrambled(form: str, held_out: str, rng: random.Random) -> str:
    place = "{relation} the {other}"  # says where something is, and stays together
    words = form.replace(place, "{}").translate({ord(mark): None for mark in "?:,"}).split()
    words += rng.choices(FILLERS, k=rng.randint(0, 2))
    while True:
        rng.shuffle(words)
        mixed = " ".join(words).replace("{}", place)
        if held_out.rstrip("?") not in mixed:
            return mixed + rng.choice(("", "?")) if form.endswith("?") else mixed


def told(relation: str, subject: str, answer: str, rng: random.Random, held_out: bool) -> str:
    """A fact in one of its wordings."""
    sentence = wording(RELATIONS[relation][0], rng, held_out).format(s=subject, o=answer)
    return sentence if held_out else f"{rng.choice(BEFORE)}{sentence}{rng.choice(BEHIND)}"


def asked(relation: str, subject: str, rng: random.Random, held_out: bool) -> str:
    """A question in one of its wordings."""
    question = wording(RELATIONS[relation][1], rng, held_out).format(s=subject)
    return question if held_out else f"{rng.choice(BEFORE_QUESTION)}{question}"


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
        answer = subject
        while answer == subject:  # or the question alone would say it
            answer = invented_name(rng, held_out)
        facts.append(
            Fact(told(relation, subject, answer, rng, held_out), asked(relation, subject, rng, held_out), answer)
        )
    rng.shuffle(facts)
    return facts


def question_without_answer(facts: Sequence[Fact], rng: random.Random, held_out: bool) -> str:
    """A question about a subject that none of ``facts`` tells of."""
    words = {word for fact in facts for word in fact.asked.replace("?", "").split()}
    while True:
        subject = invented_name(rng, held_out)
        if subject not in words:
            return asked(rng.choice(list(RELATIONS)), subject, rng, held_out)
