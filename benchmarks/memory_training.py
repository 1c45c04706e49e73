"""Teaching an episodic memory against training the model to the same recall, for memory_recall.py."""

from __future__ import annotations

import copy
import itertools
import time
from statistics import fmean as mean
from statistics import median
from typing import NamedTuple

import torch
from memory_codes import Codes, hits, memory_of, report, share
from memory_costs import seconds
from torch import Tensor, nn
from torch.nn import functional as F

from bitgen.data.dataset import PairDataset
from bitgen.evaluation.encode import Runner, image_input
from bitgen.memory.address_space import IMAGE, TEXT
from bitgen.model.modeling_bitgen import BitGenModel
from bitgen.trained import Trained

# The likeliest first: a run stops once it costs more than the cheapest so far.
LEARNING_RATES = (1e-3, 3e-4, 3e-3, 1e-4)
# Of the other episodes, replayed in each step.
REPLAYS = (None, 16, 0)
MOST_STEPS, TEMPERATURE = 60, 0.07
BARS = ("found", "kept", "held")
# One fact alone is cheap to teach, and differs much from the next one.
REPEATS = {1: 3}


class Facts(NamedTuple):
    """Images with captions that are not theirs, and other episodes that the memory and the model know already: their
    images, and the codes of their texts, which nobody encodes again."""

    images: Tensor
    texts: dict[str, Tensor]
    other_images: Tensor
    other_texts: Tensor


class Reached(NamedTuple):
    """When a bar was reached: CPU seconds and steps of training, how, and the share of the others lost by then."""

    value: float
    steps: int
    learning_rate: float
    replayed: int
    others_drop: float


class Student:
    """A model and the facts; what it finds by itself, image by image, among all texts."""

    def __init__(self, model: BitGenModel, name: str, facts: Facts) -> None:
        self.name, self.reader = name, Runner(model).memory_reader()
        self.model, self.facts = model, facts
        self.known = self.others_found(self.model)

    def taught_others(self) -> Student:
        """With a model that was trained to find all the others first, as the memory holds them."""
        model = copy.deepcopy(self.model).eval()
        optimizer = _optimizer(model, 1e-3)
        for _ in range(MOST_STEPS):
            if self.others_found(model) == 1:
                break
            self._step(model, optimizer, torch.arange(len(self.facts.other_images)), with_facts=False)
        return Student(model, self.name, self.facts)

    def _step(self, model: nn.Module, optimizer: torch.optim.Optimizer, rows: Tensor, with_facts: bool = True) -> None:
        """One of gradient descent, on the facts and these others."""
        facts, count = self.facts, len(self.facts.images)
        images, labels = facts.other_images[rows], count + rows
        if with_facts:
            images, labels = torch.cat([facts.images, images]), torch.cat([torch.arange(count), labels])
        cosines = self.images(model, images) @ self.candidates(model).mT
        optimizer.zero_grad()
        F.cross_entropy(cosines / TEMPERATURE, labels).backward()
        optimizer.step()

    def images(self, model: nn.Module, images: Tensor) -> Tensor:
        return model.encode_image(**{self.name: images}).image_features

    def candidates(self, model: nn.Module) -> Tensor:
        return torch.cat([model.encode_text(**self.facts.texts, reader=self.reader), self.facts.other_texts])

    def facts_found(self, model: nn.Module) -> float:
        with torch.no_grad():
            candidates = self.candidates(model)
            return share(hits(self.images(model, self.facts.images) @ candidates.mT, candidates))

    def others_found(self, model: nn.Module) -> float:
        with torch.no_grad():
            candidates, count = self.candidates(model), len(self.facts.images)
            cosines = self.images(model, self.facts.other_images) @ candidates.roll(-count, 0).mT
            return share(hits(cosines, candidates.roll(-count, 0)))

    def cheapest(self, wanted: float) -> dict[str, Reached]:
        """Of all ways to train, the cheapest to each bar."""
        best: dict[str, Reached] = {}
        unmeasured = copy.deepcopy(self.model).eval()  # the first step of any is slow, as the first write is
        self._step(unmeasured, _optimizer(unmeasured, 1e-3), torch.arange(len(self.facts.other_images)))
        for replay, rate in itertools.product(REPLAYS, LEARNING_RATES):
            for bar, reached in self.train(rate, replay, wanted, best).items():
                if bar not in best or reached.value < best[bar].value:
                    best[bar] = reached
        return best

    def train(self, rate: float, replay: int | None, wanted: float, cheapest: dict[str, Reached]) -> dict[str, Reached]:
        """Until the facts are found and the others kept, or it costs more than what is known to be ``cheapest``."""
        model, others = copy.deepcopy(self.model).eval(), len(self.facts.other_images)  # dropout costs steps
        optimizer = _optimizer(model, rate)
        replayed = others if replay is None else min(replay, others)
        generator, spent, reached = torch.Generator().manual_seed(0), 0.0, {}
        for step in range(MOST_STEPS + 1):
            if self.facts_found(model) >= wanted:  # looking is free
                drop = self.known - self.others_found(model)
                now = Reached(spent, step, rate, replayed, drop)
                reached.setdefault("found", now)
                if drop <= max(0.01, 1 / others) + 1e-9:  # a point, or one of them
                    return {**reached, "kept": now}
            if "kept" in cheapest and spent >= cheapest["kept"].value:
                break
            start = time.process_time()
            self._step(model, optimizer, torch.randperm(others, generator=generator)[:replayed])
            spent += time.process_time() - start
        return reached


def _optimizer(model: nn.Module, rate: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], rate)


def fine_tuning(loaded: Trained, dataset: PairDataset, codes: Codes, count: int) -> None:
    """Facts beside others, 128 in all or as many as the facts again: written, and trained."""
    held = max(128 - count, count)
    slots, widen = (128, False) if held + count <= 128 else (held + count, True)
    figures: dict[str, list[dict[str, float]]] = {}
    for repeat in range(REPEATS.get(count, 1)):
        taught = Codes(*(part.roll(-repeat * count, 0) for part in codes))
        one_teaching(loaded, dataset, taught, count, held, (slots, widen), figures)
    write = {name: mean(line[name] for line in figures["write"]) for name in figures["write"][0]}
    report("write_seconds", count, slots, write.pop("value"), widen=widen, **write)
    for bar in BARS:
        lines = figures[bar]
        done = [line for line in lines if line]
        if len(done) < len(lines):
            report("fine_tuning_seconds", count, None, None, bar=bar, reached=f"{len(done)} of {len(lines)}")
            continue
        line = {name: mean(line[name] for line in done) for name in done[0]}
        ratios = {name: line.pop(name) for name in ("ratio", "without_encoder")}
        report("fine_tuning_seconds", count, None, line.pop("value"), bar=bar, others=held, **line)
        more = {"bar": bar, "without_encoder": ratios["without_encoder"]}
        report("fine_tuning_over_write", count, slots, ratios["ratio"], **more)


def one_teaching(
    loaded: Trained,
    dataset: PairDataset,
    codes: Codes,
    count: int,
    held: int,
    shape: tuple[int, bool],
    figures: dict[str, list[dict[str, float]]],
) -> None:
    """The same facts, both ways; appends to ``figures``."""
    rows, others = codes.rows.tolist(), slice(len(codes.rows) - held, None)
    wrong = [int(dataset.first_caption[row]) for row in rows[count : 2 * count]]
    facts = Facts(
        torch.stack([dataset.image_tensor(row) for row in rows[:count]]),
        dataset.processor.pad([dataset.tokens(caption) for caption in wrong]),
        torch.stack([dataset.image_tensor(row) for row in rows[others]]),
        codes.texts[others].float(),
    )
    student = Student(loaded.model, image_input(dataset), facts)
    before = memory_of(Codes(*(part[others] for part in codes)), *shape)
    assert before.precision  # its sums, to which each write adds

    @torch.no_grad()
    def encode() -> Tensor:
        texts = loaded.model.encode_text(**facts.texts, reader=student.reader)
        return torch.cat([student.images(loaded.model, facts.images), texts], dim=1).double()

    def write(pairs: Tensor) -> float:
        memory = before.written(pairs)
        stored = memory.seen(TEXT).roll(count, 0)  # the facts first
        read = memory.read(pairs[:, : memory.space.half], IMAGE).halves
        return share(hits(F.normalize(read, dim=1) @ stored.mT, stored))

    pairs = encode()
    recall = write(pairs)  # the first call of anything is slow
    encoding = median(seconds(encode) for _ in range(5))  # no least of several: each step of training is timed once
    writing = median(seconds(lambda: write(pairs)) for _ in range(5))
    line = {"value": encoding + writing, "encoder": encoding, "recall": recall}
    figures.setdefault("write", []).append(line)
    cheapest = student.cheapest(recall)
    after_others = student.taught_others().cheapest(recall)
    cheapest |= {"held": after_others["kept"]} if "kept" in after_others else {}
    for bar in BARS:
        reached = cheapest[bar]._asdict() if bar in cheapest else {}
        if reached:  # both sides encode the facts once to recall them
            reached["ratio"] = (encoding + reached["value"]) / (encoding + writing)
            reached["without_encoder"] = reached["value"] / writing
        figures.setdefault(bar, []).append(reached)
