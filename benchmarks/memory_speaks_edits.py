"""What a model says after facts were edited, and after they were forgotten."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from functools import partial

import torch
from memory_speaks_episodes import SEEDS, episodes, report

from bitgen.data.dataset import PairDataset
from bitgen.data.episodes.dataset import Episode
from bitgen.data.episodes.names import invented_name
from bitgen.memory.answering import Answer, Speaker
from bitgen.memory.associative import AssociativeMemory
from bitgen.objectives.recall import RecallObjective
from bitgen.trained import Trained

BACK, TAUGHT = "sentence_back", ("taught", "same")


def edited_and_forgotten(objective: RecallObjective, trained: Trained, data: PairDataset | None, count: int) -> None:
    """Half of 16 pictures' and 16 sentences' facts get other names, or are forgotten."""
    found: dict[str, list[float]] = {}
    for seed in SEEDS:
        for dataset, episode in episodes(trained, data, seed, count, pictures=16, sentences=16):
            speaker = Speaker(objective, dataset)
            tensors = speaker.tensors(episode)
            memory, half = speaker.teach(tensors), range(0, 32, 2)
            for name, value in {**_edited(speaker, memory, episode, tensors, half),
                                **_forgotten(speaker, memory, episode, tensors, half)}.items():  # fmt: skip
                found.setdefault(name, []).append(value)
    for name, values in found.items():
        report(name, values, facts=32, slots=128)


def _about(answers: list[Answer], rows: range) -> list[Answer]:
    return [answer for answer in answers if answer.query.facts and set(answer.query.facts) <= set(rows)]


def _edited(
    speaker: Speaker, memory: AssociativeMemory, episode: Episode, tensors: dict[str, torch.Tensor], rows: range
) -> dict[str, float]:
    """Each of these facts that is asked about gets another name, as an edit gives it: a picture's key stays. Questions
    from the other end are left out, since they tell the old name."""
    rng, old, new = random.Random(str(episode.queries)), {}, {}
    asked = [query for query in episode.queries if query.kind != BACK]
    for query in asked:
        for fact, name in zip(query.facts, list(query.names.values()) or [query.answer], strict=False):
            old[fact] = name
    taught = list(episode.taught)
    for row in set(rows) & set(old):
        new[row] = next(name for name in iter(partial(invented_name, rng, True), None) if name not in old.values())
        text, picture = taught[row]
        taught[row] = (re.sub(rf"\b{old[row]}\b", new[row], text), picture)
    with torch.no_grad():
        pairs = torch.cat(speaker.objective.write(speaker.tensors(replace(episode, taught=tuple(taught)))), dim=1)
    changed = memory
    for row in new:
        own = len(memory.halves(0)[row]) if taught[row][1] is not None else 0
        changed = changed.replaced(row, torch.cat([memory.pairs[row, :own], pairs[row, own:].to(memory.pairs)]))
    answers = _about(speaker.ask(changed, episode, tensors, plain=False), rows)
    answers = [answer for answer in answers if len(answer.query.facts) == 1 and answer.query.kind != BACK]
    said: dict[str, list[bool]] = {}
    for answer in answers:
        words, fact = re.findall(r"\w+", answer.said), answer.query.facts[0]
        for name, names in (("edited", new), ("edited_old", old)):
            for line in (name, f"{name}_taught")[: 1 + (answer.query.kind in TAUGHT)]:
                said.setdefault(line, []).append(names[fact] in words)
    return {name: 100 * sum(found) / len(found) for name, found in said.items()}


def _forgotten(
    speaker: Speaker, memory: AssociativeMemory, episode: Episode, tensors: dict[str, torch.Tensor], rows: range
) -> dict[str, float]:
    memory.precision  # noqa: B018  # the sums, from which the facts are then subtracted
    left = memory
    for row in reversed(rows):
        left = left.without(row)
    kept = [row for row in range(len(memory)) if row not in rows]
    never = AssociativeMemory.empty(memory.space).written(memory.pairs[kept])
    state = max(
        (mine - theirs).abs().max().item() for mine, theirs in zip(left.precision, never.precision, strict=True)
    )
    answers, others = speaker.ask(left, episode, tensors), speaker.ask(never, episode, tensors, plain=False)
    as_never = [mine.said == other.said for mine, other in zip(answers, others, strict=True)]
    same = [answer.said == answer.plain for answer in _about(answers, rows)]
    return {
        "forgotten": 100 * sum(as_never) / len(as_never),
        "forgotten_plain": 100 * sum(same) / max(1, len(same)),
        "forgotten_state": state,
    }
