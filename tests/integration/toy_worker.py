"""One process of runs of the toy task, one after the other: ``toy_worker.py JOBS_JSON``.

A job is ``[settings, stop_at]``: SIGTERM arrives in step ``stop_at``, counted from 1; null: never.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import closing
from pathlib import Path

import torch

from bitgen.machine.devices import start_processes
from bitgen.machine.ranks import stop_processes
from bitgen.run import build_trainer
from support.toy_task import Toy, ToyConfig


def run(settings: dict, stop_at: int | None) -> None:
    config = ToyConfig.from_flat(settings)
    config.validate()
    trainer = build_trainer(Toy(), config, start_processes("cpu", config.training.use_ddp))
    draw = trainer.source.draw

    def draw_and_stop() -> list:
        if stop_at is not None and trainer.progress.step == stop_at - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return draw()

    trainer.source.draw = draw_and_stop
    with closing(trainer.monitor):
        trainer.fit()


torch.set_num_threads(1)
for job in json.loads(Path(sys.argv[1]).read_text()):
    run(*job)
stop_processes()
