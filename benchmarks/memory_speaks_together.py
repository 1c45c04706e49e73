"""What a model says to a question that is asked with a picture: of sentences, of nobody, and of the picture itself."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from memory_speaks_episodes import SEEDS, episodes, report

from bitgen.api import Model
from bitgen.data.dataset import PairDataset
from bitgen.data.episodes.dataset import Episode, EpisodeDataset
from bitgen.data.episodes.names import invented_name
from bitgen.memory.answering import Answer, says
from bitgen.trained import Trained

_UNKNOWN = ("what colour is {}?", "who is {}?")  # training has no sentences that tell of these
_PICTURES, _TOLD = 15, 6


def asked_together(trained: Trained, data: PairDataset | None, count: int) -> None:
    """16 sentences beside 15 pictures; then six sentences are told of names that pictures were taught."""
    model, found = Model(trained), {}
    for seed in SEEDS:
        rng = random.Random(seed)
        for dataset, episode in episodes(trained, data, seed, count, pictures=_PICTURES, sentences=16):
            shares: dict[str, list[bool]] = {}
            for name, right in _asked(model, dataset, episode, rng):
                shares.setdefault(name, []).append(right)
            for name, rights in shares.items():
                found.setdefault(name, []).append(100 * sum(rights) / len(rights))
    for name, values in found.items():
        report(f"together_{name}", values, facts=16 + _PICTURES, slots=128)


def _asked(model: Model, dataset: EpisodeDataset, episode: Episode, rng: random.Random) -> Iterator[tuple[str, bool]]:
    tensors, memory, pictures = dataset.tensors(episode), model.memory(slots=128), []
    taught, asked = iter(tensors["taught_pictures"]), iter(tensors["query_pictures"])
    for text, picture in episode.taught:
        if picture is None:
            memory.tell([text])
        else:
            pictures.append((text, next(taught)))
            memory.write([pictures[-1][1]], [text])
    for query in episode.queries:
        if query.picture is not None:
            image = next(asked)
            if query.prompt:
                yield "about_it_asks_the_picture", not memory.recalled(image, query.prompt).by_question
            continue
        image = rng.choice(pictures)[1]
        if query.facts:
            said = model.answer(query.prompt, image, memory)
            yield query.kind, says(Answer(query, said, said, (), 0.0))
        else:
            yield "nobody_asks_the_picture", not memory.recalled(image, query.prompt).by_question
    for text, image in pictures[:_TOLD]:
        name, owner = re.findall(r"[A-Z]\w+", text)[-1], invented_name(rng, held_out=True)
        memory.tell([f"{name} belongs to {owner}"])
        yield "its_owner", re.search(rf"\b{owner}\b", model.answer(f"who owns {name}?", image, memory)) is not None
        yield (
            "its_name_in_captions",
            re.search(rf"\b{name}\b", model.caption(image, num_beams=1, memory=memory)) is not None,
        )
        for question in _UNKNOWN:
            by_question = memory.recalled(image, question.format(name)).by_question
            yield re.sub(r"\W+", "_", question.format("NAME")).strip("_") + "_recalls_it", by_question
