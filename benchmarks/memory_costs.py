"""What an episodic memory costs by its slots and episodes, for memory_recall.py."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
from memory_codes import Codes, episodes_of, memory_of, report

from bitgen.memory.associative import IMAGE
from bitgen.model.episodic_memory import pseudo_inverse


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
