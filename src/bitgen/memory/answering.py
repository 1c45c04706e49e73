"""What a model says with a memory: answers to the queries of episodes, and how many of them are right. Training is
validated by these, and benchmarks print them; what users ask goes through ``spoken.py``."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from bitgen.data.episodes.dataset import Episode, EpisodeDataset, Query
from bitgen.data.scenes.descriptions import Scene
from bitgen.data.scenes.named import read_named_caption
from bitgen.data.scenes.reading import read_caption
from bitgen.evaluation.generation import generate_texts, language_model
from bitgen.memory.address_space import IMAGE, TEXT, AddressSpace
from bitgen.memory.associative import AssociativeMemory
from bitgen.model.modeling_bitgen import BitGenModel
from bitgen.model.recalled import Recalled
from bitgen.model.speaking import BY_PICTURE, BY_TEXT, Meaning, chosen, find, find_asked, recalled_for
from bitgen.objectives.recall import RecallObjective

LONGEST_ANSWER = 40

Read = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Answer:
    """What was said to a query: with the memory, and without; and which facts were recalled."""

    query: Query
    said: str
    plain: str
    facts: tuple[int, ...]
    confidence: float


def facts_space(model: BitGenModel, slots: int) -> AddressSpace:
    """Where a model's facts are written: pairs of key and value."""
    assert model.recall is not None
    return AddressSpace(model.config.recall_dim, slots, device=model.device, value=model.recall.value_width)


class Speaker:
    """A model that is taught episodes and asked their queries.

    Args:
        objective: with the model; it is put into eval mode.
        data: makes the tensors of its episodes.
        slots: of the memory that an episode is written into.
    """

    beams = 1  # of an answer; 1: greedy

    def __init__(self, objective: RecallObjective, data: EpisodeDataset, slots: int = 128) -> None:
        self.objective, self.data = objective, data
        self.model = objective.eval().model
        self.space = facts_space(self.model, slots)
        assert data.processor.tokenizer is not None
        self.tokenizer = data.processor.tokenizer
        self.generator = language_model(self.model, self.tokenizer)

    def tensors(self, episode: Episode) -> dict[str, torch.Tensor]:
        """An episode's tensors, on the model's device."""
        return {name: value.to(self.model.device) for name, value in self.data.tensors(episode).items()}

    @torch.no_grad()
    def teach(self, tensors: dict[str, torch.Tensor]) -> AssociativeMemory:
        """A memory of an episode's facts, written in one step."""
        return AssociativeMemory.empty(self.space).written(torch.cat(self.objective.write(tensors), dim=1))

    @torch.no_grad()
    def ask(
        self,
        memory: AssociativeMemory,
        episode: Episode,
        tensors: dict[str, torch.Tensor],
        plain: bool = True,
        read: Read | None = None,
        told: bool = False,
        meaning: tuple[Meaning, Meaning] = (BY_PICTURE, BY_TEXT),
    ) -> list[Answer]:
        """What the model says to an episode's queries, in their order.

        Args:
            memory: of the episode's facts.
            plain: ask without the memory too.
            read: rows of facts to their values; None: the memory's own reading of their keys.
            told: recall the facts that each query is about, whatever the cue means: addressing that is never wrong.
            meaning: when a picture, and a text, means a fact.
        """
        recall, queries = self.model.recall, episode.queries
        assert recall is not None
        keys = memory.halves(IMAGE)
        pictured = [row for row, query in enumerate(queries) if query.picture is not None]
        worded = [row for row, query in enumerate(queries) if query.picture is None]
        answers: dict[int, Answer] = {}
        for rows, sees in ((pictured, True), (worded, False)):
            if not rows:
                continue
            tokens = self.objective.image_tokens(tensors["query_pictures"]) if sees else None
            if tokens is not None:
                found = find(recall, keys, memory.halves(TEXT), recall.picture(tokens), meaning[0])
            else:
                question = recall.questions(tensors["prompt_ids"], tensors["prompt_mask"])
                found = find_asked(recall, keys, memory.halves(TEXT), question, meaning[1])
            facts = [list(queries[row].facts) for row in rows] if told else chosen(found)
            recalled = recalled_for(
                recall, facts, found, read or (lambda rows: memory.read(keys[rows], IMAGE).halves), tokens
            )
            said = self.say([queries[row].prompt for row in rows], tokens, recalled)
            alone = self.say([queries[row].prompt for row in rows], tokens, None) if plain else said
            surest = F.pad(found.confidence, (0, 1)).amax(dim=1).tolist()  # 0 where nothing was taught
            for at, row in enumerate(rows):
                answers[row] = Answer(queries[row], said[at], alone[at], tuple(facts[at]), surest[at])
        return [answers[row] for row in range(len(queries))]

    def say(self, prompts: list[str], tokens: torch.Tensor | None, recalled: Recalled | None) -> list[str]:
        """Answers after prompts, on one line each, with pictures' tokens ``[B, P, D]`` or without."""
        given: dict[str, Any] = {} if tokens is None else {"image_tokens": tokens.to(self.model.dtype)}
        if recalled is not None:
            given |= {"recalled": recalled.tokens, "recalled_mask": recalled.present}
        written = generate_texts(self.generator, self.tokenizer, prompts, self.beams, LONGEST_ANSWER, **given)
        return [" ".join(text.split()) for text in written]


def answer_episode(
    objective: RecallObjective, data: EpisodeDataset, episode: Episode, slots: int = 128
) -> list[Answer]:
    """Teach an episode's facts in one write, and ask its queries with and without them."""
    speaker = Speaker(objective, data, slots)
    tensors = speaker.tensors(episode)
    return speaker.ask(speaker.teach(tensors), episode, tensors)


def says(answer: Answer) -> bool:
    """Whether all that was taught and asked for is in the answer."""
    query = answer.query
    wanted = list(query.names.values()) if query.prompt == "" else [query.answer]
    return all(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", answer.said) is not None for name in wanted)


def whole_caption(answer: Answer) -> bool:
    """Whether a caption names what was taught and is right in all else that the scene holds, but its sizes
    and background."""
    query = answer.query
    assert query.scene is not None
    read = read_named_caption(answer.said, query.names, query.scene) if query.names else read_caption(answer.said)
    return read is not None and _said(read) == _said(query.scene)


def _said(scene: Scene) -> tuple:
    return scene.kind, scene.where, tuple((thing.colour, thing.shape, thing.count) for thing in scene.things)


def is_right(answer: Answer) -> bool:
    """Whether an answer has what was taught, or, where nothing was, is the one without a memory."""
    return says(answer) if answer.query.facts else answer.said == answer.plain


def score(answers: Sequence[Answer]) -> tuple[float, float]:
    """The percent of queries that are answered right (:func:`is_right`), as the mean over their kinds, and its standard
    error, which takes the queries as independent."""
    right: dict[tuple[str, bool], list[bool]] = {}
    for answer in answers:
        right.setdefault((answer.query.kind, bool(answer.query.facts)), []).append(is_right(answer))
    share = statistics.fmean(sum(kind) / len(kind) for kind in right.values())
    # One right and one wrong answer more (Laplace): where all are right the error is not 0.
    smoothed = [((sum(kind) + 1) / (len(kind) + 2), len(kind)) for kind in right.values()]
    variance = sum(chance * (1 - chance) / queries for chance, queries in smoothed)
    return 100 * share, 100 * math.sqrt(variance) / len(smoothed)


def measures(answers: Sequence[Answer]) -> dict[str, float]:
    """Shares in percent.

    ``says_KIND``: of the queries of a kind that are about something taught, those whose answer has it. ``whole_KIND``:
    captions that are right altogether. ``recalled_KIND``: those that recall the right facts and no other.
    ``unchanged_KIND``: of the queries about nothing that was taught, those answered word for word as without a memory.
    """
    found: dict[str, list[bool]] = {}
    for answer in answers:
        kind = answer.query.kind
        found.setdefault(f"recalled_{kind}", []).append(set(answer.facts) == set(answer.query.facts))
        found.setdefault(f"{'says' if answer.query.facts else 'unchanged'}_{kind}", []).append(is_right(answer))
        if answer.query.facts and answer.query.scene is not None and not answer.query.prompt:
            found.setdefault(f"whole_{kind}", []).append(whole_caption(answer))
    return {name: 100 * sum(values) / len(values) for name, values in sorted(found.items())}
