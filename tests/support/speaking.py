"""A memory that a model speaks from: tiny processors, episodes and models with a part that recalls."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from bitgen.data.episodes.dataset import Episode, EpisodeDataset, Query, SceneEpisodes
from bitgen.data.episodes.facts import BEFORE, BEFORE_QUESTION, BEHIND, FILLERS, RELATIONS
from bitgen.data.sampler import SampleKey
from bitgen.data.scenes.dataset import scene_captions
from bitgen.data.scenes.named import QUESTIONS
from bitgen.data.tokenizer import train_bpe
from bitgen.model.factory import random_vision_config
from bitgen.model.modeling_bitgen import BitGenModel
from bitgen.model.processing_bitgen import BitGenProcessor
from bitgen.model.recall import Recall
from bitgen.model.recalled import Recalled
from bitgen.objectives.recall import RecallObjective
from support.models import open_gates, tiny_config

IMAGE_SIZE, LONGEST = 28, 64
# Sizes of an episode that is made and rendered in milliseconds.
SMALL: dict[str, int] = dict(pictures=4, sentences=4, picture_queries=6, sentence_queries=6)
# Settings of a network that can recall, and of one that recalls with little.
# Each token is a word.
RECALL: dict[str, Any] = dict(recall_tokens=3, recall_dim=8, recall_code=4, bos_token_id=0, recall_words="2" * 400)


@functools.cache
def processor() -> BitGenProcessor:
    """Of small pictures, and of a tokenizer of the captions of scenes; the same object for all."""
    return BitGenProcessor(train_bpe(scene_captions("train", 300, 1), 400), IMAGE_SIZE, LONGEST)


def maker(seed: int = 3, held_out: bool = False, **sizes: int) -> SceneEpisodes:
    """Makes small episodes of scenes."""
    return SceneEpisodes(processor(), seed, held_out=held_out, **(SMALL | sizes))


def episodes(count: int, **options: Any) -> list[Episode]:
    """The first episodes of :func:`maker`."""
    made = maker(**options)
    return [made.episode(SampleKey(index)) for index in range(count)]


def dataset(**options: Any) -> EpisodeDataset:
    """The episodes of :func:`maker` as tensors."""
    return EpisodeDataset(maker(**options), processor(), 8, 5, str)


def batch(index: int = 0, **options: Any) -> dict[str, Tensor]:
    """The tensors of one episode."""
    return {name: value for name, value in dataset(**options)[SampleKey(index)].items() if name != "index"}


def texts_of(episode: Episode) -> Iterator[str]:
    """Everything that is told and asked in an episode."""
    for text, _ in episode.taught:
        yield text
    for query in episode.queries:
        yield query.prompt
        yield query.answer


def names_in(text: str, count: int) -> list[str]:
    """The names of a text, so many: its words with a capital, but for one that a text of training may begin with."""
    found = re.findall(r"\b[A-Z][a-z]*", text)
    assert len(found) == count or (len(found) == count + 1 and text.startswith(found[0])), text
    return found[len(found) - count :]


def small(text: str) -> str:
    """A text of training without a capital at its beginning, and without a full stop."""
    return (text[:1].lower() + text[1:]).removesuffix(".")


KNOWN = {
    word
    for forms in (BEFORE_QUESTION, FILLERS, QUESTIONS, *(forms for ways in RELATIONS.values() for forms in ways))
    for form in forms
    for word in re.findall(r"[a-z]+", form)
}


def led_by(text: str) -> list[str]:
    """What a question of training may begin with that it is not about: of its first three words those up to one that
    no other text has, shortest first."""
    text = small(text)
    words = re.match(r"(?:[a-z]{3,9}[,!:]? ){0,3}", text)
    assert words is not None
    found: list[str] = []
    for word in re.finditer(r"([a-z]+)[,!:]? ", words[0]):
        if word[1] not in KNOWN or found:
            found.append(text[: word.end()])
    return found


def bare(text: str, question: bool = False) -> set[str]:
    """What a text of training may be without the words before and behind it, which evaluation never has."""
    before, behind = (BEFORE_QUESTION, ("",)) if question else (BEFORE, BEHIND)
    cut = {text.removeprefix(first).removesuffix(last) for first in before for last in behind}
    return {short for short in cut if text in {f"{a}{short}{b}" for a in before for b in behind}}


def made_of(text: str, forms: set[str], question: bool = False) -> set[str]:
    """Those of ``forms`` that a text of training may be: with words before and behind it, or with its own words in
    another order and a few words between them. What is filled in, ``{s}`` and ``{o}``, keeps its order."""
    text = small(text)
    for led in ("", *led_by(text)) if question else ("",):
        short = bare(text.removeprefix(led), question)
        found = forms & short or {form for form in forms for one in short if _has_the_words_of(one, form)}
        if found:
            return found
    return set()


def _has_the_words_of(text: str, form: str) -> bool:
    (ours, order), (theirs, wanted) = _words(text), _words(form)
    more = ours - theirs if theirs <= ours else Counter({"": 3})
    return more.total() <= 2 and set(more) <= set(FILLERS) and order == wanted


@functools.cache
def _words(text: str) -> tuple[Counter[str], list[str]]:
    """Its words, and what is to be filled in, in order."""
    return Counter(re.sub("[?:,]", "", text).split()), re.findall(r"\{\w+\}", text)


def kinds(of: list[Episode], *names: str) -> list[tuple[Episode, Query]]:
    """The queries of these kinds, each with its episode."""
    return [(episode, query) for episode in of for query in episode.queries if query.kind in names]


def random_recalled(recall: Recall, present: list[list[bool]], seed: int = 0) -> Recalled:
    """Tokens ``[B, S, ...]`` that no memory gave, of which some are there."""
    random = torch.Generator().manual_seed(seed)
    seen = torch.tensor(present)
    values = torch.zeros(1, 1, recall.value_width)
    width = recall.tokens(values, torch.zeros(1, 1, recall.place.shape[1]), torch.ones(1, 1).bool()).tokens.shape[-1]
    return Recalled(torch.randn(*seen.shape, width, generator=random), seen)


def make_objective(seed: int = 0, **changes: Any) -> RecallObjective:
    """The objective around a tiny model that reads pictures, with open gates, in training mode."""
    torch.manual_seed(seed)
    sizes = dict(
        vision_config=random_vision_config(16, 1, 2, patch_size=7, image_size=IMAGE_SIZE),
        vision_tuning="full",
        vocab_size=len(processor().tokenizer),
        max_seq_len=LONGEST,
        dropout=0.0,
        compressor_dropout=0.0,
        **(RECALL | {"recall_tokens": 12}),
    )
    model = BitGenModel(tiny_config(**(sizes | changes)))
    open_gates(model)
    return RecallObjective(model).train()
