"""What a run can be for: each task puts model, data, objective and schedule together."""

from __future__ import annotations

from bitgen.config import Config
from bitgen.protocols import Task
from bitgen.tasks.episodes import Episodes
from bitgen.tasks.stage1 import Stage1

TASKS: dict[str, Task] = {"stage1": Stage1(), "episodes": Episodes()}


def task_of(config: Config) -> Task:
    """What a configuration of stage 1 is trained as."""
    return TASKS["episodes" if config.episodes.recall_weight else "stage1"]
