"""One process of two, started by torchrun: learns to speak from a memory, and writes what it holds.

Usage: episodes_worker.py CONFIG_JSON OUTPUT STOP_AT. Rank 1 alone gets SIGTERM in its forward STOP_AT, counted from 1.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch

from bitgen.config import Config
from bitgen.machine.devices import start_processes
from bitgen.machine.ranks import stop_processes
from bitgen.run import build_trainer
from bitgen.tasks import task_of

SETTINGS, OUTPUT, STOP_AT = sys.argv[1:]


def main() -> None:
    torch.set_num_threads(1)
    config = Config.from_flat(json.loads(Path(SETTINGS).read_text()))
    config.validate()
    processes = start_processes(config.training.device, config.training.use_ddp)
    trainer = build_trainer(task_of(config), config, processes)
    forward, seen, gradients = trainer.objective.forward, [], {}

    def watched(episode):
        seen.append(episode["input_ids"].clone())
        if processes.rank == 1 and len(seen) == int(STOP_AT):
            os.kill(os.getpid(), signal.SIGTERM)
        return forward(episode)

    advance = trainer.objective.advance

    def looked(updates, ranks):
        named = trainer.objective.named_parameters()
        gradients.update((name, p.grad.clone()) for name, p in named if p.grad is not None)
        advance(updates, ranks)

    trainer.objective.forward, trainer.objective.advance = watched, looked
    finished = trainer.fit()
    torch.save(
        {
            "step": trainer.progress.step,
            "finished": finished,
            "samples": trainer.progress.samples_seen,
            "parameters": dict(trainer.objective.state_dict()),
            "gradients": gradients,
            "seen": seen,
        },
        f"{OUTPUT}.{processes.rank}",
    )
    trainer.monitor.close()
    stop_processes()


if __name__ == "__main__":
    main()
