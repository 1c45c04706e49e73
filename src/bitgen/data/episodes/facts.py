"""Facts about what does not exist, in words: told in one wording, asked for in another.

Only a memory can know them: who owns Blick is drawn anew for every episode. The last wording of each list is for
evaluation alone, as are the names that ``names`` holds out.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import NamedTuple

from bitgen.data.episodes.names import invented_name, invented_names, like_name


class Fact(NamedTuple):
    """``told``: a sentence about ``subject``; ``asked``: a question in other words, whose ``answer`` was told;
    ``asked_back``: one that tells the answer and asks for the subject; ``relation``: by its noun."""

    told: str
    asked: str
    answer: str
    asked_back: str
    subject: str
    relation: str


class Wordings(NamedTuple):
    """Of one relation: how a fact is told, asked for, and asked for from its other end; the last of each is held
    out."""

    told: tuple[str, ...]
    asked: tuple[str, ...]
    asked_back: tuple[str, ...]


# Of each relation, which is named by a noun. The last wording of each list is held out; its words all occur in others.
_OF_THEIR_OWN: dict[str, Wordings] = {
    "owner": Wordings(
        (
            "{s} belongs to {o}", "{o} owns {s}", "{s} is owned by {o}", "{o} has {s}", "{s} is the property of {o}",
            "it is {o} who owns {s}", "{s} is the one that {o} has", "to {o} belongs {s}", "{s} has the owner {o}",
            "what {o} has is {s}", "it is {s} that {o} owns", "{o} keeps {s}", "{s} was given to {o}",
            "{o} got {s}", "among the things of {o} is {s}", "there is {s}, which {o} has",
            "{o} is the one who owns {s}",
        ),
        (
            "who owns {s}?", "whose is {s}?", "to whom does {s} belong?", "by whom is {s} owned?",
            "whose property is {s}?", "{s} belongs to", "who has {s}?", "who is it that owns {s}?", "{s} is owned by",
            "who is the owner of {s}?",
        ),
        (
            "what does {o} own?", "what belongs to {o}?", "what is owned by {o}?", "what is the property of {o}?",
            "{o} owns", "to {o} belongs", "what is it that {o} owns?", "what does {o} have?",
            "what is it that belongs to {o}?",
        ),
    ),
    "home": Wordings(
        (
            "{s} lives in {o}", "{s} is at home in {o}", "{o} is where {s} lives", "{s} has a house in {o}",
            "in {o} lives {s}", "the place of {s} is {o}", "it is in {o} that {s} lives", "the house of {s} is in {o}",
            "you find {s} in {o}", "{s} stays in {o}", "it is {s} who lives in {o}", "there is {s}, who lives in {o}",
            "{s} went to live in {o}", "{o} is home to {s}", "in {o} you can find {s}", "{s} sleeps in {o}",
            "{o} is the place where {s} lives",
        ),
        (
            "where does {s} live?", "where is {s} at home?", "in which place does {s} live?",
            "where is the house of {s}?", "{s} lives in", "in which place is {s} at home?", "where can {s} be found?",
            "what is the place of {s}?", "{s} has a house in", "where is the home of {s}?",
        ),
        (
            "who lives in {o}?", "who is at home in {o}?", "who has a house in {o}?", "in {o} lives",
            "whose place is {o}?", "who can be found in {o}?", "whose house is in {o}?", "it is in {o} that one finds",
            "who is it that lives in {o}?",
        ),
    ),
    "friend": Wordings(
        (
            "{s} likes {o}", "{s} plays with {o}", "{s} is fond of {o}", "it is {o} whom {s} likes",
            "{o} is liked by {s}", "{o} is dear to {s}", "{s} cares for {o}", "whom {s} likes best is {o}",
            "it is with {o} that {s} plays", "there is {o}, whom {s} is fond of", "{s} thinks the world of {o}",
            "the one that {s} is fond of is {o}", "{s} looks up to {o}", "with {o} {s} likes to play",
            "{s} has the friend {o}", "{o} is the one whom {s} likes",
        ),
        (
            "whom does {s} like?", "who does {s} play with?", "whom is {s} fond of?", "who is the friend of {s}?",
            "with whom does {s} play?", "who is liked by {s}?", "{s} likes", "who is dear to {s}?", "{s} is fond of",
            "who is it that {s} likes?",
        ),
        (
            "who likes {o}?", "who plays with {o}?", "who is fond of {o}?", "by whom is {o} liked?",
            "{o} is liked by", "to whom is {o} dear?", "who cares for {o}?", "with {o} plays",
            "who is it that likes {o}?",
        ),
    ),
    "teacher": Wordings(
        (
            "{o} teaches {s}", "{s} is taught by {o}", "{s} learns from {o}", "{s} is a pupil of {o}",
            "it is {o} who teaches {s}", "{o} has the pupil {s}", "from {o} learns {s}", "the pupil of {o} is {s}",
            "{s} goes to {o} to learn", "{o} gives lessons to {s}", "it is {s} whom {o} teaches",
            "there is {o}, from whom {s} learns", "what {s} knows is from {o}", "{o} has {s} in class",
            "among the pupils of {o} is {s}", "the one whom {o} teaches is {s}",
            "{s} has the teacher {o}", "{o} is the one who teaches {s}",
        ),
        (
            "who teaches {s}?", "by whom is {s} taught?", "from whom does {s} learn?", "whose pupil is {s}?",
            "{s} is taught by", "who does {s} learn from?", "who is it that teaches {s}?", "{s} learns from",
            "{s} is a pupil of", "who is the teacher of {s}?",
        ),
        (
            "whom does {o} teach?", "who is taught by {o}?", "who learns from {o}?", "who is a pupil of {o}?",
            "{o} teaches", "from {o} learns", "{o} has the pupil", "who is it that learns from {o}?",
            "who is the pupil of {o}?",
        ),
    ),
    "maker": Wordings(
        (
            "{o} made {s}", "{s} was made by {o}", "{s} is a work of {o}", "{o} built {s}", "{s} was built by {o}",
            "it is {o} who made {s}", "{s} comes from the hand of {o}", "the work of {o} is {s}",
            "{s} has the maker {o}", "it is {s} that {o} built", "{o} is said to have made {s}",
            "there is {s}, which {o} made", "what {o} made is {s}", "{o} put {s} together",
            "among the works of {o} is {s}", "the one that {o} built is {s}",
            "{o} is the one who made {s}",
        ),
        (
            "who made {s}?", "by whom was {s} made?", "whose work is {s}?", "who built {s}?",
            "by whom was {s} built?", "{s} was made by", "who is it that made {s}?", "{s} is a work of",
            "from whose hand does {s} come?", "who is the maker of {s}?",
        ),
        (
            "what was made by {o}?", "what is a work of {o}?", "what was built by {o}?",
            "what comes from the hand of {o}?", "{o} made", "{o} built", "what is it that {o} made?",
            "the work of {o} is", "what is it that {o} built?",
        ),
    ),
}  # fmt: skip
# The same by the noun alone.
_BY_NOUN = Wordings(
    (
        "the {n} of {s} is {o}", "{o} is the {n} of {s}", "{s} has {o} as {n}", "as {n} {s} has {o}",
        "for {s} the {n} is {o}", "the {n} that {s} has is {o}", "{s} has one {n}, {o}",
        "as for {s}, the {n} is {o}", "{n} of {s}: {o}", "{o} came to be the {n} of {s}", "{s} got {o} as {n}",
        "the one that {s} has as {n} is {o}", "ask {s} for the {n}, and it is {o}", "there is {o}, the {n} of {s}",
    ),
    (
        "the {n} of {s} is called", "the {n} of {s} is", "what is the name of the {n} of {s}?", "what {n} has {s}?",
        "which {n} does {s} have?", "name the {n} of {s}:", "{n} of {s}?", "as {n} {s} has", "for {s} the {n} is",
        "what is the {n} of {s} called?", "tell me the {n} of {s}:", "the {n} that {s} has is",
    ),
    (
        "whose {n} is {o}?", "{o} is the {n} of", "of whom is {o} the {n}?", "who has {o} as {n}?",
        "who has the {n} {o}?", "the one that has {o} as {n} is", "name who has the {n} {o}:",
    ),
)  # fmt: skip


def _wordings(noun: str) -> Wordings:
    """Those by the noun first, and what is held out last of each alone."""
    return Wordings(
        *(
            (*(way for way in (one.replace("{n}", noun) for one in general) if way != own[-1]), *own)
            for general, own in zip(_BY_NOUN, _OF_THEIR_OWN[noun], strict=True)
        )
    )


RELATIONS = {noun: _wordings(noun) for noun in _OF_THEIR_OWN}


def _exchanged(forms: Sequence[str]) -> tuple[str, ...]:
    """With ``{s}`` for ``{o}`` and ``{o}`` for ``{s}``."""
    return tuple(re.sub(r"\{[so]\}", lambda gap: "{o}" if gap[0] == "{s}" else "{s}", form) for form in forms)


# What may stand before and behind a sentence and a question, so that its words are not always in the same places.
BEFORE = ("", "", "", "now ", "so ", "and ", "they say ", "well, ")
BEHIND = ("", "", "", " now", " too", ", they say", " again")
BEFORE_QUESTION = ("", "", "", "now, ", "well, ", "and ", "so ", "say: ")
# One question in five of training begins with a few made-up words, as "do you know" is to who never read it.
# None has a capital, by which they differ from names: else every word that no fact holds would count like a name.
_UNHEARD, _MOST_UNHEARD = 0.2, 3
_BEHIND_UNHEARD = (" ", " ", ", ", "! ", ": ")
# People begin with a capital and end with a full stop, and some leave out the question mark. Training does so at times:
# else "Who" would count like a name.
_CAPITAL, _STOP, _NO_MARK = 0.4, 0.3, 0.1
# Three in ten wordings of training have their words in another order, with some of these between. A model that learned
# fixed wordings alone would not know where the name stands in one that it never read.
_SCRAMBLED = 0.3
FILLERS = ("now", "so", "and", "well", "too", "again", "the", "a", "is", "that", "it", "there")
_ORDER_ALONE = 3  # words, of which nothing but their order tells who does what to whom
_TIED = re.compile(r"\b(?:by|for|from|in|of|to|with) \{\w*\}")  # a preposition and the name behind it
_NEAR = 0.5  # of the questions of training that have no answer
_CHAINED = 0.25  # of the facts of training: what is told is somebody of whom something else is told


def wording(forms: Sequence[str], rng: random.Random, held_out: bool, never: Sequence[str] = ()) -> str:
    """One of ``forms``, of which the last is held out; in training perhaps scrambled, and then nothing that holds what
    is held out, or what is ``never`` to be said."""
    if held_out:
        return forms[-1]
    form = rng.choice(forms[:-1])
    return scrambled(form, (forms[-1], *never), rng) if rng.random() < _SCRAMBLED else form


def scrambled(form: str, never: Sequence[str], rng: random.Random) -> str:
    """Words of ``form`` in another order, with some of :data:`FILLERS` between. Names keep their order and their
    prepositions, without which nobody could tell who owns whom."""
    place = "{relation} the {other}"  # says where something is, and stays together
    words = _bare(form.replace(place, "{}")).split()
    if len(words) <= _ORDER_ALONE:
        return form
    words += rng.choices(FILLERS, k=rng.randint(0, 2))
    names = [word for word in words if "{" in word]
    tied = sorted(_TIED.findall(" ".join(words)))
    while True:
        rng.shuffle(words)
        order = iter(names)
        mixed = " ".join(next(order) if "{" in word else word for word in words)
        if sorted(_TIED.findall(mixed)) != tied:
            continue
        mixed = mixed.replace("{}", place)
        if not any(f" {_bare(other)} " in f" {mixed} " for other in never):
            return mixed + rng.choice(("", "?")) if form.endswith("?") else mixed


def _bare(form: str) -> str:
    return form.translate({ord(mark): None for mark in "?:,"})


def told(relation: str, subject: str, answer: str, rng: random.Random, held_out: bool) -> str:
    """A fact in one of its wordings."""
    forms = RELATIONS[relation].told
    sentence = wording(forms, rng, held_out, _exchanged(forms)).format(s=subject, o=answer)
    return sentence if held_out else surrounded(sentence, rng)


def asked(relation: str, name: str, rng: random.Random, held_out: bool, back: bool = False) -> str:
    """A question in one of its wordings, about a subject; ``back``: it names the answer and asks for the subject."""
    _, forms, other = RELATIONS[relation]
    if back:
        forms, other = other, forms
    question = wording(forms, rng, held_out, _exchanged(other)).format(s=name, o=name)
    return question if held_out else led_in(question, rng)


def led_in(question: str, rng: random.Random) -> str:
    """A question of training behind other words, which it is not about."""
    question = f"{rng.choice(BEFORE_QUESTION)}{question}"
    if rng.random() < _UNHEARD:
        unheard = [invented_name(rng, held_out=False).lower() for _ in range(rng.randint(1, _MOST_UNHEARD))]
        question = f"{' '.join(unheard)}{rng.choice(_BEHIND_UNHEARD)}{question}"
    if question.endswith("?") and rng.random() < _NO_MARK:
        question = question[:-1]
    return _perhaps_a_capital(question, rng)


def surrounded(text: str, rng: random.Random) -> str:
    """What is taught in training, with other words before and behind it."""
    text = _perhaps_a_capital(f"{rng.choice(BEFORE)}{text}{rng.choice(BEHIND)}", rng)
    return f"{text}." if rng.random() < _STOP else text


def _perhaps_a_capital(text: str, rng: random.Random) -> str:
    return text[0].upper() + text[1:] if rng.random() < _CAPITAL else text


def invented_facts(count: int, rng: random.Random, held_out: bool, chained: float | None = None) -> list[Fact]:
    """``count`` facts, no two of the same subject and relation, each with an answer that no other fact has; about
    four subjects in ten have more than one.

    ``chained``: the share of facts whose answer is the subject of another one, as in "Blick belongs to Anna" and "Anna
    lives in Oslo", at most two thirds; None: a quarter in training, and none in evaluation.
    """
    subject_count = max(1, (2 * count + 2) // 3)
    names = invented_names(subject_count + count, rng, held_out)
    subjects, answers = names[:subject_count], names[subject_count:]
    pairs = [(subject, relation) for subject in subjects for relation in RELATIONS]
    # Every subject once, then others.
    first = [(subject, rng.choice(list(RELATIONS))) for subject in subjects][:count]
    others = [pair for pair in pairs if pair not in set(first)]
    chosen = first + rng.sample(others, count - len(first))
    if chained is None:
        chained = 0.0 if held_out else _CHAINED
    if chained:
        answers = _chained(chosen, answers, chained, rng)
    facts = [
        Fact(
            told(relation, subject, answer, rng, held_out),
            asked(relation, subject, rng, held_out),
            answer,
            asked(relation, answer, rng, held_out, back=True),
            subject,
            relation,
        )
        for (subject, relation), answer in zip(chosen, answers, strict=True)
    ]
    rng.shuffle(facts)
    return facts


def _chained(told_of: list[tuple[str, str]], answers: list[str], share: float, rng: random.Random) -> list[str]:
    """``answers`` with subjects of other facts for about ``share`` of them, each once; no two are told of each
    other."""
    answers, free = list(answers), list(dict.fromkeys(subject for subject, _ in told_of))
    rng.shuffle(free)
    for at, (subject, _) in enumerate(told_of):
        if free and rng.random() < share:
            back = {told_of[other][0] for other, answer in enumerate(answers) if answer == subject}
            if free[-1] != subject and free[-1] not in back:
                answers[at] = free.pop()
    return answers


def question_without_answer(facts: Sequence[Fact], rng: random.Random, held_out: bool) -> str:
    """A question that none of ``facts`` answers. In evaluation it is about somebody whom they do not tell of; in
    training half differ from a question about a fact in the relation or in a letter (:func:`near_miss`), and a quarter
    are about a name of the same initial."""
    if not held_out and rng.random() < _NEAR:
        return near_miss(facts, rng)
    known = {name for fact in facts for name in (fact.subject, fact.answer)}
    alike = not held_out and rng.random() < 0.5
    initials = {name[0] for name in known} if alike else set()
    while True:
        name = invented_name(rng, held_out)
        if name not in known and (not initials or name[0] in initials):
            return asked(rng.choice(list(RELATIONS)), name, rng, held_out, back=rng.random() < 0.5)


def near_miss(facts: Sequence[Fact], rng: random.Random) -> str:
    """A question of training about something else of somebody whom ``facts`` tell of, or about the same of a name that
    differs in one letter."""
    fact, back = rng.choice(facts), rng.random() < 0.5
    name = fact.answer if back else fact.subject
    # From neither end: words in another order do not always say which end is asked for. And "who has Blick?" may ask
    # for any of them.
    told_of = {one.relation for one in facts if name in (one.subject, one.answer)}
    others = [relation for relation in RELATIONS if relation not in told_of and relation != "owner"]
    if others and rng.random() < 0.5:
        return asked(rng.choice(others), name, rng, held_out=False, back=back)
    known, other = {name for fact in facts for name in (fact.subject, fact.answer)}, name
    while other in known:
        other = like_name(name, rng)
    return asked(fact.relation, other, rng, held_out=False, back=back)
