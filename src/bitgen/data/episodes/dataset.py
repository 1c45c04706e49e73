"""Episodes: what is taught, and what is asked after it; the answers are drawn anew each time, so that only a memory can
know them.

An episode teaches pictures of built-in scenes with names, and sentences of invented facts. Its queries are new pictures
with what was taught in them, questions in other words, and pictures and questions about nothing that was taught.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from bitgen.data.bad_records import load_or_replace
from bitgen.data.episodes.facts import Fact, invented_facts, led_in, question_without_answer, wording
from bitgen.data.episodes.names import invented_names
from bitgen.data.sampler import ResumableBatchSampler, SampleKey
from bitgen.data.scenes.descriptions import Scene, scene_rng
from bitgen.data.scenes.drawing import render_scene
from bitgen.data.scenes.named import (
    QUESTIONS,
    Entity,
    entities,
    named_caption,
    naming,
    scene_alone,
    scene_with,
)
from bitgen.data.scenes.wording import RELATION_WORDS, caption_scene, opposite
from bitgen.model.likelihood import IGNORED
from bitgen.model.processing_bitgen import BitGenProcessor, pad_tokens
from bitgen.model.speaking import MOST_RECALLED

NOTHING = -1
_STRANGERS = 4  # things, at least, that a scene's episode teaches nothing of
# Share of the questions about a fact that tell its answer and ask for its subject. Half of the questions that no fact
# answers come from that end: at 0.25, 40% of all that do have no answer, and 18% of the others; at 0.4, 29 and 22%.
_BACK = 0.4

# What is asked about a picture: the one that was taught; a new one of the thing alone, or with another that has no name
# or has one too; a question about it; and one of nothing that was taught.
_KINDS, _SHARES = ("taught", "alone", "with", "two", "question", "unknown"), (8, 14, 28, 20, 12, 18)


@dataclass(frozen=True)
class Query:
    """What is asked of a memory.

    ``picture``: the number of a picture, None: a question in words alone. ``prompt``: what the answer follows; empty: a
    caption. ``answer``: what is right. ``facts``: those that it takes to know; none: the model is to say what it says
    without a memory. ``kind``: what is measured by it. ``names``: of what the picture shows, those that were taught, by
    the thing.
    """

    kind: str
    prompt: str
    answer: str
    facts: tuple[int, ...]
    picture: int | None = None
    names: Mapping[Any, str] = field(default_factory=dict)
    scene: Scene | None = None


@dataclass(frozen=True)
class Episode:
    """``taught``: pairs of a text and the number of its picture (None: a sentence); pictures' numbers are those of
    ``pictures``, which are rendered by :meth:`EpisodeMaker.tensor`."""

    taught: tuple[tuple[str, int | None], ...]
    queries: tuple[Query, ...]
    pictures: tuple[Any, ...]


class EpisodeMaker(Protocol):
    """Makes episodes, and their pictures."""

    def episode(self, key: SampleKey) -> Episode: ...

    def tensor(self, picture: Any) -> torch.Tensor: ...


@dataclass(frozen=True)
class SceneEpisodes:
    """Episodes of built-in scenes and invented facts.

    Args:
        pictures, sentences: how many of each are taught, at most; in training the number varies up to that.
        picture_queries, sentence_queries: how many of each are asked.
        held_out: entities, names and wordings that training never has.
        chained: share of the sentences that tell of somebody of whom another tells; None: as in ``invented_facts``.
    """

    processor: BitGenProcessor
    seed: int
    pictures: int = 24
    sentences: int = 24
    picture_queries: int = 32
    sentence_queries: int = 24
    held_out: bool = False
    chained: float | None = None

    def episode(self, key: SampleKey) -> Episode:
        """The episode of a key, which alone decides it."""
        rng = scene_rng(self.seed, "held out" if self.held_out else "train", "episode", key.index, key.epoch)
        return _SceneEpisode(self, rng).made()

    def tensor(self, picture: tuple[Scene, int]) -> torch.Tensor:
        """``pixel_values [3, H, W]``."""
        scene, number = picture
        image = render_scene(scene, self.processor.image_size, random.Random(number))
        return self.processor.image(image, "a scene of an episode")


class _SceneEpisode:
    """One episode as it is being made."""

    def __init__(self, plan: SceneEpisodes, rng: random.Random) -> None:
        self.plan, self.rng, self.held_out = plan, rng, plan.held_out
        self.pictures: list[tuple[Scene, int]] = []
        self.taught: list[tuple[str, int | None]] = []

    def made(self) -> Episode:
        plan, rng = self.plan, self.rng
        count, sentences = plan.pictures, plan.sentences
        ours = entities(self.held_out)
        if not self.held_out:  # and nothing of the evaluation, however many are asked for
            most = min(plan.pictures, len(ours) - _STRANGERS)
            count, sentences = rng.randint(min(2, most), most), rng.randint(min(2, sentences), sentences)
        rng.shuffle(ours)
        if count > len(ours) - _STRANGERS:  # evaluation teaches others beside its own, which are not asked for
            others = entities(not self.held_out)
            rng.shuffle(others)
            known = ours[:-_STRANGERS] + others[: count - len(ours) + _STRANGERS]
            strangers = ours[-_STRANGERS:]
            asked_for = ours[:-_STRANGERS]
        else:
            known, strangers = ours[:count], ours[count:]
            asked_for = known
        names = dict(zip(known, invented_names(len(known), rng, self.held_out), strict=True))
        rows = {}
        for entity, name in names.items():
            rows[entity] = len(self.taught)
            scene = scene_alone(entity, rng) if rng.random() < 0.7 else scene_with(entity, rng.choice(strangers), rng)
            self.taught.append((naming(name, entity, scene, rng, self.held_out), self._picture(scene)))
        first_sentence = len(self.taught)
        facts = invented_facts(sentences, rng, self.held_out, plan.chained) if sentences else []
        self.taught += [(fact.told, None) for fact in facts]
        queries = [self._of_picture(names, rows, asked_for, strangers) for _ in range(plan.picture_queries)]
        queries += sentence_queries(facts, first_sentence, plan.sentence_queries, rng, self.held_out)
        return Episode(tuple(self.taught), tuple(queries), tuple(self.pictures))

    def _picture(self, scene: Scene) -> int:
        self.pictures.append((scene, self.rng.getrandbits(62)))
        return len(self.pictures) - 1

    def _of_picture(
        self,
        names: dict[Entity, str],
        rows: dict[Entity, int],
        asked_for: Sequence[Entity],
        strangers: Sequence[Entity],
    ) -> Query:
        rng = self.rng
        entity, other = rng.choice(asked_for), rng.choice(strangers)
        kind = rng.choices(_KINDS, weights=_SHARES)[0]
        if kind == "taught":
            row = rows[entity]
            picture = self.taught[row][1]
            assert picture is not None
            scene, said = self.pictures[picture][0], {entity: names[entity]}
            return Query(kind, "", named_caption(scene, said, rng), (row,), picture, said, scene)
        if kind == "two" and len(asked_for) < 2:
            kind = "with"
        if kind == "unknown":
            entity = rng.choice([one for one in strangers if one != other])
            scene = scene_alone(entity, rng) if rng.random() < 0.5 else scene_with(entity, other, rng)
            return Query(kind, "", caption_scene(scene, rng), (), self._picture(scene), {}, scene)
        if kind == "two":
            other = rng.choice([one for one in asked_for if one != entity])
        scene = scene_alone(entity, rng) if kind == "alone" else scene_with(entity, other, rng)
        said = {one: names[one] for one in (entity, other) if one in names and (kind == "two" or one == entity)}
        facts = tuple(rows[one] for one in said)
        if kind == "question":
            relation = scene.where if scene.things[0].object_name == " ".join(entity) else opposite(scene.where)
            words = RELATION_WORDS[relation][0]
            form = wording(QUESTIONS, rng, self.held_out)
            form = form if self.held_out else led_in(form, rng)
            prompt = form.format(relation=words[0] if self.held_out else rng.choice(words), other=" ".join(other))
            return Query(kind, prompt, names[entity], facts, self._picture(scene), said, scene)
        return Query(kind, "", named_caption(scene, said, rng), facts, self._picture(scene), said, scene)


def sentence_queries(facts: Sequence[Fact], first: int, count: int, rng: random.Random, held_out: bool) -> list[Query]:
    """Questions in words about facts, of which the first is row ``first`` of what is taught, and, one in four, about
    nobody that they tell of; never all of them."""

    def drawn() -> Query:
        if rng.random() < 0.25:
            return Query("sentence_unknown", question_without_answer(facts, rng, held_out), "", ())
        row = rng.randrange(len(facts))
        fact = facts[row]
        if rng.random() < _BACK:
            return Query("sentence_back", fact.asked_back, fact.subject, (first + row,))
        return Query("sentence", fact.asked, fact.answer, (first + row,))

    queries = [drawn() for _ in range(count if facts else 0)]
    # Where nothing is answered the readers get no gradient, for which several processes would wait.
    while queries and not any(query.facts for query in queries):
        queries[0] = drawn()
    return queries


class EpisodeDataset:
    """Episodes as tensors; each sample is one, and so is a batch.

    Args:
        as_taught: texts as they are encoded to be taught (``BitGenConfig.as_taught``), and so captions that name what
            was taught, which begin with the name in photographs.

    ``dataset[SampleKey(index, epoch)]`` gives, for F taught facts of which the first Fi have a picture, and Q queries
    of which the first Qi have one:

    * ``taught_ids, taught_mask [F, T]``: their texts, BOS ... EOS;
    * ``taught_pictures [Fi, ...]`` and ``query_pictures [Qi, ...]``: pixels or features;
    * ``input_ids, attention_mask [Q, T]``: prompt and answer; ``labels [Q, T]``: of the answer alone, -100 elsewhere;
    * ``prompt_ids, prompt_mask [Q - Qi, T]``: the questions in words that are cues themselves;
    * ``facts [Q, 2]``: rows of the facts that a query is about, -1: none.
    """

    steady, why_uncached = True, "episodes are drawn anew each time"

    def __init__(
        self,
        maker: EpisodeMaker,
        processor: BitGenProcessor,
        size: int,
        seed: int,
        as_taught: Callable[[str], str],
    ) -> None:
        self.maker, self.processor, self.size, self.seed, self.as_taught = maker, processor, size, seed, as_taught

    def __len__(self) -> int:
        return self.size

    def describe(self) -> str:
        """How much there is."""
        return f"{self.size:,} episodes an epoch, drawn anew each time"

    def record_name(self, index: int) -> str:
        """How messages call an episode."""
        return f"episode {index}"

    def batch_sampler(self, batch_size: int, rank: int = 0, world_size: int = 1) -> ResumableBatchSampler:
        """One episode a batch of a rank."""
        return ResumableBatchSampler(len(self), batch_size, rank, world_size, self.seed)

    def words_per_batch(self, sampler: Any) -> float | None:
        """Unknown: episodes are drawn."""
        return None

    def __getitem__(self, key: SampleKey | int) -> dict[str, Any]:
        key = key if isinstance(key, SampleKey) else SampleKey(key)
        # An episode with a picture that cannot be used gives way to another one of the same number.
        others = itertools.count(key.epoch, self.size + 1)
        found = load_or_replace(lambda epoch: self.tensors(self.maker.episode(SampleKey(key.index, epoch))), others)
        return found | {"index": key.index}

    def tensors(self, episode: Episode) -> dict[str, Any]:
        """An episode's tensors."""
        maker, processor = self.maker, self.processor
        pixels = [maker.tensor(picture) for picture in episode.pictures]
        of_taught = [number for _, number in episode.taught if number is not None]
        of_queries = [query.picture for query in episode.queries if query.picture is not None]
        taught = self._padded(processor.encode([self.as_taught(text) for text, _ in episode.taught]))
        whole = processor.encode([self._whole(query) for query in episode.queries])
        prompts = processor.encode([query.prompt or "x" for query in episode.queries])
        labels = [
            _labels(ids, len(prompt) - 1 if query.prompt else 1, bool(query.facts))
            for ids, prompt, query in zip(whole, prompts, episode.queries, strict=True)
        ]
        asked = self._padded(
            [ids for ids, query in zip(prompts, episode.queries, strict=True) if query.picture is None]
        )
        sequences = self._padded(whole)
        width = sequences["input_ids"].shape[1]
        facts = torch.full((len(episode.queries), MOST_RECALLED), NOTHING)
        for row, query in enumerate(episode.queries):
            facts[row, : len(query.facts)] = torch.tensor(query.facts, dtype=torch.long)
        return {
            "taught_ids": taught["input_ids"],
            "taught_mask": taught["attention_mask"],
            "taught_pictures": torch.stack([pixels[number] for number in of_taught]),
            "query_pictures": torch.stack([pixels[number] for number in of_queries]),
            **sequences,
            "labels": torch.tensor([row + [IGNORED] * (width - len(row)) for row in labels]),
            "prompt_ids": asked["input_ids"],
            "prompt_mask": asked["attention_mask"],
            "facts": facts,
        }

    def _whole(self, query: Query) -> str:
        if query.prompt:
            return f"{query.prompt} {query.answer}"
        return self.as_taught(query.answer) if query.facts else query.answer

    def _padded(self, sequences: list[list[int]]) -> dict[str, torch.Tensor]:
        assert self.processor.tokenizer is not None
        pad = self.processor.tokenizer.pad_token_id
        if not sequences:
            empty = torch.zeros(0, 1, dtype=torch.long)
            return {"input_ids": empty, "attention_mask": empty}
        return pad_tokens([torch.tensor(ids) for ids in sequences], pad)


def _labels(ids: list[int], begins: int, counts: bool) -> list[int]:
    """The token after each, of those from ``begins`` on; of a query about nothing there are none."""
    if not counts:
        return [IGNORED] * len(ids)
    return [ids[at + 1] if begins <= at + 1 < len(ids) else IGNORED for at in range(len(ids))]


def collate_episode(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The one episode of a batch."""
    (sample,) = samples
    inputs = {name: value for name, value in sample.items() if name not in ("index", "skipped")}
    skipped = {"skipped": [sample["skipped"]]} if "skipped" in sample else {}
    return inputs | skipped | {"indices": torch.tensor([sample["index"]])}
