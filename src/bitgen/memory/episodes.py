"""What an episodic memory holds at one moment: codes, and what a person knows of each episode. Immutable."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from bitgen.guards.printable import printable
from bitgen.memory.address_space import IMAGE, TEXT, AddressSpace
from bitgen.memory.associative import AssociativeMemory
from bitgen.memory.files import read_memory
from bitgen.model.episodic_memory import slot_utilization

MOST_EPISODES = 100_000
MOST_CHARACTERS = 10_000  # of a text; a model reads a few hundred tokens of it
_LONGEST_ID = 200

# Cosines of what was read differ little between like episodes; this makes shares of them.
_CONFIDENCE_TEMPERATURE = 0.05
# Probes of one model on different devices and precisions differ less, those of two models far more.
_SAME_MODEL = 0.02
# Relative to its largest entry: a text in another batch has another code by rounding, about a tenth of this.
_SAME_TEXT = 1e-6


@dataclass(frozen=True)
class Episode:
    """What a person knows of an episode; times are ISO 8601, UTC."""

    id: str
    text: str
    written: str
    edited: str | None = None


class Recollection(NamedTuple):
    """A recalled episode.

    ``confidence``: its share among all episodes, from the cosines of what was read with what each holds.
    ``error``: relative distance of what was read from what it holds; near 0: the very cue that was written, 0.5 and
    more: a cue unlike all that the memory knows.
    """

    id: str
    text: str
    confidence: float
    error: float


class MemoryState(NamedTuple):
    """How full a memory is and what to expect of it.

    ``capacity``: episodes that can be told apart for certain. ``utilization``: how evenly the slots are addressed, in
    (0, 1]. ``condition_number``: how many times a cue's relative error may grow in an exact read. ``expected_recall``:
    share of the episodes that their own images, and their own texts, recall first. ``memory_bytes``: of precision and
    information; ``episode_bytes``: of codes and addresses, which forgetting needs.
    """

    episodes: int
    slots: int
    capacity: int
    capacity_left: int
    utilization: float
    condition_number: float
    expected_recall: tuple[float, float]
    memory_bytes: int
    episode_bytes: int


def check_texts(texts: Iterable[str], longest: int | None = MOST_CHARACTERS) -> None:
    """Raise ValueError for a text that is empty, too long (None: of any length), or no text."""
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"text {position} is a {type(text).__name__}, not a string")
        if not text.strip():
            raise ValueError(f"text {position} is empty: write what is to be remembered")
        if longest is not None and len(text) > longest:
            raise ValueError(f"text {position} has {len(text):,} characters, at most {longest:,} are taken: shorten it")
        if not _encodes(text):
            raise ValueError(f"text {position} is not valid Unicode ({printable(text, 60)}): write it anew")


def _encodes(text: str) -> bool:
    """Whether a text can be written to a file: half a surrogate pair, or a command line's stray byte, cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class Held(NamedTuple):
    """Codes and episodes, row by row, and the number that the next episode without an id of its own gets."""

    memory: AssociativeMemory
    episodes: tuple[Episode, ...] = ()
    next_id: int = 1

    # ---------------------------------------------------------------- changing

    def added(self, pairs: Tensor, texts: Sequence[str], keys: Sequence[str] | None) -> tuple[Held, list[str]]:
        """With more episodes, and their ids."""
        check_texts(texts)
        if len(pairs) != len(texts) or (keys is not None and len(keys) != len(texts)):
            count = len(texts if keys is None else keys)
            raise ValueError(f"{len(pairs)} codes, {len(texts)} texts and {count} ids: pass one of each an episode")
        if len(self.episodes) + len(texts) > MOST_EPISODES:
            raise ValueError(
                f"a memory holds at most {MOST_EPISODES:,} episodes, this one has {len(self.episodes):,}: forget some, "
                "or teach others in another file"
            )
        ids, next_id = self._new_ids(len(texts), keys)
        memory, now = self.memory.written(pairs), _now()
        new = tuple(Episode(key, text, now) for key, text in zip(ids, texts, strict=True))
        return Held(memory, self.episodes + new, next_id), ids

    def edited(self, key: str, text: str, feature: Tensor) -> Held:
        """With another text, and its ``feature [D]``, in an episode."""
        row = self._row(key)
        pair = torch.cat([self.memory.halves(IMAGE)[row], feature.to(self.memory.pairs)])
        episode = replace(self.episodes[row], text=text, edited=_now())
        episodes = (*self.episodes[:row], episode, *self.episodes[row + 1 :])
        return self._replace(memory=self.memory.replaced(row, pair), episodes=episodes)

    def without(self, key: str) -> Held:
        """Without an episode."""
        row = self._row(key)
        episodes = self.episodes[:row] + self.episodes[row + 1 :]
        return self._replace(memory=self.memory.without(row), episodes=episodes)

    def cleared(self) -> Held:
        """Without any; ids go on."""
        return self._replace(memory=AssociativeMemory.empty(self.memory.space, self.memory.cue_noise), episodes=())

    def _new_ids(self, count: int, keys: Sequence[str] | None) -> tuple[list[str], int]:
        taken, next_id = {episode.id for episode in self.episodes}, self.next_id
        if keys is None:
            ids: list[str] = []
            while len(ids) < count:
                if str(next_id) not in taken:
                    ids.append(str(next_id))
                next_id += 1
            return ids, next_id
        for key in keys:
            shown = printable(key, 60)
            if not isinstance(key, str) or not key.strip() or len(key) > _LONGEST_ID or not _encodes(key):
                raise ValueError(f"id '{shown}': an id is a string of 1 to {_LONGEST_ID} characters that is not empty")
            if key in taken:
                raise ValueError(f"id '{shown}' is taken: choose another, or edit or forget that episode")
            taken.add(key)
        return list(keys), next_id

    def _row(self, key: str) -> int:
        for row, episode in enumerate(self.episodes):
            if episode.id == key:
                return row
        raise ValueError(f"there is no episode '{printable(key, 60)}' in this memory, which holds {len(self.episodes)}")

    def like_texts(self, newest: int, key: str | None = None) -> list[tuple[Episode, Episode]]:
        """For each of the newest episodes, or that of ``key``, another one with a different text of the same code."""
        texts = self.memory.halves(TEXT)
        newly = range(len(texts) - newest, len(texts)) if key is None else (self._row(key),)
        # Texts of one code are neighbours on any line: all pairs need not be compared.
        places = texts @ torch.linspace(0, 50, texts.shape[1]).sin().to(texts)
        along, order = places.sort()
        tolerance = _SAME_TEXT * texts.abs().amax(dim=1)
        reach = tolerance * texts.shape[1]
        found = []
        for row in newly:
            ends = torch.stack([places[row] - reach[row], places[row] + reach[row]])
            first, last = torch.searchsorted(along, ends).tolist()
            near = order[first:last]
            same = near[(texts[near] - texts[row]).abs().amax(dim=1) <= tolerance[row]].tolist()
            new = self.episodes[row]
            found += [(new, self.episodes[other]) for other in same if self.episodes[other].text != new.text][:1]
        return found

    # ---------------------------------------------------------------- reading

    def recall(self, cues: Tensor, part: int, top_k: int) -> list[list[Recollection]]:
        """Episodes by the cosine of what each of ``cues [B, D]`` reads with the half that they hold, best first."""
        if top_k < 1:
            raise ValueError(f"top_k is {top_k}; it must be at least 1")
        read = self.memory.read(cues, part).halves
        cosines = self._cosines(read, 1 - part)
        shares = (cosines / _CONFIDENCE_TEMPERATURE).softmax(dim=1)
        order = cosines.topk(min(top_k, len(self.episodes)), dim=1).indices
        shares, errors = (values.gather(1, order) for values in (shares, self.memory.errors(read, 1 - part)))
        return [
            [Recollection(self.episodes[row].id, self.episodes[row].text, *figures) for row, *figures in found]
            for found in map(zip, order.tolist(), shares.tolist(), errors.tolist())
        ]

    def _cosines(self, read: Tensor, part: int) -> Tensor:
        return F.normalize(read, dim=1) @ F.normalize(self.memory.seen(part), dim=1).mT

    def expected_recall(self) -> tuple[float, float]:
        """Share of the episodes that their own images, and their own texts, recall first. Episodes whose missing
        halves are alike count, as nothing that is read can tell them apart."""
        shares = []
        for part in (IMAGE, TEXT) if self.episodes else ():
            cosines = self._cosines(self.memory.read(self.memory.halves(part), part).halves, 1 - part)
            shares.append((cosines.diagonal() >= cosines.amax(dim=1) - 1e-6).double().mean().item())
        return (shares[0], shares[1]) if shares else (1.0, 1.0)

    def state(self) -> MemoryState:
        """How full the memory is."""
        memory, count = self.memory, len(self.episodes)
        return MemoryState(
            episodes=count,
            slots=memory.space.slots,
            capacity=memory.space.capacity,
            capacity_left=max(memory.space.capacity - count, 0),
            utilization=slot_utilization(memory.weights).item() if count else 0.0,
            condition_number=memory.condition,
            expected_recall=self.expected_recall(),
            memory_bytes=8 * memory.space.slots * (memory.space.slots + memory.space.width),
            episode_bytes=memory.pairs.nbytes + 8 * count * memory.space.slots,
        )

    # ---------------------------------------------------------------- files

    def header(self) -> dict[str, Any]:
        """All but the codes, for a file."""
        space = self.memory.space
        return {
            "slots": space.slots,
            "widen": space.widen,
            "sigma": space.sigma,
            "cue_noise": self.memory.cue_noise,
            "seed": space.seed,
            "next_id": self.next_id,
            "episodes": [asdict(episode) for episode in self.episodes],
        }


def held_in_file(path: str | Path, probe: Tensor) -> Held:
    """What a file holds, to be summed anew from its codes; ``probe [2 D]`` of the model that is to use it.

    Raises:
        ValueError: the file is missing or damaged, or was made with another model or width.
    """
    name = printable(path)
    codes, theirs, whitening, header = read_memory(path)
    if theirs.shape != probe.shape:
        raise ValueError(f"{name} holds codes of width {len(theirs)}, this model's have {len(probe)}: another model")
    if not (theirs.to(probe) - probe).norm() <= _SAME_MODEL * probe.norm():
        raise ValueError(
            f"{name} was made with another model, whose codes mean something else here: name that model, or teach "
            "a new memory in another file"
        )
    try:
        episodes = tuple(Episode(**episode) for episode in header["episodes"])
        settings = {name: header[name] for name in ("slots", "widen", "sigma", "seed")}
        space = AddressSpace(len(probe) // 2, device=probe.device, whitening=whitening, **settings)
        memory = AssociativeMemory.holding(space, codes, header["cue_noise"])
        held = Held(memory, episodes, header["next_id"])
        check_texts((part for episode in episodes for part in (episode.text, episode.id)), longest=None)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is damaged ({printable(error, 200)}): restore it, or name another") from error
    if len({episode.id for episode in episodes}) < len(episodes):
        raise ValueError(f"{name} is damaged (an id occurs twice): restore it, or name another")
    return held


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
