"""One process of two, as torchrun starts them: trains, and writes what it holds and what it learned from.

Usage: watched_worker.py KIND CONFIG_JSON OUTPUT STOP_AT. KIND is that of the configuration, ``stage1`` or ``stage2``.
Rank 1 alone gets SIGTERM in its forward STOP_AT, counted from 1 (0: never).
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch

from bitgen.config import Config
from bitgen.config.stage2 import Stage2Config
from bitgen.machine.devices import start_processes
from bitgen.machine.ranks import stop_processes
from bitgen.run import build_trainer
from bitgen.tasks import task_of
from support import reasoning  # noqa: F401  # whose runs learn their words from few questions

KIND, SETTINGS, OUTPUT, STOP_AT = sys.argv[1:]
KINDS = {"stage1": Config, "stage2": Stage2Config}


def main() -> None:
    torch.set_num_threads(1)
    config = KINDS[KIND].from_flat(json.loads(Path(SETTINGS).read_text()))
    config.validate()
    processes = start_processes(config.training.device, config.training.use_ddp)
    trainer = build_trainer(task_of(config), config, processes)
    objective, seen, gradients = trainer.objective, [], {}
    forward, advance = objective.forward, objective.advance

    def watched(batch):
        seen.append({name: tensor.clone() for name, tensor in batch.items()})
        if processes.rank == 1 and len(seen) == int(STOP_AT):
            os.kill(os.getpid(), signal.SIGTERM)
        return forward(batch)

    def looked(updates, ranks):
        if not gradients:  # of the first step
            named = objective.named_parameters()
            gradients.update((name, p.grad.clone()) for name, p in named if p.grad is not None)
        advance(updates, ranks)

    objective.forward, objective.advance = watched, looked
    finished = trainer.fit()
    torch.save(
        {
            "step": trainer.progress.step,
            "finished": finished,
            "samples": trainer.progress.samples_seen,
            "parameters": dict(objective.state_dict()),
            "gradients": gradients,
            "seen": seen,
        },
        f"{OUTPUT}.{processes.rank}",
    )
    trainer.monitor.close()
    stop_processes()


if __name__ == "__main__":
    main()
