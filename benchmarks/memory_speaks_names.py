"""What people say, in place of what episodes invent: names as people and places have them, and questions behind other
words."""

from __future__ import annotations

import random
import re
from dataclasses import replace

from bitgen.data.episodes.dataset import Episode

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


def led_in(episode: Episode) -> Episode:
    """The episode whose questions about sentences have words of ``LED_IN`` before them."""
    before = random.Random(str(episode.queries))
    queries = tuple(
        replace(query, prompt=before.choice(LED_IN) + query.prompt) if query.picture is None else query
        for query in episode.queries
    )
    return replace(episode, queries=queries)
