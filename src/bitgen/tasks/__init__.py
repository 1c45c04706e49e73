"""What a run can be for: each task puts model, data, objective and schedule together."""

from __future__ import annotations

from bitgen.protocols import Task
from bitgen.tasks.stage1 import Stage1

TASKS: dict[str, Task] = {"stage1": Stage1()}
