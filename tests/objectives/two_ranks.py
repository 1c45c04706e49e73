"""Run by ``test_distributed.py`` as one of two processes: ``two_ranks.py FOLDER``, whose RANK is the launcher's.

Every case runs in the same two processes, because starting them takes most of the time. What this rank found goes to
``FOLDER/RANK.pt``; rank 0 first computes the same alone, with the whole batch, into ``FOLDER/alone.pt``.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from bitgen.objectives.gather import gather_rows, is_distributed
from support.stage1 import Weights, forward, make_batch, make_entries, make_objective, make_queue

WORLD, PAIRS = 2, 8
CASES = ("contrastive", "memory-equal", "memory", "text-equal", "all")
LOSS_WEIGHTS = {
    "contrastive": Weights(itm_weight=0, memory_kl_weight=0, text_loss_weight=0),
    "memory": Weights(itm_weight=0, text_loss_weight=0, memory_kl_weight=1.0),
    "text": Weights(contrastive_weight=0, itm_weight=0, memory_kl_weight=0, text_loss_weight=1.0),
    "all": Weights(),
}


def gather_case(rank: int) -> dict:
    """Gradient of gathered rows, each rank weighing them differently, beside a tensor that is not gathered."""
    source = torch.zeros(2 * WORLD, 3, requires_grad=True)
    beside = source * 2  # made before the gathering, so its backward comes after
    rows = torch.full((2, 3), float(rank)).requires_grad_(True)
    weight = torch.arange(6.0 * WORLD).view(2 * WORLD, 3) * 10**rank
    gathered = gather_rows(rows)
    # Addition hands one and the same gradient tensor to both of its inputs.
    ((gathered + beside) * weight).sum().backward()
    numbers = gather_rows(torch.full((2,), rank))
    return {
        "gathered": gathered.detach(),
        "gradient": rows.grad,
        "beside": source.grad / 2,
        "numbers": numbers,
        "distributed": is_distributed(),
    }


def objective_case(case: str, rank: int, world: int) -> dict:
    """One forward and backward in training mode, as the trainer runs it, with this rank's share of one batch."""
    weights, _, lengths = case.partition("-")
    objective = make_objective(LOSS_WEIGHTS[weights], tower=True, fusion="backbone")
    objective.model.set_adapters_trainable(True)
    _wake(objective)
    config, random = objective.model.config, torch.Generator().manual_seed(5)
    ids = torch.tensor([3, 1, 4, 1, 5, 9, 3, 6])  # positives across the two ranks
    batch = make_batch(config, PAIRS, random, ids)
    if lengths == "equal":
        batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
    queue = make_queue(config, 16)
    queue.enqueue(make_entries(config, 10, random))
    queue.entries.image_ids[3] = 9  # and in the queue
    share = PAIRS // world
    local = {name: value[rank * share : (rank + 1) * share] for name, value in batch.items()}
    module = DistributedDataParallel(objective, broadcast_buffers=False) if world > 1 else objective
    torch.manual_seed(50 + rank)
    with mock.patch("torch.randn_like", torch.zeros_like):  # the noise of reading would differ between the ranks
        output = forward(module, local, queue)
    output.loss.backward()
    gradients = {name: p.grad for name, p in objective.named_parameters() if p.requires_grad}
    return {"gradients": gradients, "metrics": dict(output.metrics), "posterior": output.posterior}


def _wake(objective: torch.nn.Module) -> None:
    """Gates and LoRA's B start at 0 and would keep most gradients at 0."""
    random = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for name, parameter in objective.named_parameters():
            if name.endswith("gate") or "lora_B" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=random))


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    if rank == 0:
        torch.save({case: objective_case(case, 0, 1) for case in CASES}, folder / "alone.pt")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    found = {"gather": gather_case(rank)} | {case: objective_case(case, rank, WORLD) for case in CASES}
    torch.save(found, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(os.environ["RANK"]), Path(sys.argv[1]))
