"""One process of two (as torchrun starts them) or the only one: trains models of parts on made-up batches.

Usage: vlm_worker.py FOLDER WAY...; the file of rank R and way W is FOLDER/W.R.pt. A lone process trains on the batches
of both ranks.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bitgen.data.conversations.dataset import VisualCollator, count_supervised
from bitgen.evaluation.answers import Decoding, write_answers
from bitgen.machine.devices import start_processes
from bitgen.machine.parallel import Parallel, Replicated
from bitgen.machine.ranks import Processes, stop_processes
from bitgen.machine.sharded import Sharded, elements_of_lists
from bitgen.objectives.supervised import NextTokens
from bitgen.protocols import Counts
from bitgen.stages import Group, Stage
from bitgen.training.accumulation import loss_shares
from bitgen.training.optimizer import build_optimizer, freeze_and_unfreeze
from bitgen.vlm.adapters import enable_checkpointing
from support.vlm import sample_of, tiny_vlm

STEPS = 3
# Of each rank; the second one has text alone, and other numbers of labels. Visuals of different numbers of pictures.
SHAPES = ([([1], 4, 3, 0), ([2, 1], 5, 7, 1)], [([], 6, 2, 2), ([], 2, 1, 4)])
TRAINS = {
    "connector": dict(connector="perceiver"),
    "adapter": dict(connector="perceiver", adapter="lora", lm="llama_tied", checkpointing=True),
    "vision": dict(own=("vision",), select_layer=-2),
    "language": dict(own=("language",), lm="llama_tied"),
}


class EndOnly:
    """What ``write_answers`` asks of a ``Speech``, and of its tokenizer."""

    eos_token_id = 2
    ends = (2,)

    @property
    def tokenizer(self) -> EndOnly:
        return self

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return " ".join(map(str, ids))


def train(parallel: Parallel, case: str, mine: tuple[int, ...], seed: int) -> dict[str, Any]:
    settings: dict[str, Any] = dict(TRAINS[case])
    checkpointing = settings.pop("checkpointing", False)
    model = tiny_vlm(**settings, seed=seed)
    if checkpointing:
        enable_checkpointing(model.language)
    objective, roles = NextTokens(model), NextTokens(model).roles()
    parts = {"adapter": ("connector", "adapter"), "vision": ("connector", "vision")}.get(case, (case,))
    stage = Stage("vlm", tuple(Group(part, (f"{part}/*",), 1e-2) for part in parts), STEPS, STEPS)
    freeze_and_unfreeze(objective, roles, stage, 0)
    wrapped = parallel.wrap(objective, steady=True)
    objective.train()
    optimizer = build_optimizer(objective, roles, stage)
    for step in range(STEPS):
        # From one step to the next the ranks change what they have.
        kinds = [SHAPES[(rank + step) % 2] for rank in mine]
        samples = [[sample_of(model, *shape[:3], seed=10 * step + shape[3]) for shape in kind] for kind in kinds]
        batches = [{n: t for n, t in VisualCollator(0)(own).items() if n != "words"} for own in samples]
        counts = [Counts(2, 0, 0, count_supervised(batch["labels"])) for batch in batches]
        for batch, share in zip(batches, loss_shares(counts, parallel.ranks), strict=True):
            with parallel.accumulating(wrapped, batch is batches[-1]):
                share(wrapped(batch).loss).backward()
        norm = parallel.clip([p for group in optimizer.param_groups for p in group["params"]], 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    asked = [sample_of(model, *shape) for shape in (*SHAPES[0], *SHAPES[1])]
    shared = not parallel.replicated
    write = partial(
        write_answers, model, EndOnly(), asked, VisualCollator(0), Decoding(max_new_tokens=6), shared=shared
    )
    answers = parallel.call(wrapped, write)
    again = wrapped(batches[0]).loss.item()
    named = parallel.gather({name: p for name, p in objective.named_parameters() if roles[name].part in parts})
    return {"weights": named, "norm": float(norm), "answers": answers, "loss": again}


def main() -> None:
    torch.set_num_threads(1)
    folder, ways = Path(sys.argv[1]), sys.argv[2:]
    processes = start_processes("cpu", use_ddp="alone" not in ways)
    mine = (0, 1) if "alone" in ways else (processes.rank,)
    for way in ways:
        for case in TRAINS:
            parallel = sharded(processes) if way == "sharded" else Replicated(processes)
            # Sharding starts from rank 0's values, whatever the others have.
            found = train(parallel, case, mine, seed=processes.rank if way == "sharded" else 0)
            torch.save(found, folder / f"{way}.{case}.{processes.rank}.pt")
    stop_processes()


def sharded(processes: Processes) -> Parallel:
    return Sharded(processes, lambda objective: elements_of_lists(objective.model.language))


if __name__ == "__main__":
    main()
