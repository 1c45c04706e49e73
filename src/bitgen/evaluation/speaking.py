"""What a model says with a memory: answers to the queries of episodes, and how many of them are right."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from bitgen.data.episodes import Episode, EpisodeDataset, Query
from bitgen.data.named_scenes import read_named_caption
from bitgen.data.scene_descriptions import Scene
from bitgen.data.scene_reading import read_caption
from bitgen.evaluation.generation import generate_texts, language_model
from bitgen.memory.address_space import IMAGE, AddressSpace
from bitgen.memory.associative import AssociativeMemory
from bitgen.model.causal_lm_bitgen import BitGenForCausalLM
from bitgen.model.modeling_bitgen import BitGenModel
from bitgen.model.speaking import Found, chosen, find, recalled_for
from bitgen.objectives.recall import RecallObjective

LONGEST_ANSWER = 40


@dataclass(frozen=True)
class Answer:
    """What was said to a query: with the memory, and without; and which facts were recalled."""

    query: Query
    said: str
    plain: str
    facts: tuple[int, ...]
    confidence: float


def spoken_space(model: BitGenModel, slots: int, widen: bool = False, sigma: float = 0.1) -> AddressSpace:
    """Where a model's facts are written: pairs of key and value."""
    assert model.recall is not None
    return AddressSpace(
        model.config.recall_dim, slots, widen, sigma, device=model.device, value=model.recall.value_width
    )


@torch.no_grad()
def answer_episode(
    objective: RecallObjective, data: EpisodeDataset, episode: Episode, slots: int = 128, plain: bool = True
) -> list[Answer]:
    """Teach an episode's facts in one write, and put its queries; ``plain``: also without the memory."""
    model, tokenizer = objective.model, data.processor.tokenizer
    assert model.recall is not None and tokenizer is not None
    tensors = {name: value.to(model.device) for name, value in data.tensors(episode).items()}
    written = objective.write(tensors)
    memory = AssociativeMemory.empty(spoken_space(model, slots)).written(torch.cat(written, dim=1))
    generator = language_model(model, tokenizer)
    answers: list[Answer | None] = [None] * len(episode.queries)
    pictured = [row for row, query in enumerate(episode.queries) if query.picture is not None]
    worded = [row for row, query in enumerate(episode.queries) if query.picture is None]
    if pictured:
        tokens = objective.image_tokens(tensors["query_pictures"])
        found = find(model.recall, written.keys, model.recall.image_keys(tokens))
        _fill(answers, generator, tokenizer, model, memory, episode, pictured, found, tokens, plain)
    if worded:
        asked = model.embeddings.token(tensors["prompt_ids"])
        cues = model.recall.text_keys(asked, tensors["prompt_mask"])
        found = find(model.recall, written.keys, cues[:, None])
        _fill(answers, generator, tokenizer, model, memory, episode, worded, found, None, plain)
    return [answer for answer in answers if answer is not None]


def _fill(
    answers: list[Answer | None],
    generator: BitGenForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    model: BitGenModel,
    memory: AssociativeMemory,
    episode: Episode,
    rows: Sequence[int],
    found: Found,
    tokens: torch.Tensor | None,
    plain: bool,
) -> None:
    facts = chosen(found)
    assert model.recall is not None
    keys = memory.halves(IMAGE)
    recalled = recalled_for(model.recall, facts, found, lambda rows: memory.read(keys[rows], IMAGE).halves, tokens)
    prompts = [episode.queries[row].prompt for row in rows]
    image: dict[str, torch.Tensor] = {} if tokens is None else {"image_tokens": tokens.to(model.dtype)}
    given: dict[str, torch.Tensor] = (
        {} if recalled is None else {"recalled": recalled.tokens, "recalled_mask": recalled.present}
    )
    said = generate_texts(generator, tokenizer, prompts, 1, LONGEST_ANSWER, **image, **given)
    alone = said
    if plain:
        alone = generate_texts(generator, tokenizer, prompts, 1, LONGEST_ANSWER, **image)
    for at, row in enumerate(rows):
        surest = found.confidence[at].max().item()
        answers[row] = Answer(
            episode.queries[row], " ".join(said[at].split()), " ".join(alone[at].split()), tuple(facts[at]), surest
        )


def says(answer: Answer) -> bool:
    """Whether all that was taught and asked for is in the answer."""
    query = answer.query
    wanted = list(query.names.values()) if query.prompt == "" else [query.answer]
    return all(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", answer.said) is not None for name in wanted)


def whole_caption(answer: Answer) -> bool:
    """Whether a caption names what was taught and is right in all else that the scene holds, but its sizes."""
    query = answer.query
    assert query.scene is not None
    read = read_named_caption(answer.said, query.names, query.scene) if query.names else read_caption(answer.said)
    return read is not None and _said(read) == _said(query.scene)


def _said(scene: Scene) -> tuple:
    return scene.kind, scene.where, tuple((thing.colour, thing.shape, thing.count) for thing in scene.things)


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
        if not answer.query.facts:
            found.setdefault(f"unchanged_{kind}", []).append(answer.said == answer.plain)
            continue
        found.setdefault(f"says_{kind}", []).append(says(answer))
        if answer.query.scene is not None and not answer.query.prompt:
            found.setdefault(f"whole_{kind}", []).append(whole_caption(answer))
    return {name: 100 * sum(values) / len(values) for name, values in sorted(found.items())}
