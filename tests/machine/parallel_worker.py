"""One process of two, as torchrun starts them: runs every case of test_parallel.py and writes what it found.

Usage: parallel_worker.py FOLDER. The file of rank R is FOLDER/R.pt.
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from bitgen.machine.devices import start_processes
from bitgen.machine.parallel import Parallel, Replicated
from bitgen.machine.ranks import Processes, stop_processes
from bitgen.machine.sharded import Sharded
from support.parallel_runs import UNFROZEN_AT, Run, TinyObjective, batch_of

FOLDER = Path(sys.argv[1])
# Before and after the adapters were unfrozen.
STOPS = (("sharded", 1), ("sharded", 3), ("replicated", 3))
RESUMED = (
    ("sharded", "sharded", 1),
    ("sharded", "sharded", 3),
    ("sharded", "replicated", 3),
    ("replicated", "replicated", 3),
    ("replicated", "sharded", 3),
)


def main() -> None:
    torch.set_num_threads(1)
    gc.freeze()  # each wrapping collects garbage, for which it would go through all that was imported
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
    for way, stop in STOPS:
        stopped = run(way).go(until=stop).state()
        if processes.is_main:
            torch.save(stopped, FOLDER / f"{way}-{stop}.pt")
    dist.barrier()
    for way, written_by, stop in RESUMED:
        state = torch.load(FOLDER / f"{written_by}-{stop}.pt", weights_only=True)
        resumed = run(way, seed=5).restore(state)
        there_and_back = resumed.state()
        found[f"{way} from {written_by}-{stop}"] = {**resumed.go().found(), "restored": there_and_back}
    found["sharded tied"] = tied(run("sharded", tied=True))
    found["sharded text on rank 1"] = run("sharded", text_only=(1,)).go().found()
    found["sharded bf16 base"] = run("sharded", base=torch.bfloat16, autocast=True).go().found()
    # With something to train from the start: a loss without any gradient has no backward.
    without = dict(dummy=False, unfrozen_at=0)
    found["sharded text alone"] = run("sharded", text_only=(0, 1), **without).go().found()
    found["replicated unsteady"] = run("replicated", text_only=(1,), steady=False, **without).go().found()
    found["generated"] = generate(run("sharded").go(until=UNFROZEN_AT))
    found["gradients"] = gradients(run("sharded").go(until=1), processes)
    found["old wrapper"] = old_wrapper(processes)
    torch.save(found, FOLDER / f"{processes.rank}.pt")
    stop_processes()


def tied(run: Run) -> dict[str, Any]:
    objective = run.go().objective
    embedding, head = "lm.model.embed_tokens.weight", "lm.lm_head.weight"
    whole = run.parallel.gather(dict(objective.named_parameters(remove_duplicate=False)))
    is_one = whole[embedding] is whole[head] and objective.lm.lm_head.weight is objective.lm.model.embed_tokens.weight
    return {"is one": is_one, **run.found()}


def generate(run: Run) -> dict[str, Any]:
    """Validation between two steps, with other weights for a while; training goes on as if there had been none."""
    parallel, lm = run.parallel, run.objective.lm
    prompt = batch_of(0, 0, 0)["input_ids"]

    def decode() -> torch.Tensor:
        return lm.generate(prompt, max_new_tokens=5, min_new_tokens=5, do_sample=False, pad_token_id=0)

    def loss() -> float:
        return run.wrapped(batch_of(9, 0, 0)).loss.item()

    weights = run.weights()
    with torch.no_grad():
        ids, losses = parallel.call(run.wrapped, decode), [loss()]
        parallel.scatter_(run.objective, {"connector.bias": torch.ones_like(weights["connector.bias"])})
        losses.append(loss())
    parallel.scatter_(run.objective, {"connector.bias": weights["connector.bias"]})
    return {"weights": weights, "ids": ids, "losses": losses, "end": run.go().found()}


def gradients(run: Run, processes: Processes) -> dict[str, Any]:
    """Which gradients are there after a micro-step that is not the last; then clip, with and without an infinity that
    rank 1 alone holds."""
    matrix, scalar = run.objective.connector.weight, run.objective.scale
    for last in (False, True):
        with run.parallel.accumulating(run.wrapped, last):
            run.wrapped(batch_of(0, 0, processes.rank)).loss.backward()
        if not last:
            early = {"matrix": matrix.grad is None, "scalar": scalar.grad.item()}
    late = scalar.grad.item()
    clean = run.parallel.clip([matrix, scalar], 1.0)
    if processes.rank == 1:
        matrix.grad.to_local()[0, 0] = torch.inf
    infinite = run.parallel.clip([matrix, scalar], 1.0)
    return {"early": early, "late": late, "clean": clean, "infinite": infinite}


def old_wrapper(processes: Processes) -> str:
    parallel, module = Replicated(processes), nn.Linear(2, 2)
    kept = parallel.wrap(module, True)
    try:
        parallel.wrap(module, True)
    except RuntimeError as error:
        del kept
        parallel.wrap(module, True)
        return str(error)
    return "nothing was raised"


if __name__ == "__main__":
    main()
