"""What an episodic memory costs by its slots and episodes, for memory_recall.py."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from memory_codes import Codes, episodes_of, memory_of, report

from bitgen.memory.address_space import IMAGE, TEXT, AddressSpace
from bitgen.memory.associative import AssociativeMemory
from bitgen.memory.episodes import Held, held_in_file
from bitgen.memory.files import write_memory
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
                assert memory.space.gpm is not None  # made once for all memories of these slots
                line = {"sum_ms": seconds(lambda m=memory: m.precision)}  # later writes add to the sums
                pair = torch.cat([unwritten.images[:1], unwritten.texts[:1]], dim=1)
                cue = unwritten.images[:1]
                line |= {
                    "write_ms": min(seconds(partial(memory.written, pair)) for _ in range(3)),
                    "prepare_ms": seconds(partial(memory.read, cue, IMAGE)),
                    "read_ms": min(seconds(partial(memory.read, cue, IMAGE)) for _ in range(9)),
                }
                line = {name: 1000 * value for name, value in line.items()}
                line["bytes"] = sum(tensor.nbytes for tensor in memory.precision)
                line["episode_bytes"] = memory.pairs.nbytes + memory.weights.nbytes
                for name, value in line.items():
                    report(name, count, slots, value, widen=widen)


def loading(codes: Codes, most: int = 1000, slots: int = 1024) -> None:
    """What `recall` and `teach` do on the command line beyond starting: a file of many episodes."""
    count = min(most, len(codes.images) - 1)
    for widen in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            condition, milliseconds = load_times(codes, count, Path(folder) / "memory", slots, widen)
        for name, value in milliseconds.items():
            report(name, count, slots, value, widen=widen, condition_number=condition)


def load_times(codes: Codes, count: int, path: Path, slots: int, widen: bool) -> tuple[float, dict[str, float]]:
    """The memory's condition number, and times in milliseconds."""
    pairs = torch.cat([codes.images, codes.texts], dim=1)
    empty = Held(AssociativeMemory.empty(AddressSpace(codes.images.shape[1], slots, widen)))
    held, _ = empty.added(pairs[:count], [f"text {row}" for row in range(count)], None)

    def save(held: Held) -> None:
        write_memory(path, held.memory.pairs, pairs[0].clone(), None, held.header())

    def recall() -> None:
        held_in_file(path, pairs[0]).recall(codes.others[:1], TEXT, 3)

    def teach() -> None:
        save(held_in_file(path, pairs[0]).added(pairs[count:][:1], ["one more"], None)[0])

    save(held)
    line = {
        "load_ms": min(seconds(partial(held_in_file, path, pairs[0])) for _ in range(3)),
        "load_and_recall_ms": min(seconds(recall) for _ in range(3)),
        "load_teach_and_save_ms": seconds(teach),
    }
    return held.memory.condition, {name: 1000 * value for name, value in line.items()}


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
