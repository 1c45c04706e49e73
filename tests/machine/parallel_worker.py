"""One process of two, started by torchrun: runs every case of test_parallel.py and writes what it found.

Usage: parallel_worker.py FOLDER. The file of rank R is FOLDER/R.pt.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from support.parallel_runs import Run, TinyObjective, batch_of
from torch import nn

from bitgen.machine.devices import start_processes
from bitgen.machine.parallel import Parallel, Replicated
from bitgen.machine.ranks import Processes, stop_processes
from bitgen.machine.sharded import Sharded

FOLDER = Path(sys.argv[1])


def main() -> None:
    torch.set_num_threads(1)
    processes = start_processes("cpu", use_ddp=True)
    ways: dict[str, type] = {"sharded": Sharded, "replicated": Replicated}
    found: dict[str, Any] = {}

    def run(way: str, seed: int = 0, **settings: Any) -> Run:
        of_model = {key: settings.pop(key) for key in ("tied", "dummy", "base") if key in settings}
        parallel: Parallel = ways[way](processes)
        return Run(parallel, TinyObjective(seed, **of_model), (processes.rank,), **settings)

    for way in ways:
        # Rank 1 starts from other values: those of rank 0 hold.
        found[way] = run(way, seed=processes.rank).go().found()
        for stop in (1, 4):
            stopped = run(way).go(until=stop).state()
            if processes.is_main:
                torch.save(stopped, FOLDER / f"{way}-{stop}.pt")
            dist.barrier()
    for way in ways:
        for written_by in ways:
            for stop in (1, 4):
                state = torch.load(FOLDER / f"{written_by}-{stop}.pt", weights_only=True)
                resumed = run(way, seed=5).restore(state)
                found[f"{way} restored from {written_by}-{stop}"] = resumed.state() if stop == 4 else None
                found[f"{way} from {written_by}-{stop}"] = resumed.go().found()
    for way in ways:
        found[f"{way} tied"] = tied(run(way, tied=True))
        found[f"{way} text on rank 1"] = run(way, text_only=(1,)).go().found()
        found[f"{way} text on rank 1 without a dummy"] = (
            run(way, text_only=(1,), dummy=False, steady=False).go().found()
        )
        found[f"{way} bf16 base"] = run(way, base=torch.bfloat16, autocast=True).go().found()
    found["generated"] = generate(run("sharded").go(until=4))
    found["nonfinite"] = nonfinite(run("sharded").go(until=1), processes)
    found["old wrapper"] = old_wrapper(processes)
    torch.save(found, FOLDER / f"{processes.rank}.pt")
    stop_processes()


def tied(run: Run) -> dict[str, Any]:
    lm = run.go().objective.lm
    assert lm.lm_head.weight is lm.get_input_embeddings().weight
    return run.found()


def generate(run: Run) -> dict[str, Any]:
    """After validation in the middle of a run, training goes on as if there had been none."""
    lm = run.objective.lm
    prompt = batch_of(0, 0, 0)["input_ids"]

    def decode() -> torch.Tensor:
        return lm.generate(prompt, max_new_tokens=5, min_new_tokens=5, do_sample=False, pad_token_id=0)

    with torch.no_grad():
        ids = run.parallel.call(run.wrapped, decode)
        loss = run.wrapped(batch_of(9, 0, 0)).loss.item()
    return {"weights": run.weights(), "ids": ids, "loss": loss, "end": run.go().found()}


def nonfinite(run: Run, processes: Processes) -> dict[str, float]:
    """A value that is not finite in a shard of rank 1 alone, and in none: what clip says of each."""
    parameter = run.objective.connector.weight
    with run.parallel.accumulating(run.wrapped, True):
        run.wrapped(batch_of(0, 0, processes.rank)).loss.backward()
    clean = run.parallel.clip([parameter], 1.0)
    if processes.rank == 1:
        parameter.grad.to_local()[0, 0] = torch.inf
    return {"clean": clean.item(), "infinite": run.parallel.clip([parameter], 1.0).item()}


def old_wrapper(processes: Processes) -> str:
    parallel, module = Replicated(processes), nn.Linear(2, 2)
    kept = parallel.wrap(module, True)
    return message_of(lambda: parallel.wrap(module, True)) + ("" if kept is not None else "")


def message_of(action: Callable[[], Any]) -> str:
    try:
        action()
    except RuntimeError as error:
        return str(error)
    return "nothing was raised"


if __name__ == "__main__":
    main()
