"""What people say, in place of what episodes invent: names as people and places have them, capitals and full stops,
questions behind other words, and questions that are nearly about what was taught."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import replace

from bitgen.data.episodes.dataset import Episode, Query
from bitgen.data.episodes.facts import RELATIONS, asked

# Of the part of all names that no training draws.
EVERYDAY = (
    "Aiden Alice Ama Amara Amelia Anton Ben Berlin Bjorn Boston Dallas Diego Dmitri Ellie Evelyn Fatima Frank Hannah "
    "Harper Ivan Jack John Julian Karen Kwame Lagos Layla Lily Lucas Manila Maria Mary Mia Nina Noah Oslo Paris Peter "
    "Priya Robert Susan Toronto Umar Ursula Violet Yuki"
).split()
# No question of training begins with any of these, though some of their words occur elsewhere in training.
LED_IN = (
    "do you know ", "please tell me, ", "i would like to hear ", "hello! ", "excuse me, ", "can you remember: ",
    "one more question: ", "my friend asks ", "by the way, ", "i forgot, ", "maybe you remember: ", "help me please, ",
)  # fmt: skip


def renamed(episode: Episode) -> Episode:
    """The episode whose sentences, and what is asked about them, have names of ``EVERYDAY``."""
    sentences = " ".join(text for text, picture in episode.taught if picture is None)
    theirs = sorted(set(re.findall(r"\b[A-Z]\w*", sentences)))
    names = dict(zip(theirs, random.Random(sentences).sample(EVERYDAY, len(theirs)), strict=True))

    def with_names(text: str) -> str:
        return re.sub(r"\b[A-Z]\w*", lambda word: names.get(word[0], word[0]), text)

    taught = tuple((with_names(text) if picture is None else text, picture) for text, picture in episode.taught)
    queries = tuple(
        replace(query, prompt=with_names(query.prompt), answer=with_names(query.answer))
        if query.picture is None
        else query
        for query in episode.queries
    )
    return replace(episode, taught=taught, queries=queries)


def written(episode: Episode) -> Episode:
    """The episode whose sentences, and questions about them, begin with a capital; sentences end with a full stop."""
    taught = tuple((text if picture is not None else f"{_capital(text)}.", picture) for text, picture in episode.taught)
    queries = tuple(
        replace(query, prompt=_capital(query.prompt)) if query.picture is None else query for query in episode.queries
    )
    return replace(episode, taught=taught, queries=queries)


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def led_in(episode: Episode) -> Episode:
    """The episode whose questions about sentences have words of ``LED_IN`` before them."""
    before = random.Random(str(episode.queries))
    queries = tuple(
        replace(query, prompt=before.choice(LED_IN) + query.prompt) if query.picture is None else query
        for query in episode.queries
    )
    return replace(episode, queries=queries)


def misspelt(episode: Episode) -> Episode:
    """The episode whose questions about sentences are about names with one letter changed, which nobody has."""
    rng, said = random.Random(str(episode.queries)), " ".join(text for text, _ in episode.taught)
    queries = []
    for query in _about_sentences(episode):
        name = re.findall(r"\b[A-Z]\w+", query.prompt)[-1]
        at = rng.randrange(1, len(name))
        letters = "aeiou" if name[at] in "aeiou" else "bdfgklmnprst"
        other = name[:at] + rng.choice(letters.replace(name[at], "")) + name[at + 1 :]
        if other not in said:
            queries.append(_of_nobody(query, query.prompt.replace(name, other)))
    return _with(episode, queries)


def of_another_relation(episode: Episode) -> Episode:
    """The episode whose questions are about something else of the same name: where Blick lives, of whom only the owner
    was taught. Names of which more was taught are left out."""
    rng, queries = random.Random(str(episode.queries)), []
    for query in _about_sentences(episode):
        told = episode.taught[query.facts[0]][0]
        name = re.findall(r"\b[A-Z]\w+", query.prompt)[-1]
        if query.kind == "sentence" and sum(name in text.split() for text, _ in episode.taught) == 1:
            others = [noun for noun, ways in RELATIONS.items() if not _is(told, ways.told[-1])]
            queries.append(_of_nobody(query, asked(rng.choice(others), name, rng, held_out=True)))
    return _with(episode, queries)


def _is(told: str, form: str) -> bool:
    return re.fullmatch(re.escape(form).replace(r"\{s\}", r"\w+").replace(r"\{o\}", r"\w+"), told) is not None


def _about_sentences(episode: Episode) -> list[Query]:
    return [query for query in episode.queries if query.picture is None and query.facts]


def _of_nobody(query: Query, prompt: str) -> Query:
    return replace(query, kind="sentence_unknown", prompt=prompt, answer="", facts=())


def _with(episode: Episode, queries: list[Query]) -> Episode:
    pictured = [query for query in episode.queries if query.picture is not None]
    return replace(episode, queries=(*pictured, *queries))


_CHAINED = 0.9  # of the sentences, or as many as there are people for
# Kinds of other sentences: what changes an episode, and the share of its sentences that tell of each other's people.
WAYS: tuple[tuple[str, Callable[[Episode], Episode] | None, float | None], ...] = (
    ("plain", None, None), ("everyday", renamed, None), ("chained", None, _CHAINED), ("written", written, None),
    ("led_in", led_in, None),
    ("misspelt", misspelt, None), ("another_relation", of_another_relation, None),
)  # fmt: skip
