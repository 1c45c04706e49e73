"""Where an export may be written."""

from __future__ import annotations

import os
from pathlib import Path

from bitgen.config import ConfigError
from bitgen.trained import holds_model_or_data


def checked_target(output: str) -> Path:
    """The absolute path of ``--output``.

    Raises:
        ConfigError: it is a file, is not empty, or lies in a folder that a model or a dataset was written into.
    """
    target = Path(output)
    if target.is_dir() and any(target.iterdir()):
        raise ConfigError(f"--output {output} exists and is not empty: name another folder, or empty this one.")
    if target.exists() and not target.is_dir():
        raise ConfigError(f"--output {output} is a file: name a folder.")
    if os.path.ismount(target):  # nothing that is written beside it can take its place
        raise ConfigError(f"--output {output} is the top of a mounted disk: name a folder inside it.")
    target = target.resolve()
    if inside_of := next((folder for folder in target.parents if holds_model_or_data(folder)), None):
        raise ConfigError(
            f"--output {output} lies in {inside_of}, which holds a model or a dataset: name a folder outside."
        )
    return target
