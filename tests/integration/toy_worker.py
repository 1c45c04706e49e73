"""One process of a run of the toy task: ``toy_worker.py CONFIG_JSON [STOP_AT]``; SIGTERM arrives in step STOP_AT."""

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

torch.set_num_threads(1)
config = ToyConfig.from_flat(json.loads(Path(sys.argv[1]).read_text()))
config.validate()
trainer = build_trainer(Toy(), config, start_processes("cpu", config.training.use_ddp))
draw = trainer.source.draw


def draw_and_stop() -> list:
    if len(sys.argv) > 2 and trainer.progress.step == int(sys.argv[2]) - 1:
        os.kill(os.getpid(), signal.SIGTERM)
    return draw()


trainer.source.draw = draw_and_stop
with closing(trainer.monitor):
    trainer.fit()
stop_processes()
