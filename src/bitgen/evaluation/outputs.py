"""Where an evaluation's files go: not into one another, and not onto what it reads."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from bitgen.evaluation.flags import TASKS
from bitgen.guards.json_files import BadJson, read_json
from bitgen.guards.printable import printable
from bitgen.machine.files import check_writable
from bitgen.trained import holds_model_or_data


def check_outputs(outputs: Mapping[str, str | None], inputs: Mapping[str, str | None]) -> None:
    """Refuse, before any work, files that cannot be written or that would take the place of something else.

    Args:
        outputs: by flag, the files to write.
        inputs: by flag, the folders of files that are read: an existing file in them is not ours to replace.

    Raises:
        ValueError: the message begins with the flag.
    """
    taken: dict[Path, str] = {}
    folders = {flag: Path(os.path.realpath(folder)) for flag, folder in inputs.items() if folder is not None}
    for flag, path in outputs.items():
        if path is None:
            continue
        real, shown = Path(os.path.realpath(path)), printable(path)
        if real in taken:
            raise ValueError(f"--{flag} {shown} is --{taken[real]}'s file too; name another file")
        taken[real] = flag
        for name, folder in folders.items():
            if real.exists() and folder in real.parents:
                raise ValueError(f"--{flag} {shown} is a file that --{name} reads; name another file")
        if real.exists() and holds_model_or_data(real.parent) and not _is_results(real):
            raise ValueError(f"--{flag} {shown} is a file of the model or dataset beside it; name another file")
        try:
            check_writable(path)
        except ValueError as error:
            raise ValueError(f"--{flag} {error}") from error


def kept_beside(output: str, task: str) -> Path:
    """The folder beside an output file where a long task keeps what is finished: ``results_glue``."""
    path = Path(output)
    return path.with_name(f"{path.stem}_{task}")


def _is_results(path: Path) -> bool:
    """Whether an earlier evaluation wrote a file that lies in a model's folder."""
    if path.suffix.lower() == ".png":
        return True
    with suppress(OSError, BadJson):
        return _names_tasks(read_json(path, dict))
    with suppress(OSError, BadJson):
        return _lists_answers(read_json(path, list))
    return False


def _names_tasks(content: dict[str, Any]) -> bool:
    """Results by task, or the official form of BabyLM's predictions: by set and part, a list."""
    parts = [part for found in content.values() for part in (found.values() if isinstance(found, dict) else [found])]
    decided = bool(parts) and all(isinstance(part, dict) and "predictions" in part for part in parts)
    return decided or set(content) <= set(TASKS)


def _lists_answers(content: list[Any]) -> bool:
    """Captions or answers of every entry."""
    kinds = ({"image_id", "caption"}, {"question_id", "answer"}, {"question", "rationale", "answer"})
    return all(isinstance(entry, dict) and any(kind <= entry.keys() for kind in kinds) for entry in content)
