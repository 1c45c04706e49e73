"""Tiny runs of stage 2, and the captioner that they begin with."""

from __future__ import annotations

from pathlib import Path

from bitgen.config.stage2 import Stage2Config
from bitgen.data.scenes.tables import render_table, table_scene
from bitgen.machine.devices import start_processes
from bitgen.run import build_trainer
from bitgen.tasks import reasoning, task_of
from bitgen.training.trainer import Trainer
from support.runs import TINY

# To learn its words from the questions of 4,000 pictures would take longer than all the rest of such a run.
reasoning._TEXTS = 100

CAPTIONER = dict(vision_tuning="full", text_loss_weight=1.0, itm_weight=0.0, max_seq_len=112, vocab_size=400,
                 lora_warmup_steps=0, tokenizer="train", max_steps=2)  # fmt: skip
QUESTIONS = dict(question_data="scenes", train_data=None, val_data=None, tokenizer="extend", vocab_size=600,
                 grad_accum_steps=1, batch_size=4, max_steps=4, scenes_train=40)  # fmt: skip
REINFORCED = dict(reinforcement="policy_gradient", rollout_group=4, rollout_tokens=12, process_weight=0.3,
                  supervised_pictures=2, learning_rate=1e-3)  # fmt: skip


def config_of(folder: Path, **settings: object) -> Stage2Config:
    """A checked configuration of a run in ``folder``."""
    folders = {"output_dir": str(folder / "checkpoints"), "log_dir": str(folder / "logs")}
    config = Stage2Config().replace(**{**TINY, **CAPTIONER, **folders, **settings})
    config.validate(world_size=1)
    return config


def trained(config: Stage2Config) -> Trainer:
    trainer = build_trainer(task_of(config), config, start_processes("cpu", False))
    trainer.fit()
    trainer.monitor.close()
    return trainer


def picture(folder: Path) -> str:
    """A scene as a file."""
    path = folder / "scene.png"
    render_table(table_scene(("file", 1)), 120, ("file", 1)).save(path)
    return str(path)
