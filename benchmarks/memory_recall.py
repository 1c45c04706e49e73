"""What the episodic memory recalls, and what it costs, on held-out pairs of a trained model. Prints JSON lines
{"name": .., "episodes": .., "slots": .., "value": .., ...}:

  recall_image, recall_caption   share of the episodes that their own image, or another caption of that image, recalls
                 first (of episodes with the same image or text, any). `nearest_neighbour` is the same share for a
                 store of float32 codes [image, text] that ranks by the cosine of the cue, has the bytes of this memory
                 (precision and information), and keeps the newest where it cannot hold all.
  reading_error, unwritten_error   relative error of what images read: the largest over the written; over images never
                 written the mean, the least and `below`, the share under 0.5 in percent. `nearest`: the least distance
                 of what they read from any episode, which is what `recall` shows
  whitened       by the model's last training pairs; all is then compared whitened, the nearest neighbours too
  cue_noise      recall_caption against the noise that other cues are read with
  widening       ways to widen the code, E = K: recall_caption, and the reading error of the own images
  edit_success, edit_others_drop, forget_*   a quarter of a full memory edited or forgotten
  write_seconds, fine_tuning_seconds   teaching facts (images with captions of other images) beside others: to encode,
                 write and recall them, against AdamW until these images find their texts among all as often (bar
                 `found`), until also at most a point of the others that the model finds, or one, was lost (`kept`), and
                 the same from a model that was trained to find all others first, as the memory holds them (`held`): the
                 cheapest of several learning rates with and without replay of the others; null: none got there.
                 fine_tuning_over_write: the ratio, both with one encoding of the facts, and without it
  sum_ms, write_ms, prepare_ms, read_ms, bytes   the sums of all episodes, one more, what the next read has to compute
                 once, then one cue
  load_ms, load_and_recall_ms, load_teach_and_save_ms   what the command line does with a file of 1,000 episodes beyond
                 starting and encoding
  pseudo_inverse_*   the pseudo-inverse of the memory's image half: exact, by the memory's own way, and by the iteration
                 of the model's layer, with its error at each number of steps

Seconds are of CPU, on one thread: they hardly depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import fmean as mean

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import torch
from memory_codes import (
    Codes,
    codes_of,
    episodes_of,
    hits,
    memory_of,
    nearest_neighbour,
    recalled,
    report,
    share,
)
from memory_costs import costs, loading, pseudo_inverses
from memory_training import fine_tuning
from torch import Tensor
from torch.nn import functional as F

from bitgen.commands.evaluate import load_split
from bitgen.memory.address_space import IMAGE, TEXT
from bitgen.memory.whitening import Whitening, training_whitening
from bitgen.trained import open_model

PARTS = ("training", "costs", "loading", "pseudo_inverse", "edits", "widening", "cue_noise", "recall")
EPISODES, SLOTS = (1, 8, 16, 32, 64, 128, 512), (32, 128, 512)


def recall(codes: Codes, whitening: Whitening | None) -> None:
    """Recall and reading errors for all numbers of episodes and slots."""
    for slots in SLOTS:
        for widen in (False, True):
            for count in (count for count in EPISODES if count + 1 < len(codes.images)):
                for way in (None, whitening) if whitening is not None else (None,):
                    one_recall(codes, slots, widen, count, way)


def one_recall(codes: Codes, slots: int, widen: bool, count: int, whitening: Whitening | None) -> None:
    figures: dict[str, list[float]] = {}
    rooms = 0
    for written, unwritten in episodes_of(codes, count):
        memory = memory_of(written, slots, widen, whitening=whitening)
        images = memory.space.seen(written.images, IMAGE)
        texts, others = (memory.space.seen(half, TEXT) for half in (written.texts, written.others))
        rooms = sum(tensor.nbytes for tensor in memory.precision) // (4 * 2 * memory.space.half)
        read = memory.read(written.images, IMAGE)
        errors = memory.errors(read.halves, TEXT).diagonal()
        other = memory.read(unwritten.images, IMAGE).halves
        missing = memory.space.seen(unwritten.texts, TEXT)
        unread = (other - missing).norm(dim=1) / missing.norm(dim=1)
        for name, value in (
            ("image", share(recalled(memory, written.images, IMAGE))),
            ("caption", share(recalled(memory, written.others, TEXT))),
            ("nn_image", share(nearest_neighbour(images, images, rooms))),
            ("nn_caption", share(nearest_neighbour(others, texts, rooms))),
            ("error", errors.max().item()),
            ("unwritten", unread.mean().item()),
            ("least", unread.min().item()),
            ("below", 100 * share(unread < 0.5)),
            ("nearest", memory.errors(other, TEXT).min().item()),
        ):
            figures.setdefault(name, []).append(value)
    way = {"widen": widen, "whitened": whitening is not None}
    for cue in ("image", "caption"):
        nn = {"nearest_neighbour": mean(figures[f"nn_{cue}"]), "nearest_neighbour_room": rooms}
        report(f"recall_{cue}", count, slots, mean(figures[cue]), **way, **nn)
    report("reading_error", count, slots, max(figures["error"]), **way)
    more = {"least": min(figures["least"]), "below": mean(figures["below"]), "nearest": min(figures["nearest"])}
    report("unwritten_error", count, slots, mean(figures["unwritten"]), **way, **more)


def cue_noise(codes: Codes) -> None:
    """What the noise of cues should be."""
    for slots, count, widen in ((128, 32, False), (128, 128, False), (512, 512, True)):
        for noise in (1e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0) if count < len(codes.images) else ():
            values = []
            for written, _ in episodes_of(codes, count):
                values.append(share(recalled(memory_of(written, slots, widen, noise), written.others, TEXT)))
            report("cue_noise", count, slots, mean(values), widen=widen, noise=noise)


def widening(codes: Codes, count: int = 512) -> None:
    """Ways to widen a code, by what the memory reads within capacity: ridge regression on the cues, noise 0.1."""
    if count + 64 > len(codes.images):
        return
    half, generator = codes.images.shape[1], torch.Generator().manual_seed(0)
    directions = torch.randn(half, count, generator=generator, dtype=torch.float64)
    phases = 2 * math.pi * torch.rand(count, generator=generator, dtype=torch.float64)

    def sparse(x: Tensor, kept: float) -> Tensor:
        best = (x @ directions).topk(round(kept * count), dim=1).indices
        return torch.zeros(len(x), count, dtype=torch.float64).scatter_(1, best, 1.0)

    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "none": lambda x: x[:, :0],
        "random ReLU": lambda x: torch.relu(x @ directions),
        **{f"Fourier, scale {s}": lambda x, s=s: torch.cos(s * (x @ directions) + phases) for s in (1, 2, 4)},
        **{f"sparse, {k:.0%}": lambda x, k=k: sparse(x, k) for k in (0.02, 0.05, 0.1)},
        **{
            f"softmax, {b}": lambda x, b=b: (b * x @ F.normalize(directions, dim=0)).softmax(dim=1) for b in (5, 20, 50)
        },
    }
    written, _ = next(episodes_of(codes, count))
    for way, features in ways.items():
        texts, images, others = (
            torch.cat([x, F.normalize(features(x), dim=1)], dim=1)
            for x in (written.texts, written.images, written.others)
        )
        read = torch.linalg.solve(texts @ texts.mT + 0.1 * torch.eye(count, dtype=torch.float64), written.images)
        found = hits(F.normalize(others @ texts.mT @ read, dim=1) @ written.images.mT, written.images)
        exact = images @ torch.linalg.pinv(images, rtol=1e-10) @ written.texts
        error = ((exact - written.texts).norm(dim=1) / written.texts.norm(dim=1)).max().item()
        report("widening", count, count, share(found), way=way, reading_error=error)


def edits(codes: Codes, whitening: Whitening | None, slots: int = 128) -> None:
    """Edit, and forget, a quarter of a full memory."""
    for way in (None, whitening) if whitening is not None else (None,):
        for widen, count in ((False, min(slots, codes.images.shape[1])), (True, slots)):
            one_edit(codes, slots, widen, count, way)


def one_edit(codes: Codes, slots: int, widen: bool, count: int, whitening: Whitening | None) -> None:
    figures: dict[str, list[float]] = {}
    for written, unwritten in episodes_of(codes, count):
        memory, part = memory_of(written, slots, widen, whitening=whitening), count // 4
        stored, unknown = (memory.space.seen(half.texts[:part], TEXT) for half in (written, unwritten))
        before = recalled(memory, written.images, IMAGE).double()
        news = unwritten.others[torch.arange(part) % len(unwritten.others)]
        edited, forgotten = memory, memory
        for row in range(part):
            edited = edited.replaced(row, torch.cat([written.images[row], news[row]]))
            forgotten = forgotten.without(0)
        after = recalled(edited, written.images, IMAGE).double()
        kept = forgotten.read(written.images[part:], IMAGE).halves
        rest = hits(F.normalize(kept, dim=1) @ forgotten.seen(TEXT).mT, forgotten.seen(TEXT))
        gone, never = (  # their own texts are candidates, or nothing could find them
            hits(F.normalize(forgotten.read(cue, IMAGE).halves, dim=1) @ texts.mT, texts)
            for cue, texts in (
                (written.images[:part], torch.cat([stored, forgotten.seen(TEXT)])),
                (unwritten.images[:part], torch.cat([unknown, forgotten.seen(TEXT)])),
            )
        )
        for name, value in (
            ("edit_success", after[:part]),
            ("edit_others_drop", before[part:] - after[part:]),
            ("forget_others_drop", before[part:] - rest.double()),
            ("forget_recall_of_forgotten", gone),
            ("recall_of_never_written", never),
        ):
            figures.setdefault(name, []).append(value.double().mean().item())
    for name, values in figures.items():
        chance = {"chance": 1 / count} if "forgotten" in name or "never" in name else {}
        report(name, count, slots, mean(values), widen=widen, whitened=whitening is not None, **chance)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, metavar="DIR", help="a run's --output_dir or one checkpoint")
    parser.add_argument("--data", required=True, metavar="DIR", help="held-out pairs by data_prep/, or scenes")
    parser.add_argument(
        "--largest", type=int, default=512, metavar="N", help="slots to measure costs up to (default: 512)"
    )
    parser.add_argument("--parts", default=",".join(PARTS), metavar="LIST", help="some of: %(default)s (default: all)")
    flags = parser.parse_args()
    wanted = flags.parts.split(",")
    if unknown := sorted(set(wanted) - set(PARTS)):
        parser.error(f"--parts: {unknown[0]!r} is none of {', '.join(PARTS)}")
    torch.set_num_threads(1)
    loaded = open_model(flags.model)
    dataset = load_split(flags.data, loaded, None)
    codes = codes_of(loaded, dataset)
    try:
        whitening = training_whitening(flags.model)
    except ValueError as error:
        print(f"nothing is whitened: {error}", file=sys.stderr)
        whitening = None
    parts: dict[str, Callable[[], object]] = {
        "training": lambda: [fine_tuning(loaded, dataset, codes, count) for count in (1, 16, 32, 128)],
        "costs": lambda: costs(codes, flags.largest),
        "loading": lambda: loading(codes),
        "pseudo_inverse": lambda: pseudo_inverses(codes),
        "edits": lambda: edits(codes, whitening),
        "widening": lambda: widening(codes),
        "cue_noise": lambda: cue_noise(codes),
        "recall": lambda: recall(codes, whitening),
    }
    for part in wanted:
        parts[part]()


if __name__ == "__main__":
    main()
