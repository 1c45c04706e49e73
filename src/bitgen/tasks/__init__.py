"""What a run can be for: each task puts model, data, objective and schedule together."""

from __future__ import annotations

from bitgen.config import Config
from bitgen.protocols import Task
from bitgen.tasks.episodes import Episodes
from bitgen.tasks.reasoning import Reasoning
from bitgen.tasks.stage1 import Stage1

TASKS: dict[str, Task] = {"stage1": Stage1(), "episodes": Episodes(), "reasoning": Reasoning()}


def task_of(config: Config) -> Task:
    """What a configuration is trained as."""
    if config.reasoning.question_data is not None:
        return TASKS["reasoning"]
    return TASKS["episodes" if config.episodes.recall_weight else "stage1"]
