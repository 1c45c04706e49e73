"""Teaching an episodic memory against training the model to the same recall, for memory.py."""

from __future__ import annotations

import copy
import itertools
import time
from statistics import fmean as mean
from typing import NamedTuple

import torch
from memory_codes import Codes, hits, memory_of, report, share
from memory_costs import seconds
from torch import Tensor, nn
from torch.nn import functional as F

from bitgen.build import LoadedModel
from bitgen.data.dataset import PairDataset
from bitgen.evaluation.encode import Runner, image_input
from bitgen.memory.associative import IMAGE, TEXT

LEARNING_RATES = (3e-4, 1e-3, 1e-4, 3e-3)
# Of the other episodes, replayed in each step.
REPLAYS = (0, 16, None)
MOST_STEPS, TEMPERATURE = 100, 0.07
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

    def __init__(self, loaded: LoadedModel, dataset: PairDataset, facts: Facts) -> None:
        self.name, self.reader = image_input(dataset), Runner(loaded.model).memory_reader()
        self.model, self.facts = loaded.model, facts
        self.known = self.others_found(self.model)

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

    def train(self, rate: float, replay: int | None, wanted: float, cheapest: dict[str, Reached]) -> dict[str, Reached]:
        """Until the facts are found and the others kept, or it costs more than what is known to be ``cheapest``."""
        facts, count = self.facts, len(self.facts.images)
        model = copy.deepcopy(self.model).eval()  # without dropout, which costs steps
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], rate)
        replayed = len(facts.other_images) if replay is None else min(replay, len(facts.other_images))
        generator, spent, reached = torch.Generator().manual_seed(0), 0.0, {}
        for step in range(MOST_STEPS + 1):
            if self.facts_found(model) >= wanted:  # looking is free
                drop = self.known - self.others_found(model)
                now = Reached(spent, step, rate, replayed, drop)
                reached.setdefault("found", now)
                if drop <= max(0.01, 1 / len(facts.other_images)) + 1e-9:  # a point, or one of them
                    return {**reached, "kept": now}
            if "kept" in cheapest and spent >= cheapest["kept"].value:
                break
            start = time.process_time()
            rows = torch.randperm(len(facts.other_images), generator=generator)[:replayed]
            candidates = self.candidates(model)
            seen = self.images(model, torch.cat([facts.images, facts.other_images[rows]]))
            loss = F.cross_entropy(seen @ candidates.mT / TEMPERATURE, torch.cat([torch.arange(count), count + rows]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            spent += time.process_time() - start
        return reached


def fine_tuning(loaded: LoadedModel, dataset: PairDataset, codes: Codes, count: int) -> None:
    """Facts beside others, 128 in all or as many as the facts again: written, and trained."""
    held = max(128 - count, count)
    slots, widen = (128, False) if held + count <= 128 else (held + count, True)
    figures: dict[str, list[dict[str, float]]] = {}
    for repeat in range(REPEATS.get(count, 1)):
        taught = Codes(*(part.roll(-repeat * count, 0) for part in codes))
        one_teaching(loaded, dataset, taught, count, held, (slots, widen), figures)
    write = {name: mean(line[name] for line in figures["write"]) for name in figures["write"][0]}
    report("write_seconds", count, slots, write.pop("value"), widen=widen, **write)
    for bar in ("found", "kept"):
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
    loaded: LoadedModel,
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
    student = Student(loaded, dataset, facts)
    before = memory_of(Codes(*(part[others] for part in codes)), *shape)

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
    encoding = min(seconds(encode) for _ in range(5))
    writing = min(seconds(lambda: write(pairs)) for _ in range(5))
    line = {"value": encoding + writing, "encoder": encoding, "recall": recall}
    figures.setdefault("write", []).append(line)
    cheapest: dict[str, Reached] = {}
    for replay, rate in itertools.product(REPLAYS, LEARNING_RATES):
        for bar, reached in student.train(rate, replay, recall, cheapest).items():
            if bar not in cheapest or reached.value < cheapest[bar].value:
                cheapest[bar] = reached
    for bar in ("found", "kept"):
        reached = cheapest[bar]._asdict() if bar in cheapest else {}
        if reached:  # both sides encode the facts once to recall them
            reached["ratio"] = (encoding + reached["value"]) / (encoding + writing)
            reached["without_encoder"] = reached["value"] / writing
        figures.setdefault(bar, []).append(reached)
