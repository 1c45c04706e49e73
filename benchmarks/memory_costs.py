"""What an episodic memory costs, for memory.py: against training, and by its slots and episodes."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from functools import partial

import torch
from memory_codes import Codes, episodes_of, hits, memory_of, report, share
from torch import Tensor
from torch.nn import functional as F

from bitgen.build import LoadedModel
from bitgen.data.dataset import PairDataset
from bitgen.evaluation.encode import Runner, image_input
from bitgen.memory.associative import IMAGE, TEXT
from bitgen.model.episodic_memory import pseudo_inverse

LEARNING_RATES = (1e-4, 3e-4, 1e-3, 3e-3)


def fine_tuning(loaded: LoadedModel, dataset: PairDataset, codes: Codes, count: int) -> None:
    """Facts that the model cannot know, images with captions of other images, beside others to 128: written, and
    trained. ``others_drop``: of the others, those whose images no longer find their own text first."""
    rows, others = codes.rows.tolist(), slice(len(codes.rows) - (128 - count), None)
    held = Codes(*(part[others] for part in codes))
    images = torch.stack([dataset.image_tensor(row) for row in rows[:count]])
    other_images = torch.stack([dataset.image_tensor(row) for row in rows[others] or rows[:1]])
    wrong = [int(dataset.first_caption[row]) for row in rows[count : 2 * count]]
    inputs = dataset.processor.pad([dataset.tokens(caption) for caption in wrong])
    name, reader = image_input(dataset), Runner(loaded.model).memory_reader()
    before = memory_of(held, 128, False)

    def encode(model: torch.nn.Module) -> tuple[Tensor, Tensor]:
        return model.encode_image(**{name: images}).image_features, model.encode_text(**inputs, reader=reader)

    @torch.no_grad()
    def found(model: torch.nn.Module) -> float:
        """Of the others, by the model alone."""
        candidates = torch.cat([held.texts.float(), model.encode_text(**inputs, reader=reader)])
        features = model.encode_image(**{name: other_images}).image_features[: len(held.rows)]
        return share(hits(features @ candidates.mT, candidates)) if len(held.rows) else 0.0

    def write() -> float:
        with torch.no_grad():
            facts = torch.cat(encode(loaded.model), dim=1).double()
        memory = before.written(facts)
        stored = memory.seen(TEXT).roll(count, 0)  # the facts first
        read = memory.read(facts[:, : memory.space.half], IMAGE).halves
        return share(hits(F.normalize(read, dim=1) @ stored.mT, stored))

    reached = write()  # the first call of anything is slow
    one_shot = min(seconds(write) for _ in range(5))
    best: dict[str, float] | None = None
    for rate in LEARNING_RATES:
        model = copy.deepcopy(loaded.model).eval()  # without dropout, which costs steps
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], rate)
        start, steps = time.process_time(), 0
        while steps < 200:
            image_features, text_features = encode(model)
            candidates = torch.cat([text_features, held.texts.float()])
            if share(hits(image_features @ candidates.mT, candidates)) >= reached:
                break
            loss = F.cross_entropy(image_features @ candidates.mT / 0.07, torch.arange(count))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps += 1
        spent = time.process_time() - start
        if steps < 200 and (best is None or spent < best["value"]):
            drop = found(loaded.model) - found(model)
            best = {"value": spent, "steps": steps, "learning_rate": rate, "others_drop": drop}
    report("write_seconds", count, 128, one_shot, recall=reached)
    if best is not None:
        report("fine_tuning_seconds", count, None, **best)
        report("fine_tuning_over_write", count, 128, best["value"] / one_shot)


def seconds(action: Callable[[], object]) -> float:
    """CPU time of one call."""
    start = time.process_time()
    action()
    return time.process_time() - start


def costs(codes: Codes, largest: int) -> None:
    """Times and bytes against slots and episodes."""
    for slots in (size for size in (32, 128, 512, 1024, 2048, 4096) if size <= largest):
        for widen in (False, True):
            for count in (count for count in (32, 512) if count < len(codes.images)):
                written, unwritten = next(episodes_of(codes, count))
                memory = memory_of(written, slots, widen)
                pair = torch.cat([unwritten.images[:1], unwritten.texts[:1]], dim=1)
                cue = unwritten.images[:1]
                line = {
                    "write_ms": min(seconds(partial(memory.written, pair)) for _ in range(3)),
                    "prepare_ms": seconds(partial(memory.read, cue, IMAGE)),
                    "read_ms": min(seconds(partial(memory.read, cue, IMAGE)) for _ in range(9)),
                }
                line = {name: 1000 * value for name, value in line.items()}
                line["bytes"] = sum(tensor.nbytes for tensor in memory.precision)
                line["episode_bytes"] = memory.pairs.nbytes + memory.weights.nbytes
                for name, value in line.items():
                    report(name, count, slots, value, widen=widen)


def pseudo_inverses(codes: Codes) -> None:
    """Three ways to the pseudo-inverse of the memory's image half, and the iteration's steps against its error."""
    for slots in (32, 128, 512):
        count = min(slots, codes.images.shape[1])
        written, _ = next(episodes_of(codes, count))
        memory = memory_of(written, slots, False)
        half = memory.precision.solve().mean[:, : memory.space.half]
        texts = memory.precision.solve().mean[:, memory.space.half :]
        report("pseudo_inverse_exact_ms", count, slots, 1000 * seconds(lambda m=half: torch.linalg.pinv(m)))
        own = 1000 * seconds(lambda m=memory: m.condition)  # both halves
        report("pseudo_inverse_own_ms", count, slots, own / 2, condition_number=memory.condition)
        for steps in (3, 10, 20, 30, 40, 60, 80, 100):
            spent = 1000 * seconds(lambda m=half, s=steps: pseudo_inverse(m, s, 0.0))
            inverse = pseudo_inverse(half, steps, 0.0)
            error = (written.images @ inverse @ texts - written.texts).norm(dim=1) / written.texts.norm(dim=1)
            residual = ((half @ inverse @ half - half).norm() / half.norm()).item()
            more = {"milliseconds": spent, "residual": residual}
            report("pseudo_inverse_steps", count, slots, error.max().item(), steps=steps, **more)
