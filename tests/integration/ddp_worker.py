"""One process of two, as torchrun starts them: trains, with mishaps on rank 1 alone, and writes what it holds.

Usage: ddp_worker.py CONFIG_JSON OUTPUT STOP_AT [NAN_AT]. Rank 1 gets SIGTERM in micro-step STOP_AT, and its loss is NaN
in micro-step NAN_AT (default 2); counted from 1, 0: never.
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
from bitgen.tasks import TASKS
from support.runs import gradients_of

SETTINGS, OUTPUT, STOP_AT, NAN_AT = (*sys.argv[1:], "2")[:4]


def main() -> None:
    torch.set_num_threads(1)
    config = Config.from_flat(json.loads(Path(SETTINGS).read_text()))
    config.validate()
    processes = start_processes(config.training.device, config.training.use_ddp)
    trainer = build_trainer(TASKS["stage1"], config, processes)
    forward = trainer.objective.forward
    calls = []

    def troubled(*arguments):
        calls.append(1)
        if processes.rank == 1 and len(calls) == int(STOP_AT):
            os.kill(os.getpid(), signal.SIGTERM)
        output = forward(*arguments)
        return (
            output._replace(loss=output.loss * torch.nan)
            if processes.rank == 1 and len(calls) == int(NAN_AT)
            else output
        )

    trainer.objective.forward = troubled
    gradients = gradients_of(trainer)
    finished = trainer.fit()
    holds = {
        "step": trainer.progress.step,
        "phase": trainer.phase,
        "skipped": trainer.progress.skipped_steps,
        "samples": trainer.progress.samples_seen,
        "words": trainer.progress.words_seen,
        "finished": finished,
        "parameters": dict(trainer.objective.state_dict()),
        "gradients": gradients,
        "queue": dict(trainer.objective.queue.state_dict()),
        "random": torch.get_rng_state(),
    }
    torch.save(holds, f"{OUTPUT}.{processes.rank}")
    trainer.monitor.close()
    stop_processes()


if __name__ == "__main__":
    main()
