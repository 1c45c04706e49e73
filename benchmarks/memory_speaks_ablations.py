"""Parts of a memory that speaks, taken away or changed in a trained model: what is said, and what is left alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from bitgen.data.episodes.dataset import Episode
from bitgen.memory.address_space import IMAGE
from bitgen.memory.answering import Answer, Speaker, says
from bitgen.memory.associative import AssociativeMemory
from bitgen.model.recall import Recall
from bitgen.model.speaking import BY_PICTURE, BY_TEXT, Meaning
from bitgen.objectives.recall import Written, closed_form_read

GATES = (0.0, 0.3, 0.45, 0.6, 0.7, 0.9)  # probabilities above which a fact is recalled; 0: always the nearest
NOISES = (1e-3, 0.03, 0.1, 0.3, 1.0)  # of observation, squared, that a key is read with


def gated(sure: float) -> tuple[Meaning, Meaning]:
    """Pictures and texts that recall a fact above a probability; with 0 the nearest one, whatever names it lacks."""
    return BY_PICTURE._replace(sure=sure), BY_TEXT._replace(sure=sure, names=BY_TEXT.names if sure else None)


def without_words() -> tuple[Meaning, Meaning]:
    """As it is, but that a question's words do not count."""
    return BY_PICTURE, BY_TEXT._replace(names=None)


@contextmanager
def silent(*parts: torch.nn.Module, given_back: bool) -> Iterator[None]:
    """Parts whose output is what they were given, or zeros."""

    def instead(_: Any, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        return inputs[0] if given_back else torch.zeros_like(output)

    handles = [part.register_forward_hook(instead) for part in parts]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def reading(memory: AssociativeMemory, noise: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """Reading by ridge regression, whose ``noise`` is that of observation, squared."""
    written = Written(memory.halves(IMAGE).float(), memory.halves(1).float())
    return lambda rows: closed_form_read(written, written.keys[rows], noise)


def without_parts(speaker: Speaker, episode: Episode) -> dict[tuple[str, float], dict[str, float]]:
    """``{(what was changed, how much): {measure: percent}}`` of one episode."""
    tensors = speaker.tensors(episode)
    memory, recall = speaker.teach(tensors), speaker.model.recall
    assert isinstance(recall, Recall)

    def asked(**how: Any) -> dict[str, float]:
        return _shares(speaker.ask(memory, episode, tensors, **how))

    found = {("gate", gate): asked(meaning=gated(gate)) for gate in GATES}
    found["no words", 0.0] = asked(meaning=without_words())
    found |= {("noise", noise): asked(read=reading(memory, noise)) for noise in NOISES}
    with silent(recall.pointer, given_back=False):
        found["no pointer", 0.0] = asked()
    with silent(*recall.readers, given_back=True):
        found["no cross-attention", 0.0] = asked()
    return found


def _shares(answers: list[Answer]) -> dict[str, float]:
    """Of pictures and of sentences: answers that hold what was taught; answers about nothing, left as they were."""
    shares: dict[str, list[bool]] = {}
    for answer in answers:
        of = "sentences" if answer.query.kind.startswith("sentence") else "pictures"
        right = says(answer) if answer.query.facts else answer.said == answer.plain
        shares.setdefault(f"{'said' if answer.query.facts else 'unchanged'}_{of}", []).append(right)
    return {name: 100 * sum(values) / len(values) for name, values in shares.items()}
