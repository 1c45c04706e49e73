"""What an episodic memory holds at one moment: codes, and what a person knows of each episode. Immutable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from bitgen.guards.printable import printable
from bitgen.guards.texts import check_texts, is_unicode
from bitgen.memory.address_space import IMAGE, TEXT, AddressSpace, spoken_space
from bitgen.memory.associative import AssociativeMemory
from bitgen.memory.files import SpokenProbe, check_model, read_memory
from bitgen.model.episodic_memory import slot_utilization
from bitgen.model.speaking import told_last

MOST_EPISODES = 100_000
_LONGEST_ID = 200
_MOST_ASKED, _ASKED_AT_ONCE = 2048, 256  # episodes whose own cues are tried, when there are more
_SPOKEN_AT_ONCE = 32  # values whose tokens are looked up together, each among all of the vocabulary


@dataclass(frozen=True)
class Episode:
    """What a person knows of an episode; times are ISO 8601, UTC."""

    id: str
    text: str
    written: str
    edited: str | None = None


class Recollection(NamedTuple):
    """A recalled episode.

    ``distance``: of what was read from what the episode holds, relative to that; near 0: the very cue that was written,
    0.5 and more: a cue unlike all that the memory knows.
    """

    id: str
    text: str
    distance: float


class MemoryState(NamedTuple):
    """How full a memory is and what to expect of it.

    ``capacity``: episodes that can be told apart for certain. ``utilization``: how evenly the slots are addressed, in
    (0, 1]. ``condition_number``: how many times a cue's relative error may grow in an exact read. ``expected_recall``:
    share of the episodes with an image that their own images, and their own texts, recall first. ``memory_bytes``: of
    precision and information; ``episode_bytes``: of codes and addresses, which forgetting needs. ``expected_speech``:
    share of what the model can say of which its own key reads every token; None: the model does not speak from it.
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
    expected_speech: float | None = None


class Held(NamedTuple):
    """Codes and episodes, row by row, and the number that the next episode without an id of its own gets.

    A sentence that was told without an image has zeros in place of its image features. ``spoken``: keys and values that
    the model speaks from, row by row too; None: it does not. A key of zeros is of an episode that it cannot say.
    ``tokens_of``: the tokens that values are of, ``[E, L d] -> [E, L]``, -1 behind a text's end.
    """

    memory: AssociativeMemory
    episodes: tuple[Episode, ...] = ()
    next_id: int = 1
    spoken: AssociativeMemory | None = None
    tokens_of: Callable[[Tensor], Tensor] | None = None

    @property
    def capacity(self) -> int:
        """Episodes that can be told apart for certain, and said."""
        spaces = [memory.space for memory in (self.memory, self.spoken) if memory is not None]
        return min(space.capacity for space in spaces)

    @property
    def pictured(self) -> Tensor:
        """Rows of the episodes that have an image."""
        return self.memory.halves(IMAGE).any(dim=1).nonzero()[:, 0]

    @property
    def unsaid(self) -> int:
        """How many episodes a model that speaks cannot say: they were taught to one that did not."""
        return 0 if self.spoken is None else int((~self.spoken.halves(IMAGE).any(dim=1)).sum())

    # ---------------------------------------------------------------- changing

    def added(
        self, pairs: Tensor, texts: Sequence[str], keys: Sequence[str] | None, spoken: Tensor | None = None
    ) -> tuple[Held, list[str]]:
        """With more episodes, and their ids; ``spoken [E, k + L d]``: keys and values, None: they cannot be said."""
        check_texts(texts)
        if len(pairs) != len(texts) or (keys is not None and len(keys) != len(texts)):
            count = len(texts if keys is None else keys)
            raise ValueError(f"{len(pairs)} codes, {len(texts)} texts and {count} ids: pass one of each an episode")
        if spoken is not None and len(spoken) != len(texts):
            raise ValueError(f"{len(spoken)} keys and values for {len(texts)} texts: pass one of each an episode")
        if len(self.episodes) + len(texts) > MOST_EPISODES:
            raise ValueError(
                f"a memory holds at most {MOST_EPISODES:,} episodes, this one has {len(self.episodes):,}: forget some, "
                "or teach others in another file"
            )
        ids, next_id = self._new_ids(len(texts), keys)
        memory, now = self.memory.written(pairs), _now()
        new = tuple(Episode(key, text, now) for key, text in zip(ids, texts, strict=True))
        said = self.spoken
        if said is not None:
            said = said.written(pairs.new_zeros(len(pairs), said.pairs.shape[1]) if spoken is None else spoken)
        return self._replace(memory=memory, episodes=self.episodes + new, next_id=next_id, spoken=said), ids

    def edited(self, key: str, text: str, feature: Tensor, fact: Tensor | None = None) -> Held:
        """With another text, and its ``feature [D]``, in an episode.

        ``fact [k + L d]``: key and value of the text alone. An image keeps its own key.
        """
        row = self.row(key)
        image = self.memory.halves(IMAGE)[row]
        pair = torch.cat([image, feature.to(self.memory.pairs)])
        episode = replace(self.episodes[row], text=text, edited=_now())
        episodes = (*self.episodes[:row], episode, *self.episodes[row + 1 :])
        said = self.spoken
        if said is not None:
            assert fact is not None
            if image.any():
                own = said.halves(IMAGE)[row]
                fact = torch.cat([own, fact.to(own)[len(own) :]])
            said = said.replaced(row, fact)
        return self._replace(memory=self.memory.replaced(row, pair), episodes=episodes, spoken=said)

    def without(self, key: str) -> Held:
        """Without an episode."""
        row = self.row(key)
        episodes = self.episodes[:row] + self.episodes[row + 1 :]
        said = None if self.spoken is None else self.spoken.without(row)
        return self._replace(memory=self.memory.without(row), episodes=episodes, spoken=said)

    def cleared(self) -> Held:
        """Without any; ids go on."""
        memory, said = (AssociativeMemory.empty(self.memory.space, self.memory.cue_noise), self.spoken)
        if said is not None:
            said = AssociativeMemory.empty(said.space, said.cue_noise)
        return self._replace(memory=memory, episodes=(), spoken=said)

    def rewritten(self, space: AddressSpace) -> Held:
        """With all pairs in another space, and keys and values in one of its size."""
        memory, said = AssociativeMemory.holding(space, self.memory.pairs, self.memory.cue_noise), self.spoken
        if said is not None:
            said = AssociativeMemory.holding(spoken_space(space, *said.space.halves), said.pairs, said.cue_noise)
        return self._replace(memory=memory, spoken=said)

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
            if not isinstance(key, str) or not key.strip() or len(key) > _LONGEST_ID or not is_unicode(key):
                raise ValueError(f"id '{shown}': an id is a string of 1 to {_LONGEST_ID} characters that is not empty")
            if key != key.strip():
                raise ValueError(f"id '{shown}' begins or ends with a space, which nobody sees: leave it out")
            if key in taken:
                raise ValueError(f"id '{shown}' is taken: choose another, or edit or forget that episode")
            taken.add(key)
            if key.isascii() and key.isdecimal() and len(key) < 16:  # once used, it is nobody else's number
                next_id = max(next_id, int(key) + 1)
        return list(keys), next_id

    def row(self, key: str) -> int:
        """Where the episode of an id is; ValueError: there is none."""
        for row, episode in enumerate(self.episodes):
            if episode.id == key:
                return row
        raise ValueError(f"there is no episode '{printable(key, 60)}' in this memory, which holds {len(self.episodes)}")

    # ---------------------------------------------------------------- reading

    def recall(self, cues: Tensor, part: int, top_k: int) -> list[list[Recollection]]:
        """Episodes by the cosine of what each of ``cues [B, D]`` reads with the half that they hold, best first.

        Sentences without an image have but one half, and nothing recalls them by the other.
        """
        if top_k < 1:
            raise ValueError(f"top_k is {top_k}; it must be at least 1")
        read, rows = self.memory.read(cues, part).halves, self.pictured
        cosines = self._cosines(read, 1 - part)[:, rows]
        order = cosines.topk(min(top_k, len(rows)), dim=1).indices
        distances = self.memory.errors(read, 1 - part)[:, rows].gather(1, order)
        return [
            [Recollection(self.episodes[row].id, self.episodes[row].text, distance) for row, distance in found]
            for found in map(zip, rows[order].tolist(), distances.tolist())
        ]

    def _cosines(self, read: Tensor, part: int) -> Tensor:
        return F.normalize(read, dim=1) @ F.normalize(self.memory.seen(part), dim=1).mT

    def expected_recall(self) -> tuple[float, float]:
        """Share of the episodes with an image that their own images, and their own texts, recall first; of more than
        2,048 that of so many, spread evenly. Episodes whose missing halves are alike count, as nothing that is read
        can tell them apart."""
        shares, rows = [], self.pictured
        asked = torch.linspace(0, len(rows) - 1, min(len(rows), _MOST_ASKED), dtype=torch.float64).long()
        for part in (IMAGE, TEXT) if len(rows) else ():
            first = 0
            for own in asked.to(rows.device).split(_ASKED_AT_ONCE):  # a row of cosines is as long as the memory
                read = self.memory.read(self.memory.halves(part)[rows[own]], part).halves
                cosines = self._cosines(read, 1 - part)[:, rows]
                first += int((cosines.gather(1, own[:, None])[:, 0] >= cosines.amax(dim=1) - 1e-6).sum())
            shares.append(first / len(asked))
        return (shares[0], shares[1]) if shares else (1.0, 1.0)

    def expected_speech(self) -> float | None:
        """Share of what the model can say of which its own key reads every token; None: it does not speak. What was
        taught again later, under the same key, is said no more and does not count."""
        memory = self.spoken
        if memory is None:
            return None
        keys, values = memory.halves(IMAGE), memory.halves(TEXT)
        counts = told_last(keys)
        rows = counts.nonzero()[:, 0]
        if not len(rows):  # nothing was taught, or a model that does not speak was taught it
            return float(not self.episodes)
        if not counts.all():
            memory = AssociativeMemory.holding(memory.space, memory.pairs[counts], memory.cue_noise)
        assert self.tokens_of is not None
        right = 0
        for part in rows.split(_SPOKEN_AT_ONCE):
            read = self.tokens_of(memory.read(keys[part], IMAGE).halves)
            right += int((read == self.tokens_of(values[part])).all(dim=1).sum())
        return right / len(rows)

    def state(self) -> MemoryState:
        """How full the memory is."""
        memory, count = self.memory, len(self.episodes)
        all_memories = [memory] if self.spoken is None else [memory, self.spoken]
        return MemoryState(
            episodes=count,
            slots=memory.space.slots,
            capacity=self.capacity,
            capacity_left=max(self.capacity - count, 0),
            utilization=slot_utilization(memory.weights).item() if count else 0.0,
            condition_number=memory.condition,
            expected_recall=self.expected_recall(),
            memory_bytes=sum(8 * one.space.slots * (one.space.slots + one.space.width) for one in all_memories),
            episode_bytes=sum(one.pairs.nbytes + 8 * count * one.space.slots for one in all_memories),
            expected_speech=self.expected_speech(),
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


def held_in_file(path: str | Path, probe: Tensor, spoken_probe: SpokenProbe | None = None) -> Held:
    """What a file holds, to be summed anew from its codes.

    What was taught to a model that does not speak has keys and values of zeros for one that does.

    Args:
        probe: ``[2 D]`` of the model that is to use it.
        spoken_probe: of that model, if it speaks from a memory.

    Raises:
        ValueError: the file is missing or damaged, or was made with another model or width.
    """
    name = printable(path)
    stored = read_memory(path)
    check_model(name, stored, probe, spoken_probe)
    codes, _, (whitening, spoken), header = stored
    try:
        episodes = tuple(Episode(**episode) for episode in header["episodes"])
        settings = {name: header[name] for name in ("slots", "widen", "sigma", "seed")}
        space = AddressSpace(len(probe) // 2, device=probe.device, whitening=whitening, **settings)
        memory = AssociativeMemory.holding(space, codes, header["cue_noise"])
        held = Held(memory, episodes, header["next_id"])
        if spoken_probe is not None:
            widths = len(spoken_probe.key), len(spoken_probe.value)
            said = codes.new_zeros(len(codes), sum(widths)) if spoken is None else spoken.codes
            held = held._replace(
                spoken=AssociativeMemory.holding(spoken_space(space, *widths), said, header["cue_noise"])
            )
        check_texts((part for episode in episodes for part in (episode.text, episode.id)), longest=None)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is damaged ({printable(error, 200)}): restore it, or name another") from error
    if len({episode.id for episode in episodes}) < len(episodes):
        raise ValueError(f"{name} is damaged (an id occurs twice): restore it, or name another")
    return held


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
